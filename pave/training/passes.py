"""The passes of a step through the base, and what each has of the step's losses.

Clips that do not fit into memory together go through in parts, and each process has its own. Every pass divides by the
questions (or tokens) of the whole step, so that the sums over all passes of all processes are the losses, and the
gradient, of the undivided step.

In: a patch in training, and the clips of a step with their turns. Out: losses for the backward pass, and their sums
over the processes. Knows nothing of optimisers, learning rates and files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from pave.features.stored import Ahead
from pave.model.inputs import ClipFeatures
from pave.model.layout import perceived
from pave.packing.rows import Turn
from pave.recipe import TrainConfig
from pave.training.dataset import TrainingClip, packed, tokens_of
from pave.training.keep import Keep
from pave.training.loss import answers, cross_entropy, divergence, scores, total
from pave.training.plan import passes
from pave.training.setup import Setup
from pave.training.trainee import Trainee

Turns = Sequence[Sequence[Turn]]  # of each clip


@dataclass(frozen=True)
class Passes:
    """The patch in training, and what its steps read."""

    setup: Setup
    trainee: Trainee
    keep: Keep | None
    ahead: Ahead

    def losses(
        self, options: TrainConfig, clips: Sequence[TrainingClip], more: Turns, following: Sequence[TrainingClip]
    ) -> Iterator[tuple[Tensor, Tensor | float, dict[str, Tensor]]]:
        """For each pass of a step, its share of: the loss of the answers; the divergence from the base on its own
        answers to `more`, in which a question (or token, as in train.mean_over) weighs as much as in the loss; and the
        auxiliary losses. The clips of the following step are read meanwhile."""
        ranks = self.setup.ranks
        mine, then = ranks.share(range(options.batch)), [clip.stored for clip in ranks.share(following)]
        read = self.ahead.features([clips[row].stored for row in mine], then)
        features = dict(zip(mine, read, strict=True))
        count = sum(len(clip.turns) for clip in clips)
        if options.mean_over == "tokens":
            count = sum(len(turn.answer) for clip in clips for turn in clip.turns)
        lengths = [clip.length + tokens_of(others) for clip, others in zip(clips, more, strict=True)]
        parts = passes(lengths, [bool(each) for each in more], options, ranks, self.setup.sharded)
        several = self.setup.recipe.resampler is not None and (len(parts) > 1 or ranks.count > 1)
        windows = dict(zip(mine, self._windows(read), strict=True)) if several else {}
        every = sum(ranks.gather(sum(windows.values()))) if several else 0
        for part in parts:
            own = [clips[row].turns for row in part.rows], [more[row] if part.counts else [] for row in part.rows]
            losses, kept = self._sums([features[row] for row in part.rows], *own)
            if part.asks and self.keep and not any(own[1]):  # another process asks the base, and needs its parts
                self.keep.teacher(read[:1], [next(filter(None, more))])
            auxiliary = self.trainee.attached.aux_losses
            if several and auxiliary:  # means over the windows of all rows
                share = sum(windows[row] for row in part.rows) / every * part.counts
                auxiliary = {name: value * share for name, value in auxiliary.items()}
            yield losses * part.counts / count, kept / count, auxiliary

    def add_up(self, loss: float, auxiliary: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """The losses of the whole step, whose parts and whose gradients the processes have."""
        ranks, resampler = self.setup.ranks, self.setup.recipe.resampler
        if ranks.count == 1:
            return loss, dict(auxiliary)
        names = ["diversity"] if resampler and resampler.diversity else []
        figures = torch.tensor([loss, *(auxiliary.get(name, 0.0) for name in names)])
        loss, *others = ranks.add_up(self.trainee.all, figures.to(self.setup.model.host.device)).tolist()
        return loss, dict(zip(names, others, strict=True))

    def _sums(self, features: Sequence[ClipFeatures], turns: Turns, more: Turns) -> tuple[Tensor, Tensor | float]:
        """Of rows with these turns and further ones that keep the base: the sums over questions (or tokens) of the
        cross-entropy of the former, and of the divergence of the latter."""
        setup, model = self.setup, self.setup.model
        asked = [[*each, *others] for each, others in zip(turns, more, strict=True)]
        self.trainee.attached.aux_losses = {}
        inputs, labels = packed(model, features, asked, setup.names)
        logits, targets = scores(model, inputs, labels)
        answer = answers(labels)
        each = answer if setup.recipe.train.mean_over == "questions" else torch.arange(len(answer))
        own = [[True] * len(one) + [False] * len(other) for one, other in zip(turns, more, strict=True)]
        learned = torch.tensor([*chain(*own)])[answer]
        losses, _ = total(cross_entropy(logits[learned], targets[learned]), each[learned])
        if self.keep is None or learned.all():
            return losses, 0.0
        teacher = self.keep.teacher(features, more)
        return losses, total(divergence(logits[~learned], teacher), each[~learned])[0]

    def _windows(self, features: Sequence[ClipFeatures]) -> list[int]:
        """How many windows of each clip an auxiliary loss is the mean over, if there is one."""
        attached, names = self.trainee.attached, self.setup.names
        uses = perceived(self.setup.model.applied.uses(names, len(features)), features)
        return attached.windows(next(use.sides for use in uses if use.attached is attached))
