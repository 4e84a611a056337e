"""The loss of a step, and the same figure as accuracy: both are of the answers' tokens, given all tokens before.

In: rows with labels. Out: logits where an answer's token is due, their cross-entropy, and how often whole answers would
be right.

b rows, l tokens of a row, k tokens of all answers
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.data import IGNORE
from pave.model.applied import Names
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.training.dataset import TrainingClip, batch


def scores(model: PatchedModel, inputs: Inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits where a learned id is due (k vocabulary), and these ids (k)."""
    wanted = labels[:, 1:].to(model.host.device)
    columns = (wanted != IGNORE).any(0).nonzero()[:, 0]  # the head is wide: only columns that hold an answer
    logits = model.forward(inputs, logits_to_keep=columns).logits
    wanted = wanted[:, columns]
    return logits[wanted != IGNORE], wanted[wanted != IGNORE]


def answer_loss(model: PatchedModel, inputs: Inputs, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    logits, wanted = scores(model, inputs, labels)
    return F.cross_entropy(logits.float(), wanted)


@torch.no_grad()
def token_accuracy(model: PatchedModel, clips: Sequence[TrainingClip], patches: Names, size: int) -> dict[str, float]:
    """Share of questions whose every token is the most likely one given the right tokens before it (teacher forcing;
    `pave.evaluate` lets the model answer freely), over all and by the data file's `channel`; `size` clips at once."""
    tally: dict[str, list[bool]] = {"all": []}
    for first in range(0, len(clips), size):
        part = clips[first : first + size]
        logits, wanted = scores(model, *batch(model, part, patches))
        hits = iter((logits.argmax(-1) == wanted).tolist())
        for clip in part:
            for example, (_, answer) in zip(clip.examples, clip.turns, strict=True):
                right = all(tuple(islice(hits, len(answer))))  # takes them all, even after a miss
                for key in {"all", str(example.facts.get("channel", "all"))}:
                    tally.setdefault(key, []).append(right)
    return {key: sum(hits) / len(hits) for key, hits in tally.items()}
