"""Segments: gathers projected side tokens by key frame.

In: a SideBatch, then tensors with one row per side token. Out: the same rows, one group per key frame, and a mask of
real ones. Each token is projected once and then gathered, for any number of rows or key frames. Where segments are so
ragged that padding would cost more than the tokens, `groups` splits the key frames into groups of similar ones. Knows
nothing of weights.

b clips, t key frames, τ time steps, m steps of a segment, n = h w side tokens of a step, e channels
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pave.sidechannel import SideBatch

PADDED = 1 << 14  # side tokens of padded segments: up to here, padding costs little


class Segments:
    """Gathers tensors with a row per side token into the segments of key frames."""

    def __init__(self, side: SideBatch) -> None:
        b, t, m = side.index.shape
        steps, h, w = side.x.shape[1:4]
        self.side, self.shape = side, (b * t, m, h * w)
        self.index = self.after = self.share = None
        if side.layout != "even":
            # Of one row, as a model runs a fusion, numbers of steps are places already.
            first = torch.arange(0, b * steps, steps, device=side.index.device).view(b, 1, 1) if b > 1 else None
            self.index = _shifted(side.index, first)
            if side.blend is not None:
                self.after, self.share = _shifted(side.blend[0], first), side.blend[1].view(-1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """((b τ n) e) as ((b t) m n e)."""
        return self._steps(x.reshape(self.side.times.numel(), -1)).view(*self.shape, x.shape[-1])

    def seconds(self) -> Tensor:
        """Seconds of each step since its key frame ((b t) m); 0 in a set, whose steps have no time."""
        seconds = self._steps(self.side.times.view(-1, 1)).view(self.shape[:2]) - self.side.key_times.view(-1, 1)
        if self.side.sets is None:
            return seconds
        return seconds.masked_fill(self.side.sets.repeat_interleave(self.side.key_times.shape[1])[:, None], 0)

    def mask(self) -> Tensor | None:
        """Mask of real tokens ((b t) (m n)); None: all are real."""
        if self.side.layout in ("even", "dense"):
            return None
        mask = self.side.mask.view(*self.shape[:2], 1).expand(self.shape)
        if self.side.valid is not None:
            # An interpolated token is real where both of its steps are: then the interpolated mask is 1.
            mask = mask & (self(self.side.valid.reshape(-1, 1).double())[..., 0] > 1 - 1e-6)
        return mask.flatten(1)

    def _steps(self, x: Tensor) -> Tensor:
        """((b τ) e) as ((b t m) e)."""
        if self.index is None:
            return x
        picked = x.index_select(0, self.index)
        if self.after is None or self.share is None:
            return picked
        return torch.lerp(picked, x.index_select(0, self.after), self.share.to(x.dtype))


def _shifted(steps: Tensor, first: Tensor | None) -> Tensor:
    return (steps if first is None else steps + first).flatten()


def spread(weights: Tensor, side: SideBatch, frames: slice | Tensor) -> Tensor:
    """Weights of the slots of some key frames (t (m n)) of one row, as those of its side tokens (t τ h w): the inverse
    of gathering. Where a slot interpolates two steps, each has its share; padding has none."""
    steps, *grid = side.x.shape[1:4]
    real = Segments(side).mask()
    slots = weights if real is None else weights * real[frames, : weights.shape[1]]
    slots = slots.unflatten(-1, (-1, grid[0] * grid[1]))  # (t m n)
    parts = [(side.index, torch.ones_like(side.index))]
    if side.blend is not None:
        after, share = side.blend
        parts = [(side.index, 1 - share), (after, share)]
    found = slots.new_zeros(len(slots), steps, slots.shape[2])
    for index, share in parts:
        index, share = (each[0, frames, : slots.shape[1], None] for each in (index, share))
        found.scatter_add_(1, index.expand(slots.shape), slots * share.to(slots.dtype))
    return found.unflatten(-1, grid)


def groups(side: SideBatch) -> list[Tensor]:
    """Key frames (indices) of one row, in groups with segments of similar length: none is twice as long as another.
    Empty, unless padding all segments to the longest one at least doubles a large number of tokens. A batch of several
    rows is never split; a model runs a fusion row by row."""
    slots = side.index.numel()
    if (
        len(side.index) > 1
        or side.layout in ("even", "dense")
        or side.blend is not None
        or slots * side.x.shape[2] * side.x.shape[3] <= PADDED
    ):
        return []
    counts = side.mask[0].sum(-1)
    if slots <= 2 * int(counts.sum()):
        return []
    size = counts.clamp(min=1).double().log2().floor()
    return [(size == each).nonzero()[:, 0] for each in size.unique()]


def part(side: SideBatch, frames: Tensor) -> SideBatch:
    """The side tokens of some key frames (indices) of one row, and no others."""
    mask = side.mask[:, frames]
    mask = mask[..., : max(1, int(mask.sum(-1).max()))]  # padding is at the end
    index = side.index[:, frames, : mask.shape[-1]]
    used = index[mask].unique()
    return replace(
        side,
        x=side.x[:, used],
        times=side.times[:, used],
        steps=torch.full_like(side.steps, len(used)),
        index=torch.searchsorted(used, index.contiguous()).masked_fill(~mask, 0),
        mask=mask,
        valid=None if side.valid is None else side.valid[:, used],
        key_times=side.key_times[:, frames],
        layout="ragged",
    )
