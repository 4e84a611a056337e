"""Fusion: visual tokens ask, the side tokens of their own key frame answer, and the answer is added to them.

In: the visual tokens of b clips (before and after the base's projector) and their SideBatch. Out: the update to add,
exactly zero at birth and wherever a key frame has no side token; or, for `combine: interleave | prefix`, projected side
tokens to put beside the visual ones. Knows nothing of base models, encoders, packing or files.

b clips, t key frames, s visual tokens of a key frame, τ time steps, m steps in a segment, n side tokens in a segment,
h heads, e channels of a head, q pre-projector channels, c side channels, d channels of the language model
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pave.config import FusionConfig
from pave.errors import BaseModelError, RecipeError, SignalError
from pave.sidechannel import SideBatch

# Seconds. 0.25 s turns two events 0.1 s apart by 0.4 of a circle; 256 s is a segment of a two-hour film in 32 frames.
SHORTEST, LONGEST = 0.25, 256.0


class Fusion(nn.Module, ABC):
    """What is common to the kinds that add."""

    scale: Tensor

    def __init__(self, config: FusionConfig, *, vision_dim: int, visual_dim: int, tokens: int, frames: int) -> None:
        super().__init__()
        self.config, self.heads, self.visual_dim = config, config.heads, visual_dim
        self.query_dim = {"vision": vision_dim, "projected": visual_dim, "learnable": config.width}[config.query]
        if config.query == "learnable":
            self.learnable_query = nn.Parameter(torch.randn(frames, tokens, config.width))

    @abstractmethod
    def forward(self, vision: Tensor | None, tokens: Tensor, side: SideBatch) -> Tensor:
        """The update (b t s d) of `tokens` (b t s d), in their dtype; `vision` is (b t s q)."""

    def calibrate(self, tokens: Tensor) -> None:
        """Make one step of the zero-initialised output as large as visual tokens (… d) are: `scale` is their RMS."""
        if "scale" in self._buffers:
            self.scale.copy_(tokens.detach().float().square().mean().sqrt())

    def _asking(self, vision: Tensor | None, tokens: Tensor) -> Tensor:
        """What the queries are made of ((b t) s q), in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        if self.config.query == "projected":
            return rearrange(tokens, "b t s d -> (b t) s d").to(dtype)
        if self.config.query == "vision":
            if vision is None:
                raise BaseModelError("the base gave no features from before its projector; use fusion.query: projected")
            return rearrange(vision, "b t s q -> (b t) s q").to(dtype)
        b, t, s = tokens.shape[:3]
        frames, each = self.learnable_query.shape[:2]
        if t > frames or s != each:
            raise SignalError(
                f"this fusion learned a query for each of {frames} × {each} visual tokens, but got {t} × {s}; "
                f"ask with at most {frames} key frames, or train with fusion.query: vision"
            )
        return repeat(self.learnable_query[:t], "t s w -> (b t) s w", b=b)


class Folded(Fusion):
    """Projections move to the few side tokens, and a query that finds nothing to read abstains.

    With y a visual token before the projector, x_j the side tokens of its key frame, Δ_j their time minus the key
    frame's, R a rotation (rope), and one learned key k_∅ per head:

        k_j = W_k x̂_j + b_k          x̂ = x / rms(x): unlike LayerNorm it does not blow silence up to full loudness
        v_j = W_2 GELU(W_1 x̂_j + b_1) + b_2
        q   = W_q ŷ + b_q            ŷ = LayerNorm(y) without gain
        a   = softmax_j(q · R(Δ_j) k_j / √e,  q · k_∅ / √e)
        update = scale · Σ_h W_o,h Σ_j a_hj v_hj            W_o = 0 at birth, no bias

    The null key has no value, so what goes to it moves nothing. Both outer products are associative: with few side
    tokens, W_qᵀ R k_j and W_o v_j are computed on them, and no visual token is ever projected. With many, the usual
    order is cheaper; `folds` counts the multiplications of both and takes the fewer.
    """

    def __init__(self, config: FusionConfig, *, side_dim: int, **dims: int) -> None:
        super().__init__(config, **dims)
        width = config.width
        self.query = nn.Linear(self.query_dim, width) if config.query != "learnable" else None
        self.key = nn.Linear(side_dim, width)
        self.value = nn.Sequential(
            nn.Linear(side_dim, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.null = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, self.visual_dim, bias=False)
        nn.init.zeros_(self.out.weight)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, vision: Tensor | None, tokens: Tensor, side: SideBatch) -> Tensor:
        if not side.x.shape[1]:
            return torch.zeros_like(tokens)
        asking = self._asking(vision, tokens)
        x = rearrange(side.x, "b τ h w c -> b τ (h w) c").to(asking.dtype)
        x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
        k = rearrange(_segments(self.key(x), side), "bt n (h e) -> bt n h e", h=self.heads)
        v = rearrange(_segments(self.value(x), side), "bt n (h e) -> bt n h e", h=self.heads)
        if self.config.rope == "time":
            k = _rotate(k, _time_angles(side, k))
        null = repeat(self.null, "(h e) -> bt 1 h e", bt=len(k), h=self.heads)
        k = torch.cat([k, null], dim=1)
        v = F.pad(v * self.scale.to(v.dtype), (0, 0, 0, 0, 0, 1))
        mask = _mask(side)
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)
        if self.query is not None:
            asking = F.layer_norm(asking, asking.shape[-1:])
        attend = self._attend_folded if self.folds(asking.shape[1], k.shape[1]) else self._attend
        return rearrange(attend(asking, k, v, mask), "(b t) s d -> b t s d", b=len(tokens)).to(tokens.dtype)

    def folds(self, s: int, n: int) -> bool:
        """Whether folding costs fewer multiplications per key frame of s visual tokens and n keys, null included."""
        width, q, d = self.config.width, self.query_dim, self.visual_dim
        project = 0 if self.query is None else s * q * width
        folded = n * width * (q + d) + s * self.heads * n * (q + d)
        return folded < project + 2 * s * n * width + s * width * d

    def _attend_folded(self, asking: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Scores and update from asking (bt s q) and k, v (bt n h e): all matrices are made of side tokens."""
        n, root = k.shape[1], math.sqrt(k.shape[-1])
        if self.query is None:
            asked = rearrange(k / root, "bt n h e -> bt h e n")
            heads = rearrange(asking, "bt s (h e) -> bt h s e", h=self.heads)
            weights = rearrange(_masked(heads @ asked, mask, "bt n -> bt 1 1 n").softmax(-1), "bt h s n -> bt s (h n)")
        else:
            to_q = rearrange(self.query.weight, "(h e) q -> h e q", h=self.heads)
            asked = torch.einsum("bnhe,heq->bhnq", k / root, to_q)
            level = torch.einsum("bnhe,he->bhn", k / root, rearrange(self.query.bias, "(h e) -> h e", h=self.heads))
            level = rearrange(_masked(level, mask, "bt n -> bt 1 n"), "bt h n -> bt 1 (h n)")
            scores = torch.baddbmm(level, asking, rearrange(asked, "bt h n q -> bt q (h n)"))
            weights = rearrange(scores, "bt s (h n) -> bt s h n", n=n).softmax(-1).flatten(2)
        to_d = rearrange(self.out.weight, "d (h e) -> h e d", h=self.heads)
        said = torch.einsum("bnhe,hed->bhnd", v, to_d)
        return weights @ rearrange(said, "bt h n d -> bt (h n) d")

    def _attend(self, asking: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The same in the usual order, for many side tokens."""
        q = asking if self.query is None else self.query(asking)
        q = rearrange(q, "bt s (h e) -> bt h s e", h=self.heads)
        k, v = rearrange(k, "bt n h e -> bt h n e"), rearrange(v, "bt n h e -> bt h n e")
        keep = None if mask is None else rearrange(mask, "bt n -> bt 1 1 n")
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.out(rearrange(read, "bt h s e -> bt s (h e)"))


def build_fusion(
    config: FusionConfig, *, side_dim: int, vision_dim: int, visual_dim: int, tokens: int, frames: int
) -> Fusion:
    """The fusion that `config` describes; the dimensions are read from encoder and base, never typed."""
    if config.kind == "folded" and config.rope == "3d":
        raise RecipeError("fusion.rope: 3d is the authors' table for kind: official; a folded fusion takes time or off")
    dims = {"vision_dim": vision_dim, "visual_dim": visual_dim, "tokens": tokens, "frames": frames}
    return Folded(config, side_dim=side_dim, **dims)


def _segments(x: Tensor, side: SideBatch) -> Tensor:
    """Projected side tokens (b τ n e) of each key frame's segment, as ((b t) (m n) e)."""
    if side.layout == "even":
        return rearrange(x, "b (t m) n e -> (b t) (m n) e", t=side.index.shape[1])
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return rearrange(x[rows, side.index], "b t m n e -> (b t) (m n) e")


def _mask(side: SideBatch) -> Tensor | None:
    """Which tokens of a segment are real ((b t) (m n)); None: all of them."""
    if side.layout in ("even", "dense"):
        return None
    b, _, h, w = side.x.shape[:4]
    mask = repeat(side.mask, "b t m -> b t m n", n=h * w)
    if side.valid is not None:
        rows = torch.arange(b, device=mask.device)[:, None, None]
        mask = mask & rearrange(side.valid, "b τ h w -> b τ (h w)")[rows, side.index]
    return rearrange(mask, "b t m n -> (b t) (m n)")


def _masked(scores: Tensor, mask: Tensor | None, pattern: str) -> Tensor:
    return scores if mask is None else scores.masked_fill(~rearrange(mask, pattern), -math.inf)


def _time_angles(side: SideBatch, k: Tensor) -> Tensor:
    """Angles ((b t) n 1 e/2) of each key's seconds since its key frame.

    Only the difference of two rotations enters a score, so turning the few keys by it says all; it is taken in float64
    before it is rounded, since an hour in seconds leaves no milliseconds in bfloat16.
    """
    b, t, m = side.index.shape
    since = side.times.gather(1, side.index.flatten(1)).view(b, t, m) - side.key_times[..., None]
    half = k.shape[-1] // 2
    periods = torch.logspace(math.log2(SHORTEST), math.log2(LONGEST), half, base=2, dtype=since.dtype, device=k.device)
    angles = repeat(since, "b t m -> (b t) (m n) 1 1", n=k.shape[1] // m) * (2 * math.pi / periods)
    return angles.to(torch.promote_types(k.dtype, torch.float32))


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel pairs (i, i + e/2) of x (… e) by angles (… e/2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)
