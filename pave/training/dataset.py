"""The clips of a run: read and encoded once, their questions as token ids, and batches of them for a step.

In: a `Setup`. Out: a `Dataset`; unreadable clips are skipped and reported.

b clips of a step, l tokens of a row
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from torch import Tensor

from pave.base import Host
from pave.data import Example, Source, collate, pack, read_jsonl, refuse_texts
from pave.encoder import Encoder
from pave.errors import DataError, nearest
from pave.features.cache import FeatureCache, OnClip
from pave.features.stored import Stored
from pave.media.warned import told
from pave.model.applied import Names
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.patched import PatchedModel
from pave.playroom.writer import write_clips
from pave.recipe import DataConfig
from pave.training.setup import Setup

TURNS = 4_096  # tokens of questions and answers in one row
Turn = tuple[list[int], list[int]]  # ids of the prompt after the video, and of the answer with the end of the turn


@dataclass(frozen=True)
class TrainingClip:
    """One clip and all questions about it."""

    stored: Stored
    examples: tuple[Example, ...]
    turns: tuple[Turn, ...]  # one per example

    @property
    def features(self) -> ClipFeatures:
        """Read now, at every access."""
        return self.stored.features

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

    @property
    def clips(self) -> int:
        """The number of clips for training; one with very many questions is several rows of `train`."""
        return len({id(clip.stored) for clip in self.train})

    @property
    def questions(self) -> int:
        """The number of questions for training."""
        return sum(len(clip.examples) for clip in self.train)

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
    setup.recipe.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    train_file, val_file = data_files(setup.recipe.data, setup.recipe.output)
    written = time.perf_counter()
    host = setup.model.host
    examples = [read_jsonl(file) for file in (train_file, val_file) if file]  # both, so that bad files fail early
    for file, lines in zip((train_file, val_file), examples, strict=False):
        refuse_texts(file or "", lines, host.refuse_text)
    asked = [_by_clip(lines, clips) for lines in examples]
    for line in setup.store.plan(list(dict.fromkeys(chain(*asked)))):
        tell(line)
    train = _training_clips(setup, train_file, asked[0], on_clip)
    val = _training_clips(setup, val_file, asked[1], on_clip) if val_file else []
    seconds = {"clips": written - begin, "features": time.perf_counter() - written}
    unused = unread(chain(*examples), setup.streams)
    timed = frozenset(sense for sense, config in setup.recipe.senses.items() if config.align == "time")
    dataset = Dataset(train, val, dict(setup.senses), setup.store.refused, unused, seconds, timed)
    if not setup.recipe.train.keep_lora_when_absent and not dataset.sensing():
        why = "; ".join(sorted({why for clip in train for why in clip.stored.absent.values()})[:3])
        raise DataError(
            f"{train_file}: none of its {len(train)} clips has {' or '.join(setup.senses)} ({why}), so there is "
            f"nothing to learn from; {'; '.join(unused) or 'use clips that have it'}"
        )
    return dataset


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


def data_files(data: DataConfig, folder: Path) -> tuple[Path, Path | None]:
    """The JSONL files of a recipe; Playroom clips are written first."""
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


def _by_clip(examples: Iterable[Example], limit: int | None) -> dict[Source, list[Example]]:
    """The questions about each clip, of the first `limit` clips."""
    found: dict[Source, list[Example]] = {}
    for example in examples:
        found.setdefault(example.source, []).append(example)
    return dict(islice(found.items(), limit))


def _training_clips(
    setup: Setup, file: Path, asked: Mapping[Source, Sequence[Example]], on_clip: OnClip | None
) -> list[TrainingClip]:
    """Every readable clip, with its questions."""
    store: FeatureCache = setup.store
    encoded = store.read(list(asked), on_clip).stored
    if not encoded:
        why = store.refused[next(iter(asked))]
        raise DataError(f"{file}: none of its {len(asked)} clips can be read; the first: {why}")
    host = setup.model.host
    return [part for source, stored in encoded.items() for part in _rows(host, stored, asked[source])]


def _rows(host: Host, stored: Stored, examples: Sequence[Example]) -> Iterator[TrainingClip]:
    """A clip with all its questions; in parts if they are too many for one row, whose mask is quadratic."""
    clip = training_clip(host, stored, examples)
    first, length = 0, 0
    for place, turn in enumerate(clip.turns):
        length += len(turn[0]) + len(turn[1])
        if length > TURNS and place > first:
            yield replace(clip, examples=clip.examples[first:place], turns=clip.turns[first:place])
            first, length = place, len(turn[0]) + len(turn[1])
    yield replace(clip, examples=clip.examples[first:], turns=clip.turns[first:])


def training_clip(host: Host, stored: Stored, examples: Iterable[Example]) -> TrainingClip:
    """A clip with its questions, tokenised once for all steps."""
    examples = tuple(examples)
    turns = tuple(
        (host.prompt(example.question)[1], [*host.encode_text(example.answer), host.end]) for example in examples
    )
    return TrainingClip(stored, examples, turns)


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
