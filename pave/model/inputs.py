"""What one call of a patched model reads: frozen features of clips, the patches of each row, and tokens.

In: tensors. Out: frozen dataclasses of tensors that forward() and generate() accept as they are. Knows nothing of
files, and computes nothing that has a gradient.

b rows, t key frames, s visual tokens per key frame, q d channels before and after the projector, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pave.base import Newline, Seen, Visual
from pave.errors import UsageError
from pave.patch.attached import Attached
from pave.sidechannel import SideBatch, SideTokens


@dataclass(frozen=True)
class ClipFeatures:
    """One clip as frozen networks see it; worth caching, since no patch changes it."""

    vision: Tensor  # (t s q)
    tokens: Tensor  # (t s d)
    times: Tensor  # (t,) seconds
    sides: Mapping[str, SideTokens | None] = field(default_factory=dict)  # by the encoder's `spec.preprocessing`
    absent: Mapping[str, str] = field(default_factory=dict)  # why a side channel is None
    deep: Tensor | None = None  # (t s k d), where the base has such features

    def to(self, device: torch.device | str) -> ClipFeatures:
        """The same clip elsewhere; side tokens stay where they are until a batch is moved."""
        vision, tokens, times = (each.to(device) for each in (self.vision, self.tokens, self.times))
        deep = None if self.deep is None else self.deep.to(device)
        return ClipFeatures(vision, tokens, times, self.sides, self.absent, deep)


@dataclass(frozen=True)
class Use:
    """One patch in one call: on which rows, how strongly, and what its senses perceive there. A snapshot: changing the
    model's patches does not reach a call that has been prepared."""

    name: str
    attached: Attached
    weight: float
    rows: Tensor  # bool (b,) on the CPU: rows that ask for the patch
    sides: Mapping[str, tuple[SideBatch | None, ...]]  # sense -> side channel of each row, None where it has none

    @property
    def sensing(self) -> Tensor:
        """Rows that ask for the patch and have at least one of its senses (b,)."""
        found = [any(sides[i] is not None for sides in self.sides.values()) for i in range(len(self.rows))]
        return self.rows & torch.tensor(found) & bool(self.weight)

    @property
    def acting(self) -> Tensor:
        """Rows that the patch changes (b,): those that sense something, unless it was trained otherwise or has no
        sense. All other rows are the base's own, their layout included."""
        keep = self.attached.config.keep_lora_when_absent or not self.sides
        return self.rows & bool(self.weight) if keep else self.sensing

    @property
    def strength(self) -> Tensor:
        """How strongly the patch's LoRA runs on each row (b,)."""
        return self.weight * self.acting


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call. `attention_mask` may be (b l), or (b 1 l l) with explicit `position_ids` when several
    questions share the visual rows of one clip."""

    input_ids: Tensor  # int64 (b l)
    attention_mask: Tensor
    visual: Visual
    uses: tuple[Use, ...] = ()
    newline: tuple[Newline, ...] = ()  # of each row; empty: the base's own
    position_ids: Tensor | None = None  # int64 (b l); None: counted along the mask

    def positions(self) -> Tensor:
        """Explicit positions: left to itself, forward() of the base would count the padding on the left too."""
        if self.position_ids is not None:
            return self.position_ids
        if self.attention_mask.dim() != 2:
            raise UsageError(f"a mask of shape {tuple(self.attention_mask.shape)} needs explicit position_ids")
        return (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def stack(clips: Sequence[ClipFeatures]) -> Visual:
    """Clips as one padded batch."""
    return Visual.stack([Seen(clip.vision, clip.tokens, clip.deep) for clip in clips], [clip.times for clip in clips])
