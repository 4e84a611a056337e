"""Questions that need no sense, with the base's own answers: what a patch must not make the base forget.

Without them, a patch that is trained on one kind of question answers every question like that one. So each step asks
some of them about clips of the step that have the sense, and adds the divergence of the patched model from the base on
the base's own answers, as distillation does (Li and Hoiem, "Learning without Forgetting", 2016). No data are needed.

In: a model, clips, and a list of questions. Out: turns for a step, and the base's logits. Knows nothing of optimisers.

b clips of a step, k tokens of all answers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from pave.base import Host
from pave.errors import DataError, UsageError
from pave.files.atomic import opened
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.training.dataset import Turn, packed
from pave.training.loss import scores

LONGEST = 24  # tokens of the base's answers
SHARE = 4  # one of so many clips of a step is asked
ASKED = 2  # questions about such a clip; they share its prefill
TOGETHER = 16  # questions whose answers are generated in one batch; with others, near ties could end differently
LARGEST = 1_000_000  # bytes of a list


@cache
def built_in(name: str) -> tuple[str, ...]:
    """A list of this folder: "kept", for training, or "retention", which training never sees."""
    return tuple(files("pave.training").joinpath("questions", f"{name}.txt").read_text("utf-8").splitlines())


def read_questions(file: Path, host: Host) -> tuple[str, ...]:
    """A list of questions, one a line; empty lines are skipped. DataError for a file without questions, with one that
    the base cannot read, or with one of those that measure what is kept."""
    try:
        with opened(file) as content:
            raw = content.read(LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); give a UTF-8 text file") from None
    if len(raw) > LARGEST:
        raise DataError(f"{file}: is larger than {LARGEST:,} bytes; give fewer questions")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: has no questions; write one a line")
    measured = {question.lower() for question in built_in("retention")}
    for number, question in lines:
        try:
            host.refuse_text(question)
        except UsageError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
        if question.lower() in measured:
            cause = f"{question!r} is one of the questions that measure what the base keeps"
            raise DataError(f"{file}, line {number}: {cause}; delete the line")
    return tuple(question for _, question in lines)


def own_answers(
    model: PatchedModel, clips: Sequence[ClipFeatures], questions: Sequence[str], patches: Sequence[str]
) -> list[list[int]]:
    """The ids of the greedy answers to a question about each clip, at most LONGEST, with the end of the turn where it
    was reached."""
    inputs = model.prepare(clips, questions, patches=[patches] * len(clips))
    ids = model.generate(inputs, max_new_tokens=LONGEST, do_sample=False, num_beams=1)
    stops = set(model.host.stops)
    answers = []
    for row in ids[:, inputs.input_ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        answers.append(row[: end + 1])
    return answers


@dataclass
class Keep:
    """What a training run asks besides its own questions."""

    model: PatchedModel
    questions: Sequence[str]
    clips: Sequence[ClipFeatures]  # the base's answers are about these, in turn
    patches: Sequence[str]  # the model without the patch in training
    seed: int
    known: dict[int, list[int]] = field(default_factory=dict)  # answers by place in the order of asking

    def __post_init__(self) -> None:
        self.order = torch.randperm(len(self.questions), generator=torch.Generator().manual_seed(self.seed)).tolist()

    def turns(self, step: int, acting: Sequence[bool]) -> list[list[Turn]]:
        """Turns for each clip of a step, none for most and for clips on which the patch does not act."""
        asked = [place for place, acts in enumerate(acting) if acts][: -(-len(acting) // SHARE)]
        first = step * -(-len(acting) // SHARE) * ASKED
        numbers = {row: range(first + i * ASKED, first + (i + 1) * ASKED) for i, row in enumerate(asked)}
        return [[self._turn(number % len(self.order)) for number in numbers.get(row, ())] for row in range(len(acting))]

    def teacher(self, clips: Sequence[ClipFeatures], turns: Sequence[Sequence[Turn]]) -> Tensor:
        """Logits of the model without the patch (k vocabulary) at all answers of the turns."""
        asked = [(clip, each) for clip, each in zip(clips, turns, strict=True) if each]
        with torch.no_grad():
            rows = [list(each) for each in zip(*asked, strict=True)]
            logits, _ = scores(self.model, *packed(self.model, rows[0], rows[1], [self.patches] * len(asked)))
        return logits

    def _turn(self, place: int) -> Turn:
        if place not in self.known:
            block = range(place - place % TOGETHER, min(place - place % TOGETHER + TOGETHER, len(self.order)))
            clips = [self.clips[each % len(self.clips)] for each in block]
            questions = [self.questions[self.order[each]] for each in block]
            self.known |= zip(block, own_answers(self.model, clips, questions, self.patches), strict=True)
        return self.model.host.prompt(self.questions[self.order[place]])[1], self.known[place]
