"""The loss of a step, and teacher-forced accuracy, both of the answers' tokens.

In: rows with labels. Out: logits at the positions that predict an answer's token, their cross-entropy, their divergence
from those of another model, and the share of answers that are entirely right.

b rows, l tokens of a row, k tokens of all answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.features.cache import OnClip
from pave.features.stored import Ahead
from pave.model.applied import Names
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.packing.rows import IGNORE
from pave.training.dataset import TrainingClip, packed


def scores(model: PatchedModel, inputs: Inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the positions that predict a label (k vocabulary), and these labels (k)."""
    targets = labels[:, 1:].to(model.host.device)
    columns = (targets != IGNORE).any(0).nonzero()[:, 0]  # the vocabulary is large: skip columns without labels
    logits = model.forward(inputs, logits_to_keep=columns).logits
    targets = targets[:, columns]
    return logits[targets != IGNORE], targets[targets != IGNORE]


def answers(labels: Tensor) -> Tensor:
    """The number of the answer, counted over all rows from 0, that each label of `scores` belongs to (k,). Between two
    answers of a row is a question, which has no labels."""
    real = labels[:, 1:] != IGNORE
    begins = real & ~F.pad(real, (1, 0))[:, :-1]
    return (begins.flatten().cumsum(0) - 1)[real.flatten()]


def total(values: Tensor, group: Tensor) -> tuple[Tensor, int]:
    """The sum over groups of the mean of a group's values, and how many groups there are; values and the number of each
    one's group (k,)."""
    _, place, tokens = group.unique_consecutive(return_inverse=True, return_counts=True)
    return (values / tokens[place].to(values.device)).sum(), len(tokens)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each token (k,), from logits (k vocabulary) and targets (k,)."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || model) in nats of each token (k,), from logits (k vocabulary)."""
    own, wanted = logits.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(own, wanted, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True)
class Score:
    """How well questions are answered under teacher forcing (`pave.evaluate` generates freely)."""

    loss: float  # as in training
    right: Mapping[
        str, float
    ]  # share whose answer tokens are all the most likely ones, by the data's `channel`, and all


@torch.no_grad()
def score(
    model: PatchedModel,
    clips: Sequence[TrainingClip],
    patches: Names,
    size: int,
    mean_over: str = "questions",
    on_clip: OnClip = lambda done, total: None,
) -> Score:
    """The score of all questions about some clips, `size` clips per batch; `mean_over` as train.mean_over."""
    tally: dict[str, list[bool]] = {"all": []}
    losses, count = 0.0, 0
    ahead, parts = Ahead(), [clips[first : first + size] for first in range(0, len(clips), size)]
    for number, (part, following) in enumerate(zip(parts, [*parts[1:], []], strict=True)):
        features = ahead.features([clip.stored for clip in part], [clip.stored for clip in following])
        inputs, labels = packed(model, features, [clip.turns for clip in part], patches)
        logits, targets = scores(model, inputs, labels)
        group = answers(labels) if mean_over == "questions" else torch.arange(len(targets))
        summed, more = total(cross_entropy(logits, targets), group)
        losses, count = losses + summed.item(), count + more
        hits = iter((logits.argmax(-1) == targets).tolist())
        for clip in part:
            for example, turn in zip(clip.examples, clip.turns, strict=True):
                right = all(tuple(islice(hits, len(turn.answer))))  # tuple: consumes all hits, even after a miss
                for key in {"all", str(example.facts.get("channel", "all"))}:
                    tally.setdefault(key, []).append(right)
        on_clip(number * size + len(part), len(clips))
    return Score(losses / count, {key: sum(hits) / len(hits) for key, hits in tally.items()})


def token_accuracy(model: PatchedModel, clips: Sequence[TrainingClip], patches: Names, size: int) -> dict[str, float]:
    """The share of right answers of `score`."""
    return dict(score(model, clips, patches, size).right)
