"""The passes of a step through the base, and what each has of the step's losses.

Clips that do not fit into memory together go through in parts, and each process has its own. Every pass divides by the
questions (or tokens) of the whole step, so that the sums over all passes of all processes are the losses, and the
gradient, of the undivided step.

In: a patch in training, and the clips of a step with their turns. Out: losses for the backward pass, and their sums
over the processes. Knows nothing of optimisers, learning rates and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from pave.config import Modality
from pave.features.stored import Ahead
from pave.model.inputs import ClipFeatures
from pave.model.layout import perceived
from pave.packing.rows import Turn
from pave.recipe import MODALITIES, TrainConfig
from pave.training.dataset import TrainingClip, packed, tokens_of
from pave.training.keep import Keep
from pave.training.loss import answers, cross_entropy, divergence, scores, total
from pave.training.plan import passes
from pave.training.setup import Setup
from pave.training.trainee import Trainee

Turns = Sequence[Sequence[Turn]]  # of each clip


class Share(NamedTuple):
    """What one pass has of a step's losses, which are its sums over all passes of all processes."""

    answers: Tensor  # the loss of the answers
    kept: Tensor | float  # the divergence from the base on its own answers
    auxiliary: dict[str, Tensor]
    modalities: dict[str, float]  # the loss of the answers of clips that were drawn to be seen with it, by figure


def named(kind: Modality) -> str:
    """The figure that is the loss of the clips seen with it."""
    return f"loss, {kind}"


@dataclass(frozen=True)
class Passes:
    """The patch in training, and what its steps read."""

    setup: Setup
    trainee: Trainee
    keep: Keep | None
    ahead: Ahead

    def losses(
        self, options: TrainConfig, clips: Sequence[TrainingClip], more: Turns, following: Sequence[TrainingClip]
    ) -> Iterator[Share]:
        """For each pass of a step, its share. `more` are the questions that keep the base, of which one (or a token, as
        in train.mean_over) weighs as much as in the loss of the answers. The clips of the following step are read
        meanwhile."""
        ranks = self.setup.ranks
        mine, then = ranks.share(range(options.batch)), [clip.stored for clip in ranks.share(following)]
        read = self.ahead.features([clips[row].stored for row in mine], then)
        features = dict(zip(mine, read, strict=True))
        counts = Counter[Modality | None]()  # of questions (or tokens)
        for clip in clips:
            tokens = options.mean_over == "tokens"
            counts[clip.modality] += sum(len(turn.answer) for turn in clip.turns) if tokens else len(clip.turns)
        lengths = [clip.length + tokens_of(others) for clip, others in zip(clips, more, strict=True)]
        sparing = self.setup.model.host.device.type == "cpu"  # a GPU waits for the launches of one more pass
        parts = passes(lengths, [bool(each) for each in more], options, ranks, self.setup.sharded, sparing)
        several = self.setup.recipe.resampler is not None and (len(parts) > 1 or ranks.count > 1)
        windows = dict(zip(mine, self._windows(read), strict=True)) if several else {}
        every = sum(ranks.gather(sum(windows.values()))) if several else 0
        for part in parts:
            rows, others = [clips[row] for row in part.rows], [more[row] if part.counts else [] for row in part.rows]
            losses, kept, kinds = self._sums(rows, [features[row] for row in part.rows], others)
            if part.asks and self.keep and not any(others):  # another process asks the base, and needs its parts
                self.keep.teacher(read[:1], [next(filter(None, more))])
            auxiliary = self.trainee.attached.aux_losses
            if several and auxiliary:  # means over the windows of all rows
                share = sum(windows[row] for row in part.rows) / every * part.counts
                auxiliary = {name: value * share for name, value in auxiliary.items()}
            modalities = {named(kind): value * part.counts / counts[kind] for kind, value in kinds.items()}
            yield Share(losses * part.counts / counts.total(), kept / counts.total(), auxiliary, modalities)

    def add_up(self, figures: Mapping[str, float], clips: Sequence[TrainingClip]) -> dict[str, float]:
        """The figures of the step with these clips, whose parts and whose gradients the processes have."""
        ranks, resampler = self.setup.ranks, self.setup.recipe.resampler
        if ranks.count == 1:
            return dict(figures)
        kinds = sorted({named(clip.modality) for clip in clips if clip.modality})
        names = ["loss", *kinds, *(["diversity"] if resampler and resampler.diversity else [])]
        given = torch.tensor([figures.get(name, 0.0) for name in names], device=self.setup.model.host.device)
        return dict(zip(names, ranks.add_up(self.trainee.all, given).tolist(), strict=True))

    def _sums(
        self, clips: Sequence[TrainingClip], features: Sequence[ClipFeatures], more: Turns
    ) -> tuple[Tensor, Tensor | float, dict[Modality, float]]:
        """Of clips with their turns and further ones that keep the base: the sums over questions (or tokens) of the
        cross-entropy of the former, and of the divergence of the latter; and the former for each modality."""
        setup, model, turns = self.setup, self.setup.model, [clip.turns for clip in clips]
        asked = [[*each, *others] for each, others in zip(turns, more, strict=True)]
        self.trainee.attached.aux_losses = {}
        inputs, labels = packed(model, features, asked, setup.names)
        logits, targets = scores(model, inputs, labels)
        answer = answers(labels)
        each = answer if setup.recipe.train.mean_over == "questions" else torch.arange(len(answer))
        own = [[True] * len(one) + [False] * len(other) for one, other in zip(turns, more, strict=True)]
        learned = torch.tensor([*chain(*own)])[answer]
        entropy = cross_entropy(logits[learned], targets[learned])
        losses, _ = total(entropy, each[learned])
        kinds = dict[Modality, float]()
        seen = [clip.modality for clip, mine in zip(clips, own, strict=True) for _ in mine]  # of each answer
        for kind in MODALITIES if any(seen) else ():
            those = torch.tensor([modality == kind for modality in seen])[answer][learned]
            if those.any():
                kinds[kind] = total(entropy.detach()[those], each[learned][those])[0].item()
        if self.keep is None or learned.all():
            return losses, 0.0, kinds
        teacher = self.keep.teacher(features, more)
        return losses, total(divergence(logits[~learned], teacher), each[~learned])[0], kinds

    def _windows(self, features: Sequence[ClipFeatures]) -> list[int]:
        """How many windows of each clip an auxiliary loss is the mean over, if there is one."""
        attached, names = self.trainee.attached, self.setup.names
        uses = perceived(self.setup.model.applied.uses(names, len(features)), features)
        return attached.windows(next(use.sides for use in uses if use.attached is attached))
