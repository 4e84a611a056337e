"""How a fusion takes in side tokens: features divided by what was measured, and the point of a token added to them.

In: side tokens of c channels, with `points` the last three of them a place in metres. Out: the same tokens in the dtype
of the weights, features standardised and told where they are. Knows nothing of attention, key frames or base models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pave.sidechannel import SideBatch

POINT = 3  # channels of a point, metres


class Reader(nn.Module):
    """What is common to all kinds: how they take in side tokens [f, p] of features and, with `points`, a point each.

    x̂ = f̂ + MLP(p̂)          without points f̂ alone; hats as `Standardise` has them, of f where a kind has one
    """

    scale: Tensor
    standard: Standardise | None

    def __init__(self, side_dim: int, *, standard: bool, points: bool) -> None:
        super().__init__()
        self.features = side_dim - POINT if points else side_dim  # channels
        self.standard = Standardise(self.features) if standard else None
        self.place = PointEmbedding(self.features) if points else None

    def read(self, side: SideBatch, dtype: torch.dtype) -> Tensor:
        """All side tokens ((b τ n) c) in the dtype of the weights."""
        f, p = side.x.flatten(0, 3).tensor_split((self.features,), -1)
        x = (f if self.standard is None else self.standard(f)).to(dtype)
        return x if self.place is None else x + self.place(p, dtype)

    def calibrate(self, tokens: Tensor, side: Tensor) -> None:
        """Fit an untrained fusion, where it has these, to visual tokens (… d), whose RMS becomes its `scale`, and to
        side tokens (n c), whose mean and deviation it divides out, those of features and those of points."""
        if "scale" in self._buffers:
            self.scale.copy_(tokens.detach().float().square().mean().sqrt())
        f, p = side.tensor_split((self.features,), -1)
        if self.standard is not None:
            self.standard.fit(f)
        if self.place is not None:
            self.place.standard.fit(p)


class Standardise(nn.Module):
    """x̂ = (x − mean) · gain, per channel. Both are measured before training and then stay, so that silence is as quiet
    as it was, which no LayerNorm keeps; without them a large constant in all channels hides what changes, and a patch
    learns to hear several times more slowly, or not at all. The subtraction needs float32, whatever the fusion's dtype:
    a constant a hundred times the deviation would leave bfloat16 nothing."""

    mean: Tensor
    gain: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("gain", torch.ones(dim))

    def fit(self, x: Tensor) -> None:
        """Measure tokens (n c); a channel that hardly ever changes is not blown up."""
        if len(x) > 1:
            deviation, mean = torch.std_mean(x.double(), 0)
            self.mean.copy_(mean)
            self.gain.copy_(1 / deviation.clamp(min=max(0.1 * deviation.mean().item(), 1e-6)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.promote_types(x.dtype, torch.float32)) - self.mean).mul_(self.gain)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardise:
        """Moves, but never changes its dtype."""
        measured = {name: value for name, value in self.named_buffers() if not value.is_meta}
        super()._apply(fn, recurse)
        for name, value in measured.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def position_mlp(dim: int) -> nn.Sequential:
    """From points in metres to what features of `dim` channels gain by them, as LLaVA-3D has it (Zhu et al., arXiv
    2409.18125)."""
    return nn.Sequential(nn.Linear(POINT, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))


class PointEmbedding(nn.Module):
    """What the point (n 3) of a token adds to its features: LLaVA-3D's MLP, of points that are centred and scaled as
    was measured, so that a room far from its origin is no harder."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.standard = Standardise(POINT)
        self.mlp = position_mlp(dim)

    def forward(self, points: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(self.standard(points).to(dtype))
