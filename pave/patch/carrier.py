"""The carrier of a patch: what stands in place of visual tokens where a clip has no pictures, so that a patch that adds
to visual tokens has something to add to (after the null modality tokens of Audio-Visual LLM's kind of training).

In: the number of key frames. Out: visual features before and after the projector, the same everywhere. Knows nothing of
clips.

t key frames, s visual tokens per key frame, q d channels before and after the projector
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Carrier(nn.Module):
    """One learned visual token, on both sides of the projector."""

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.vision = nn.Parameter(torch.zeros(vision_dim))
        self.tokens = nn.Parameter(torch.zeros(dim))

    def calibrate(self, vision: Tensor, tokens: Tensor) -> None:
        """Begin with the mean of real ones, (n q) and (n d)."""
        with torch.no_grad():
            self.vision.copy_(vision.mean(0))
            self.tokens.copy_(tokens.mean(0))

    def forward(self, frames: int, places: int) -> tuple[Tensor, Tensor]:
        """Features (1 t s q) and (1 t s d) of a clip without pictures."""
        return self.vision.expand(1, frames, places, -1), self.tokens.expand(1, frames, places, -1)
