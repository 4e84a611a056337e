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

import torch
from torch import Tensor

from pave.features.stored import Stored
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.packing.rows import Turn
from pave.training.dataset import packed
from pave.training.gate import balanced
from pave.training.general import without
from pave.training.loss import scores
from pave.training.setup import Setup

LONGEST = 16  # tokens of the base's answers
SHARE = 8  # one of so many clips of a step is asked
ASKED = 2  # questions about such a clip; they share its prefill
BLOCK = 64  # questions that are answered at once, at most
TOKENS = 16_384  # visual tokens of a batch that answers


def rows_together(clips: Sequence[Stored]) -> int:
    """How many rows of such clips answer in one batch."""
    return max(1, TOKENS // max(clip.visual for clip in clips))


def own_answers(
    model: PatchedModel, clips: Sequence[ClipFeatures], questions: Sequence[str], patches: Sequence[str]
) -> list[list[int]]:
    """The ids of the greedy answers to a question about each clip, at most LONGEST, with the end of the turn where it
    was reached."""
    inputs = model.prepare(clips, questions, patches=[patches] * len(clips))
    media = sorted(model.host.placeholders)  # a row with one of these in its answer could not be laid out
    ids = model.generate(inputs, max_new_tokens=LONGEST, do_sample=False, num_beams=1, suppress_tokens=media)
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
    questions: tuple[str, ...]
    clips: Sequence[Stored]  # the base's answers are about these, in turn
    patches: Sequence[str]  # the model without the patch in training
    seed: int
    known: dict[int, Turn] = field(default_factory=dict)  # by place in the order of asking

    @classmethod
    def of(cls, setup: Setup, clips: Sequence[Stored], learned: Sequence[str]) -> Keep | None:
        """What a recipe asks about clips; None if nothing. Questions that the data teach are not asked, since the patch
        learns other answers."""
        if not (general := without(setup.general, learned)):
            return None
        train = setup.recipe.train
        return cls(setup.model, balanced(general) if train.gate else general, clips, setup.names[:-1], train.seed)

    def __post_init__(self) -> None:
        self.order = torch.randperm(len(self.questions), generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.block = min(BLOCK, rows_together(self.clips))

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
            # Always the same ones in a batch, also in a resumed run: beside others, near ties could end differently.
            first = place - place % self.block
            block = range(first, min(first + self.block, len(self.order)))
            clips = [self.clips[each % len(self.clips)].features for each in block]
            questions = [self.questions[self.order[each]] for each in block]
            prompts = [self.model.host.prompt(question)[1] for question in questions]
            turns = map(Turn, prompts, own_answers(self.model, clips, questions, self.patches))
            self.known |= zip(block, turns, strict=True)
        return self.known[place]
