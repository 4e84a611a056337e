"""The clips of a run: read and encoded once, their questions as token ids, and batches of them for a step.

In: a `Setup`. Out: a `Dataset`; unreadable clips are skipped and reported.

b clips of a step, l tokens of a row
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from torch import Tensor

from pave.base import Host
from pave.config import Modality
from pave.data import Example, Source
from pave.data_sets import DataConfig, Sets
from pave.encoder import Encoder
from pave.errors import DataError, nearest
from pave.features.cache import FeatureCache, OnClip
from pave.features.stored import Features, Stored
from pave.features.stored import shuffled as exchanged
from pave.media.warned import told
from pave.model.applied import Names
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.patched import PatchedModel
from pave.packing.rows import Turn, collate, pack
from pave.playroom.writer import write_clips
from pave.readers.parts import Part, missing_of, places_of, read_parts
from pave.readers.questions import names_of
from pave.recipe import TrainConfig
from pave.text.shown import counted, shortened
from pave.training.general import without
from pave.training.plan import order
from pave.training.ranks import Ranks
from pave.training.setup import Setup

TURNS = 4_096  # tokens of questions and answers in one row
TOLD = 20  # broken records and unreadable clips that are named while a run begins; quarantine has all
FEW = 3  # places of one clip that are named


@dataclass(frozen=True)
class TrainingClip:
    """One clip and all questions about it."""

    stored: Stored
    examples: tuple[Example, ...]
    turns: tuple[Turn, ...]  # one per example
    modality: Modality | None = None  # what a step sees of it; None: all that it has

    @property
    def features(self) -> ClipFeatures:
        """Read now, at every access."""
        return self.stored.features

    @property
    def weight(self) -> float:
        """How often it comes in an epoch."""
        return self.examples[0].weight

    @property
    def length(self) -> int:
        """Its visual tokens and those of all turns."""
        return self.stored.visual + tokens_of(self.turns)

    def has(self, encoder: Encoder) -> bool:
        """Whether the clip has side tokens of an encoder."""
        return encoder.spec.preprocessing in self.stored.present

    def outside(self, encoder: Encoder) -> int:
        """How many of its time steps are before or after the clip."""
        return self.stored.outside.get(encoder.spec.preprocessing, 0)


@dataclass(frozen=True)
class Dataset:
    """The readable clips, for training and held out, and why others are missing."""

    train: list[TrainingClip]
    val: list[TrainingClip]
    senses: dict[str, Encoder]  # of the trained patch
    refused: dict[Source, str]  # unreadable clips, and why
    unread: list[str]  # warnings about signals of clips that no encoder reads
    seconds: dict[str, float]  # of each stage
    timed: frozenset[str] = frozenset()  # senses that are aligned by time
    broken: Mapping[str, str] = field(default_factory=dict)  # records of the data that were left out, and why

    @property
    def clips(self) -> int:
        """The number of clips for training; one with very many questions is several rows of `train`."""
        return len({id(clip.stored) for clip in self.train})

    @property
    def questions(self) -> int:
        """The number of questions for training."""
        return sum(len(clip.examples) for clip in self.train)

    @property
    def epoch(self) -> int:
        """The number of clips of an epoch, those of a larger weight several times."""
        return len(order([clip.weight for clip in self.train], 0, 0))

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """What is wrong with clips that were read nevertheless, by their path."""
        clips = (*self.train, *self.val)
        return {str(clip.examples[0].source): clip.stored.warnings for clip in clips if clip.stored.warnings}

    def remarks(self) -> list[str]:
        """Warnings: clips that lack a sense, signals that no encoder reads, and what is wrong with files."""
        count = len(self.train) + len(self.val)
        missing = [(sense, why) for sense, why in self.absent().items() if why]
        lines = [*(f"{len(why)} of {count} clips have no {sense} ({why[0]})" for sense, why in missing), *self.unread]
        for sense in sorted(self.timed):
            if over := sum(bool(clip.outside(self.senses[sense])) for clip in (*self.train, *self.val)):
                lines.append(f"{over} of {count} clips have {sense} before or after their pictures, which is not read")
        return [*lines, *(f"warning: {text}" for text in told(self.warnings))]

    def absent(self) -> dict[str, list[str]]:
        """For every sense of the patch: the reasons of all clips that lack it."""
        return {
            sense: [
                clip.stored.absent.get(encoder.spec.preprocessing, "absent: nothing in it can be read")
                for clip in (*self.train, *self.val)
                if not clip.has(encoder)
            ]
            for sense, encoder in self.senses.items()
        }

    def facts(self) -> dict[str, object]:
        """What was wrong with the data, for `metrics.json`."""
        return {
            "absent": {sense: len(why) for sense, why in self.absent().items()},
            "unreadable": {str(source): why for source, why in self.refused.items()},
            "broken": dict(self.broken),
            "warnings": {path: list(texts) for path, texts in self.warnings.items()},
        }

    def fingerprint(self, more: Iterable[str]) -> str:
        """The hash of every question for training, in order, with its answer and its clip, and of further questions."""
        turns = [
            (e.video.name, e.question, e.answer, *([e.weight] if e.weight != 1 else []), *e.history)
            for clip in self.train
            for e in clip.examples
        ]
        return hashlib.sha256(json.dumps([*turns, *more]).encode()).hexdigest()[:12]

    def learned(self, options: TrainConfig) -> list[str]:
        """The questions whose answers a patch learns with these options, each once."""
        asked = (example.question for clip in self.train for example in clip.examples)
        return list(dict.fromkeys([*asked, *(match.question for match in options.matches)]))

    def sensing(self) -> list[TrainingClip]:
        """Training clips that have at least one of the senses."""
        return [clip for clip in self.train if any(clip.has(encoder) for encoder in self.senses.values())]


def read_dataset(
    setup: Setup,
    clips: int | None = None,
    on_clip: OnClip | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Dataset:
    """Read the questions, then encode every clip once; `clips`: how many of a file to use, None: all. `tell` is called
    with what is kept of the clips and why, before the first is read."""
    ranks, store, refuse = setup.ranks, setup.store, setup.model.host.refuse_text
    setup.recipe.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    train_data, val_data = ranks.in_turn(lambda: data_of(setup.recipe.data, setup.recipe.output))
    written = time.perf_counter()
    parts = ranks.in_turn(  # which may unpack media
        lambda: [read_parts(data, refuse) for data in (train_data, val_data) if data]  # both: bad ones fail early
    )
    examples = [[example for part in each for example in part.examples] for each in parts]
    asked = [by_clip(each, clips) for each in examples]
    with ranks.together():
        _watch_for_flaws(setup, list(chain(*parts)), tell)
        for line in (*setup.remarks(), *store.plan(list(dict.fromkeys(chain(*asked))))):
            tell(line)
    store.keeps = ranks.gather(store.keeps)[0]
    before, total = len(asked[0]), sum(map(len, asked))
    train = _training_clips(setup, names_of(train_data), asked[0], on_clip and (lambda done, _: on_clip(done, total)))
    val: list[TrainingClip] = []
    if val_data:
        seen = on_clip and (lambda done, _: on_clip(before + done, total))
        val = _training_clips(setup, names_of(val_data), asked[1], seen)
    seconds = {"clips": written - begin, "features": time.perf_counter() - written}
    unused = unread(chain(*examples), setup.streams)
    timed = frozenset(sense for sense, config in setup.recipe.senses.items() if config.align == "time")
    refused, broken = setup.store.refused, setup.store.broken
    dataset = Dataset(train, val, dict(setup.senses), refused, unused, seconds, timed, broken)
    for line in _not_kept(setup.general, dataset.learned(setup.recipe.train)):
        tell(line)
    if not setup.recipe.train.keep_lora_when_absent and not dataset.sensing():
        why = "; ".join(sorted({why for clip in train for why in clip.stored.absent.values()})[:3])
        raise DataError(
            f"{names_of(train_data)}: none of its {len(train)} clips has {' or '.join(setup.senses)} ({why}), so there "
            f"is nothing to learn from; {'; '.join(unused) or 'use clips that have it'}"
        )
    return dataset


def _not_kept(general: Sequence[str], learned: Sequence[str]) -> Iterator[str]:
    """That some of the questions for train.keep are learned."""
    kept = {*without(general, learned)}
    if others := [question for question in general if question not in kept]:
        cause = f"{len(others)} of the {len(general)} questions that keep the base are not asked"
        yield f"{cause}, since the patch learns other answers to them: {shortened(others[0], 60)}"


def _watch_for_flaws(setup: Setup, parts: Sequence[Part], tell: Callable[[str], object]) -> None:
    """Tell of broken records, and of unreadable clips as soon as they are found; or DataError, with data.strict."""
    store, strict = setup.store, setup.recipe.data.strict
    places = places_of(parts)
    broken = {part.named(place): flaw for part in parts for place, flaw in part.broken}
    missing = {place: f"{file}: no such file" for place, file in missing_of(parts)} if strict else {}
    if strict and (flaws := broken | missing):
        listed = "; ".join(f"{place}: {flaw}" for place, flaw in flaws.items())
        remedy = "fix them, or leave out data.strict, which stops at any"
        raise DataError(f"{counted(len(flaws), 'record')} cannot be used: {listed}; {remedy}")
    for number, (place, flaw) in enumerate(broken.items()):
        if number < TOLD:
            tell(f"left out: {place}: {flaw}")
    if len(broken) > TOLD:
        tell(f"and {counted(len(broken) - TOLD, 'more broken record')}")

    def refused(source: Source, why: str) -> None:
        """An unreadable clip has been found."""
        place = "; ".join(places[source][:FEW])
        if strict:
            raise DataError(
                f"{place}: {why}; or leave out data.strict, which stops at any; --dry-run finds all of them"
            )
        if len(store.refused) <= TOLD:
            tell(f"unreadable: {place}: {why}")
        if len(store.refused) == TOLD + 1:
            tell(f"unreadable: more than {TOLD} clips; features/quarantine.jsonl will have all of them")

    store.places, store.broken, store.on_refused = places, broken, refused


def shuffled(clips: Sequence[TrainingClip], acts: Callable[[TrainingClip], bool], seed: int) -> list[TrainingClip]:
    """The same clips and questions, with the signals of other clips where `acts`; none if fewer than two do."""
    acting = list({id(clip.stored): clip.stored for clip in clips if acts(clip)}.values())
    if len(acting) < 2:
        return []
    others = dict(zip(map(id, acting), exchanged(acting, seed), strict=True))
    return [replace(clip, stored=others.get(id(clip.stored), clip.stored)) for clip in clips]


def unread(examples: Iterable[Example], read: Collection[str]) -> list[str]:
    """A warning for every name in the `signals` of clips that no sense reads, and for a track of sound."""
    sources = dict.fromkeys(example.source for example in examples)
    named = Counter(name for source in sources for name, _ in source.signals)
    lines = [
        f"{count} of {len(sources)} clips have a signal {name!r}, which no sense reads; {nearest(name, read)}"
        for name, count in named.items()
        if name not in read
    ]
    choosing = sum("audio_track" in source.tracks for source in sources)
    if choosing and "audio" not in read:
        lines.append(f"{choosing} of {len(sources)} clips choose an audio_track, and no sense reads sound")
    return lines


def data_of(data: DataConfig, folder: Path) -> tuple[Sets, Sets | None]:
    """The data sets of a recipe; Playroom clips are written first."""
    if data.playroom is None:
        assert data.train is not None  # guaranteed by the config
        return data.train, data.val
    world = data.playroom
    clips = folder / "clips"
    channels = [channel for channel in world.channels if channel != "caption"]  # no captions in held-out data
    return (
        write_clips(clips, world.clips, world.seed, "train", world.channels),
        write_clips(clips, max(8, world.clips // 10), world.seed, "val", channels),
    )


def by_clip(examples: Iterable[Example], limit: int | None = None) -> dict[Source, dict[float, list[Example]]]:
    """The questions about each clip, of the first `limit` clips; a clip of two data sets may have two weights."""
    found: dict[Source, dict[float, list[Example]]] = {}
    for example in examples:
        found.setdefault(example.source, {}).setdefault(example.weight, []).append(example)
    return dict(islice(found.items(), limit))


def _training_clips(
    setup: Setup, file: str, asked: Mapping[Source, Mapping[float, Sequence[Example]]], on_clip: OnClip | None
) -> list[TrainingClip]:
    """Every readable clip, with its questions."""
    store: FeatureCache = setup.store
    encoded = _encoded(store, setup.ranks, list(asked), on_clip).stored
    if not encoded:
        why = store.refused[next(iter(asked))]
        raise DataError(f"{file}: none of its {len(asked)} clips can be read; the first: {why}")
    host = setup.model.host
    parts = ((stored, own) for source, stored in encoded.items() for own in asked[source].values())
    return [part for stored, own in parts for part in rows(host, stored, own)]


def _encoded(store: FeatureCache, ranks: Ranks, sources: Sequence[Source], on_clip: OnClip | None) -> Features:
    """The features of all readable clips; each process encodes its part of them. A clip that another one has encoded
    where this one cannot find it, on a disk of its own, is encoded again."""
    if ranks.count == 1:
        return store.read(sources, on_clip)
    with ranks.together():
        store.fill(ranks.share(sources), on_clip)
    for refused in ranks.gather(store.refused):
        store.refused |= refused
    left = [source for source in sources if source not in store.refused]
    with ranks.together():
        return store.read(left) if ranks.first else store.fill(left)


def rows(host: Host, stored: Stored, examples: Sequence[Example]) -> Iterator[TrainingClip]:
    """A clip with all its questions; in parts if they are too many for one row, whose mask grows with them."""
    clip = training_clip(host, stored, examples)
    begins = [place for place, turn in enumerate(clip.turns) if not turn.follows]  # a dialogue stays whole
    first, length = 0, 0
    for begin, end in zip(begins, [*begins[1:], len(clip.turns)], strict=True):
        more = tokens_of(clip.turns[begin:end])
        length += more
        if length > TURNS and begin > first:
            yield replace(clip, examples=clip.examples[first:begin], turns=clip.turns[first:begin])
            first, length = begin, more
    yield replace(clip, examples=clip.examples[first:], turns=clip.turns[first:])


def training_clip(host: Host, stored: Stored, examples: Iterable[Example]) -> TrainingClip:
    """A clip with its questions, tokenised once for all steps."""
    examples = tuple(examples)
    return TrainingClip(stored, examples, turns_of(host, examples))


def turns_of(host: Host, examples: Sequence[Example]) -> tuple[Turn, ...]:
    """Questions about one clip and their answers as ids."""
    return tuple(_turn(host, *pair) for pair in zip((None, *examples), examples, strict=False))


def _turn(host: Host, before: Example | None, example: Example) -> Turn:
    """A question and its answer; if the example before it is the end of its history, the turn follows that."""
    follows = before is not None and example.history == (*before.history, (before.question, before.answer))
    prompt = host.following(example.question) if follows else host.prompt(example.question, "", example.history)[1]
    return Turn(prompt, [*host.encode_text(example.answer), host.end], follows)


def tokens_of(turns: Iterable[Turn]) -> int:
    """The number of their tokens."""
    return sum(len(turn.prompt) + len(turn.answer) for turn in turns)


def batch(model: PatchedModel, clips: Sequence[TrainingClip], patches: Names) -> tuple[Inputs, Tensor]:
    """A batch with one row per clip, which has all its questions, and labels (b l). `patches`: names for all, or per
    clip."""
    return packed(model, [clip.features for clip in clips], [clip.turns for clip in clips], patches)


def packed(
    model: PatchedModel, clips: Sequence[ClipFeatures], turns: Sequence[Sequence[Turn]], patches: Names
) -> tuple[Inputs, Tensor]:
    """A batch with one row per clip, which has all its turns, and labels (b l)."""
    layout = model.lay_out(clips, patches)
    before = model.host.prompter.prefix
    rows = [pack([*before, *visual], each) for each, visual in zip(turns, layout.visual, strict=True)]
    tokens = collate(rows, model.host.pad)
    labels = tokens.pop("labels")
    return layout.inputs(**tokens), labels
