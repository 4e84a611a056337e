"""Answers to all questions, in batches: texts, and for questions with options also the letter that is likeliest.

In: questions, and the clips of each run. Out: answers in a journal. Questions about one clip share its prefix. The
likeliest letter is the option whose letter has the highest logit where the answer begins: as lmms-eval's `mcppl` tasks
have it, for letters that are one token each.

b questions
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pave.base import Host
from pave.data import Example, Source
from pave.evaluation.journal import Journal, likeliest
from pave.model.answer import texts
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.model.shared import shared
from pave.readers.subtitles import filled
from pave.readers.wording import LETTERS

OnAnswers = Callable[[int, int], None]  # called with the number of answered questions, and of all


class _First(LogitsProcessor):
    """Keeps the logits of the first token of an answer (b vocabulary)."""

    logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self.logits = scores if self.logits is None else self.logits
        return scores


@dataclass(frozen=True)
class Asked:
    """One run: what it reads, and which patches act."""

    features: Mapping[Any, ClipFeatures]
    clips: Sequence[Hashable]  # keys of `features`, one of each question
    patches: Sequence[str] | None


def letters_of(host: Host, examples: Sequence[Example]) -> list[int]:
    """The tokens of the letters that options have; none if there are no options, or if letters do not differ in their
    first token."""
    most = max((len(example.choices) for example in examples), default=0)
    ids = [host.encode_text(letter)[0] for letter in LETTERS[:most]]
    return ids if len(set(ids)) == len(ids) else []


def ask(
    model: PatchedModel,
    examples: Sequence[Example],
    runs: Mapping[str, Asked],
    size: int,
    most: int,
    journal: Journal,
    letters: Sequence[int],
    tell: OnAnswers | None,
) -> None:
    """Answers of all runs, in the journal. Questions about one clip share its prefix, where a run reads the same."""
    done = 0
    names = [name for run in runs for name in ((run, likeliest(run)) if letters else (run,))]
    for places in batches(examples, size):
        if journal.of(places, names) is None:
            part = [examples[i] for i in places]
            histories = [each.history for each in part]
            answers: list[dict[str, str]] = [{} for _ in part]
            for name, run in runs.items():
                read = {key: run.features[key] for key in dict.fromkeys(run.clips[i] for i in places)}
                clips = [read[run.clips[i]] for i in places]
                questions = [_asked(each, clip) for each, clip in zip(part, clips, strict=True)]
                inputs, past = shared(model.calls, clips, questions, run.patches, histories)
                first = _First()
                for own, text in zip(answers, texts(model.calls, inputs, most, past, [first]), strict=True):
                    own[name] = text
                if letters:
                    assert first.logits is not None
                    for own, each, row in zip(answers, part, first.logits[:, torch.tensor(letters)], strict=True):
                        count = len(each.choices)
                        own[likeliest(name)] = LETTERS[int(row[:count].argmax())] if count else ""
            journal.add(places, answers)
        done += len(places)
        if tell:
            tell(done, len(examples))


def _asked(example: Example, clip: ClipFeatures) -> str:
    """The question, with the subtitles of its key frames where it has a place for them."""
    return filled(example.question, example.subtitles, clip.times.tolist()) if example.subtitles else example.question


def batches(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Places of questions, `size` at most; those about one clip stand together."""
    of_clip: dict[Source, list[int]] = {}
    for place, example in enumerate(examples):
        of_clip.setdefault(example.source, []).append(place)
    batch: list[int] = []
    for places in of_clip.values():
        if batch and len(batch) + len(places) > size:
            yield batch
            batch = []
        batch += places
        while len(batch) > size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch
