"""Accuracy of a model with and without its patches, and with the sense removed.

In: a model and a file of questions. Out: an `Evaluation`: accuracy by channel, and the best score possible without the
sense where the file gives it (`optimum`). Answers are generated greedily.

A side channel can be `own`, `shuffled` between clips (a control: accuracy must drop) or `off` (absent in all clips).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from pave.data import Example, Source
from pave.errors import DataError, UsageError
from pave.features.cache import FeatureCache
from pave.features.stored import Features, Stored, shuffled
from pave.media.decoding import Timeout
from pave.media.warned import told
from pave.model.answer import most_of, texts
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.readers.questions import Data, read_data
from pave.text.shown import Lines

Side = Literal["own", "shuffled", "off"]


@dataclass(frozen=True)
class Sample:
    """One question with the model's answer."""

    example: Example
    answer: str

    @property
    def right(self) -> bool:
        """Equal text, ignoring case and surrounding spaces."""
        return self.answer.strip().lower() == self.example.answer.strip().lower()


@dataclass(frozen=True)
class Score:
    """Correct answers of one group of questions."""

    right: int
    asked: int
    optimum: float | None  # best expected score without the sense; None unless every line of the group has one

    @property
    def accuracy(self) -> float:
        return self.right / self.asked


@dataclass(frozen=True)
class Evaluation(Lines):
    """All samples of one run; the unreadable clips with the reasons, whose questions are left out; and the warnings of
    clips that were read."""

    samples: tuple[Sample, ...]
    refused: Mapping[Source, str] = field(default_factory=dict)
    warnings: Mapping[Source, tuple[str, ...]] = field(default_factory=dict)

    def by(self, fact: str = "channel") -> dict[str, Score]:
        """Scores grouped by a key of the data file, in order of first appearance."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(str(sample.example.facts.get(fact, "all")), []).append(sample)
        return {name: _score(group) for name, group in groups.items()}

    @property
    def accuracy(self) -> float:
        return _score(self.samples).accuracy

    def lines(self) -> list[str]:
        lines = [f"{'channel':14} {'right':>7} {'asked':>6} {'best without':>13}"]
        for name, score in self.by().items():
            optimum = "" if score.optimum is None else f"{score.optimum:.3f}"
            lines.append(f"{name:14} {score.accuracy:7.3f} {score.asked:6} {optimum:>13}")
        lines += [f"left out: {reason}" for reason in self.refused.values()]
        lines += [f"warning: {text}" for text in told({str(clip): texts for clip, texts in self.warnings.items()})]
        return lines


def evaluate(
    model: PatchedModel,
    data: Data,
    *,
    patches: Sequence[str] | None = None,
    side: Side = "own",
    features: Mapping[Source, ClipFeatures] | None = None,
    cache: Path | None = None,
    made: Sequence[Path] = (),
    batch: int = 32,
    max_new_tokens: int | None = None,
    seed: int = 0,
    timeout: Timeout = "auto",
) -> Evaluation:
    """Ask every question of `data` (a file in a format that training reads, a `datasets.Dataset`, or examples);
    `patches=()` asks the base, None all enabled patches.

    `features` (or the folder `cache`) avoids encoding clips again; `made` names folders of feature files.
    Unreadable clips are left out.
    max_new_tokens: None allows for the longest of the correct answers. timeout: of each file, as in `Clip.read`.
    """
    if side not in get_args(Side):
        raise UsageError(f"side={side!r}: use one of {', '.join(get_args(Side))}")
    if max_new_tokens is not None:
        max_new_tokens = most_of(max_new_tokens)
    examples = read_data(data, model.host.refuse_text)
    sources = list(dict.fromkeys(example.source for example in examples))
    refused: dict[Source, str] = {}
    if features is None:
        store = FeatureCache(model, model.encoders(), cache, made, timeout)
        features, refused = store.read(sources), store.refused
    examples = [example for example in examples if example.source in features]
    if not examples:
        reason = next(iter(refused.values()), "no features were passed for it")
        raise DataError(f"none of the {len(sources)} clips can be read; the first: {reason}")
    stored = features.stored if isinstance(features, Features) else features
    flawed = {source: clip.warnings for source in sources if (clip := stored.get(source)) and clip.warnings}
    features = _change(features, side, seed)
    if max_new_tokens is None:
        max_new_tokens = 1 + max(len(model.host.encode_text(example.answer)) for example in examples)
    samples: list[Sample] = []
    for part in _batches(examples, batch):
        read = {source: features[source] for source in dict.fromkeys(example.source for example in part)}
        clips = [read[example.source] for example in part]
        questions, histories = [example.question for example in part], [example.history for example in part]
        inputs = model.prepare(clips, questions, patches=patches, histories=histories)
        answers = texts(model.calls, inputs, max_new_tokens)
        samples += [Sample(example, answer) for example, answer in zip(part, answers, strict=True)]
    return Evaluation(tuple(samples), refused, flawed)


def _change(features: Mapping[Source, ClipFeatures], side: Side, seed: int) -> Mapping[Source, ClipFeatures]:
    if side == "own":
        return features
    if side == "off":
        return _each(features, lambda source, clip: replace(clip, sides=dict.fromkeys(clip.sides)))
    if len(features) < 2:
        raise DataError("side='shuffled' needs two clips or more, got one; add clips")
    stored = features.stored if isinstance(features, Features) else {s: Stored.of(clip) for s, clip in features.items()}
    return Features(dict(zip(stored, shuffled(list(stored.values()), seed), strict=True)))


def _each(
    features: Mapping[Source, ClipFeatures], change: Callable[[Source, ClipFeatures], ClipFeatures]
) -> Mapping[Source, ClipFeatures]:
    """The same clips, each changed when it is read."""

    def read(source: Source) -> ClipFeatures:
        return change(source, features[source])

    return Features({source: Stored(partial(partial, read, source)) for source in features})


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


def _score(samples: Sequence[Sample]) -> Score:
    optima = [sample.example.facts.get("optimum") for sample in samples]
    known = [value for value in optima if isinstance(value, int | float)]
    optimum = sum(known) / len(known) if known and len(known) == len(samples) else None
    return Score(sum(sample.right for sample in samples), len(samples), optimum)
