"""Retention: how much of what the base answers to questions that need no sense stays, with a patch acting.

Measured on the base's own greedy answers, under teacher forcing: one different word changes all that follow it, so
that whole answers are too harsh to steer by.

In: a model, and clips that have the sense. Out: a `Retention`. Knows nothing of recipes and files.

k tokens of all answers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pave.features.stored import Stored
from pave.model.patched import PatchedModel
from pave.packing.rows import Turn
from pave.training.dataset import packed
from pave.training.general import built_in
from pave.training.keep import own_answers, rows_together
from pave.training.loss import divergence, scores

CLIPS = 10  # the questions are spread over so many


@dataclass(frozen=True)
class Retention:
    """Figures over all tokens of the base's answers."""

    tokens: float  # share that is still the most likely one
    kl: float  # mean KL(base || patched) in nats
    answers: float | None  # share of greedy answers that are unchanged, if asked for
    left: float | None = None  # share of questions that the gate of the patch leaves to the base, if it has one
    ungated: float | None = None  # `tokens` without the gate

    def facts(self) -> dict[str, float]:
        """Figures by name, for files."""
        return {name: round(value, 5) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Probe:
    """The base's own answers to the general questions, each about one of some clips."""

    clips: Sequence[Stored]
    asked: Sequence[Sequence[str]]  # questions about each clip
    turns: Sequence[Sequence[Turn]]  # the same with the base's answers
    patches: Sequence[str]  # the model that is to be kept: none, or patches below
    size: int  # rows of a batch

    @classmethod
    def of(
        cls,
        model: PatchedModel,
        clips: Sequence[Stored],
        patches: Sequence[str] = (),
        questions: Sequence[str] = built_in("retention"),
    ) -> Probe:
        """Ask the base, or the model with `patches`, about at most CLIPS clips, evenly taken from all."""
        count = min(len(clips), CLIPS)
        chosen = [clips[place * len(clips) // count] for place in range(count)]
        asked = [questions[place::count] for place in range(count)]
        size = rows_together(chosen)
        answers = generated(model, chosen, asked, patches, size)
        turns = [[Turn(model.host.prompt(each)[1], next(answers)) for each in questions] for questions in asked]
        return cls(chosen, asked, turns, tuple(patches), size)

    def measure(self, model: PatchedModel, patches: Sequence[str], whole: bool = False) -> Retention:
        """The retention of the model with `patches`, the last of which is the one in question; whole: generate answers,
        too."""
        gate = model.applied.module(patches[-1]).gate if patches else None
        stays, nats, left = [], [], []
        for first in range(0, len(self.clips), self.size):
            part = slice(first, first + self.size)
            base, own = (self._logits(model, part, names) for names in (self.patches, patches))
            stays.append(own.argmax(-1) == base.argmax(-1))
            nats.append(divergence(own, base))
            for questions, turns in zip(self.asked[part], self.turns[part], strict=True):
                for question, turn in zip(questions, turns, strict=True):
                    closed = gate is not None and not gate.opens(model.perception.reads(question))
                    left.append(torch.full((len(turn.answer),), closed))
        same, kl, asked = torch.cat(stays).cpu(), torch.cat(nats).cpu(), ~torch.cat(left)
        tokens, answers = (same | ~asked).double().mean().item(), None
        if whole:
            again = list(generated(model, self.clips, self.asked, patches, self.size))
            before = [turn.answer for turns in self.turns for turn in turns]
            answers = sum(one == other for one, other in zip(again, before, strict=True)) / len(before)
        shares: dict[str, float] = {}
        if gate is not None:
            closed = [bool(each[0]) for each in left]
            shares = {"left": sum(closed) / len(closed), "ungated": same.double().mean().item()}
        return Retention(tokens, (kl * asked).mean().item(), answers, **shares)

    @torch.no_grad()
    def _logits(self, model: PatchedModel, part: slice, patches: Sequence[str]) -> Tensor:
        clips = [clip.features for clip in self.clips[part]]
        return scores(model, *packed(model, clips, self.turns[part], [patches] * len(clips)))[0]


def generated(
    model: PatchedModel,
    clips: Sequence[Stored],
    asked: Sequence[Sequence[str]],
    patches: Sequence[str],
    size: int,
) -> Iterator[list[int]]:
    """Ids of the greedy answers to all questions about each clip, in order."""
    pairs = [(clip, question) for clip, questions in zip(clips, asked, strict=True) for question in questions]
    for first in range(0, len(pairs), size):
        part = pairs[first : first + size]
        read = {id(clip): clip.features for clip in {id(clip): clip for clip, _ in part}.values()}  # each once
        yield from own_answers(model, [read[id(clip)] for clip, _ in part], [question for _, question in part], patches)
