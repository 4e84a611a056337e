"""Token rows in which all questions about one clip share its prefix.

In: ids. Out: rows, and batches of them. Knows nothing of models and texts.

b clips, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pave.packing.mask import PADDING, mask_of

IGNORE = -100  # the label that cross-entropy skips (torch's default `ignore_index`)


class Turn(NamedTuple):
    """A question and its answer as ids."""

    prompt: Sequence[int]  # after the video, or behind the end of the answer before
    answer: Sequence[int]  # with the end of the turn
    follows: bool = False  # whether it goes on in the dialogue of the turn before, and attends to that


@dataclass(frozen=True)
class Row:
    """One clip's tokens: a prefix, then dialogues of one or more turns, which attend to the prefix and themselves."""

    ids: Tensor  # int64 (l)
    positions: Tensor  # int64 (l): every dialogue continues where the prefix ends
    turns: Tensor  # int64 (l): 0 for the prefix, then 1, 2, ... for each dialogue
    labels: Tensor  # int64 (l): IGNORE except for the answers


def pack(prefix: Sequence[int], turns: Sequence[Turn | tuple[Sequence[int], Sequence[int]]]) -> Row:
    """Pack turns after one prefix; a mere pair of a turn's ids begins a dialogue.

    The visual tokens are by far the longest part of a row; packing computes them once for all questions of a clip. With
    the mask of `collate` every answer attends to exactly the tokens that it would have in a separate row.
    """
    ids, positions, owners, labels = list(prefix), list(range(len(prefix))), [0] * len(prefix), [IGNORE] * len(prefix)
    owner, position = 0, len(prefix)
    for prompt, answer, follows in (turn if isinstance(turn, Turn) else Turn(*turn) for turn in turns):
        owner, position = (owner, position) if follows else (owner + 1, len(prefix))
        length = len(prompt) + len(answer)
        ids += [*prompt, *answer]
        positions += range(position, position + length)
        owners += [owner] * length
        labels += [IGNORE] * len(prompt) + list(answer)
        position += length
    return Row(*(torch.tensor(values, dtype=torch.int64) for values in (ids, positions, owners, labels)))


def collate(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """Rows, left-padded: input_ids, position_ids, labels (b l) and a boolean attention_mask (b 1 l l)."""
    length = max(len(row.ids) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        out = torch.full((len(rows), length), value, dtype=torch.int64)
        for i, row in enumerate(rows):
            values = getattr(row, name)
            out[i, length - len(values) :] = values
        return out

    return {
        "input_ids": padded("ids", pad),
        "position_ids": padded("positions", 0),
        "labels": padded("labels", IGNORE),
        "attention_mask": mask_of(padded("turns", PADDING)),
    }
