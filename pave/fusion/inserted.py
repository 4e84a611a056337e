"""Side tokens as tokens of the language model, inserted beside the visual ones or in place of them.

In: side tokens; visual tokens after the projector. Out: tokens of the language model. Knows nothing of prompts.

b clips, t key frames, s visual tokens per key frame, τ time steps, n = h w side tokens of a step, k segments of a clip,
d channels
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pave.config import FusionConfig
from pave.fusion.reader import Reader, Standardise
from pave.fusion.segments import Segments
from pave.sidechannel import SideBatch


class Concatenation(Reader):
    """The concatenation baseline: side tokens as tokens of the language model, inserted beside the visual ones.

        token = scale · (W_2 GELU(W_1 x̂ + b_1) + b_2),   x̂ as in `Reader`

    Out: tokens (b t n d) and a mask of real ones (b t n); for `prefix`, each step once, in one group (t = 1).
    """

    standard: Standardise

    def __init__(self, config: FusionConfig, *, side_dim: int, visual_dim: int, points: bool = False) -> None:
        super().__init__(side_dim, standard=True, points=points)
        self.config = config
        self.project = nn.Sequential(
            nn.Linear(self.features, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, visual_dim),
        )
        self.register_buffer("scale", torch.ones(()))

    def forward(self, side: SideBatch) -> tuple[Tensor, Tensor]:
        """Tokens (b t k d) in the dtype of the weights, and their mask (b t k)."""
        x = self.read(side, next(self.project.parameters()).dtype)
        tokens = self.project(x) * self.scale.to(x.dtype)
        b, steps, h, w = side.x.shape[:4]
        if self.config.combine == "interleave":
            segments = Segments(side)
            tokens, mask = segments(tokens).unflatten(0, (b, -1)).flatten(2, 3), segments.mask()
            real = tokens.new_ones(tokens.shape[:3], dtype=torch.bool) if mask is None else mask.unflatten(0, (b, -1))
            return tokens, real
        real = repeat(torch.arange(steps, device=x.device) < side.steps[:, None], "b τ -> b τ h w", h=h, w=w)
        real = real if side.valid is None else real & side.valid
        return tokens.view(b, 1, steps * h * w, -1), real.flatten(1)[:, None]


class Pooled(Concatenation):
    """The mean side token of each of k segments of equal length, projected as by `Concatenation`. A segment without a
    valid token gives none."""

    def forward(self, side: SideBatch) -> tuple[Tensor, Tensor]:
        """Tokens (b 1 k d) in the dtype of the weights, and their mask (b 1 k)."""
        count, (b, steps, h, w, _) = self.config.segments, side.x.shape
        order = torch.arange(steps, device=side.x.device)
        lengths = side.steps.to(order.device)[:, None]
        segment = order * count // lengths.clamp(min=1)  # of each step (b τ)
        real = repeat(order < lengths, "b τ -> b τ h w", h=h, w=w)
        real = real if side.valid is None else real & side.valid
        member = rearrange(segment, "b τ -> b 1 τ 1 1") == torch.arange(count, device=order.device).view(count, 1, 1, 1)
        weight = rearrange(member & real[:, None], "b k τ h w -> b k (τ h w)").to(side.x.dtype)
        tokens = rearrange(side.x.masked_fill(~real[..., None], 0), "b τ h w c -> b (τ h w) c")
        total = weight.sum(-1, keepdim=True)
        mean = rearrange(weight @ tokens / total.clamp(min=1), "b k c -> b k 1 1 c")
        x = self.read(replace(side, x=mean), next(self.project.parameters()).dtype)
        made = self.project(x) * self.scale.to(x.dtype)
        return rearrange(made, "(b k) d -> b 1 k d", b=b), rearrange(total > 0, "b k 1 -> b 1 k")


class Summary(nn.Module):
    """A film in few tokens: the mean over each key frame and over each place, after Audio-Visual LLM (Shu et al., arXiv
    2312.06720, section 3.1).

        token = m + W_2 GELU(W_1 LN(m))

    The paper makes them of the vision tower's features with one linear layer. Here the language model is frozen at
    first, so the tokens begin as means of those that it knows; W_2 begins at zero.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.temporal, self.spatial = _update(dim, width), _update(dim, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Visual tokens (t s d) as (t + s) d: one per key frame, then one per place."""
        frames, places = reduce(tokens, "t s d -> t d", "mean"), reduce(tokens, "t s d -> s d", "mean")
        return torch.cat([frames + self.temporal(frames), places + self.spatial(places)])


def _update(dim: int, width: int) -> nn.Sequential:
    last = nn.Linear(width, dim, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), nn.Linear(dim, width), nn.GELU(), last)
