"""Segments: gathers projected side tokens by key frame.

In: a SideBatch, then tensors with one row per side token. Out: the same rows, one group per key frame, and a mask of
real ones. Each token is projected once and then gathered, for any number of rows or key frames. Knows nothing of
weights.

b clips, t key frames, τ time steps, m steps of a segment, n = h w side tokens of a step, e channels
"""

from __future__ import annotations

import torch
from torch import Tensor

from pave.sidechannel import SideBatch


class Segments:
    """Gathers tensors with a row per side token into the segments of key frames."""

    def __init__(self, side: SideBatch) -> None:
        b, t, m = side.index.shape
        steps, h, w = side.x.shape[1:4]
        self.side, self.shape = side, (b * t, m, h * w)
        self.index = self.after = self.share = None
        if side.layout != "even":
            first = torch.arange(0, b * steps, steps, device=side.index.device).view(b, 1, 1)
            self.index = (side.index + first).flatten()
            if side.blend is not None:
                self.after, self.share = (side.blend[0] + first).flatten(), side.blend[1].view(-1, 1)

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
