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
from pave.rope import SECTIONS, Turns, cube_turns, neighbours, rotate, time_turns
from pave.sidechannel import SideBatch


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
            k = rotate(k, time_turns(side, k.shape[-1]))
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


class Official(Fusion):
    """The authors' fusion ("PAVE", Liu et al., CVPR 2025, and the official repository), under its tensor names.

        z = W_q y,   m = W_in x
        z ← z + softmax(Q Kᵀ / √e) V                    Q, K and V are linear; V = K when values are shared
        z ← z + W_2 GELU(W_1 LayerNorm(z))              `layers` times; m stays as it is
        update = LayerNorm(W_d GELU(W_c z))             head: norm, gain and bias zero at birth
        update = scale · W_d GELU(W_c z)                head: linear, W_d and its bias zero at birth

    Each key frame reads its own segment. Where the index rule has fewer steps than key frames, K and V are interpolated
    along time; the authors interpolate m, which is the same, since both maps are affine.
    """

    def __init__(self, config: FusionConfig, *, side_dim: int, embed: int | None = None, **dims: int) -> None:
        super().__init__(config, **dims)
        width, embed = config.width, embed or config.width
        self.input_mapping = nn.Linear(side_dim, embed)
        self.query_input_mapping = nn.Linear(self.query_dim, width) if config.query != "learnable" else None
        self.cross_attn_layers = nn.ModuleList(
            _Layer(width, embed, self.heads, own=config.values == "own") for _ in range(config.layers)
        )
        last = nn.Linear(2 * width, self.visual_dim)
        self.output_mapping = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), last)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if config.head == "norm":
            self.output_norm = nn.LayerNorm(self.visual_dim)
            nn.init.zeros_(self.output_norm.weight)
        else:
            nn.init.zeros_(last.weight)
            self.register_buffer("scale", torch.ones(()))

    def forward(self, vision: Tensor | None, tokens: Tensor, side: SideBatch) -> Tensor:
        if not side.x.shape[1]:
            return torch.zeros_like(tokens)
        z = self._asking(vision, tokens)
        z = z if self.query_input_mapping is None else self.query_input_mapping(z)
        memory = self.input_mapping(rearrange(side.x, "b τ h w c -> b τ (h w) c").to(z.dtype))
        mask = _mask(side)
        seen = None if mask is None or side.layout == "full" else mask.any(-1, keepdim=True)
        # A softmax over nothing is not a number, and so is its gradient: such a key frame reads its padding in vain.
        keep = mask if mask is None or seen is None else mask | ~seen
        keep = None if keep is None else rearrange(keep, "bt n -> bt 1 1 n")
        asked, answering = self._turns(side, z.shape[1])
        for layer in self.cross_attn_layers:
            z = layer(z, memory, side, keep, asked, answering)
        update = self._head(z)
        if seen is not None:
            update = update.masked_fill(~seen[..., None], 0)
        return rearrange(update, "(b t) s d -> b t s d", b=len(tokens)).to(tokens.dtype)

    def _turns(self, side: SideBatch, s: int) -> tuple[Turns | None, Turns | None]:
        """Of queries and of keys, None where they do not turn."""
        if self.config.rope == "3d":
            return cube_turns(side, s)
        return None, time_turns(side, self.config.width // self.heads) if self.config.rope == "time" else None

    def _head(self, z: Tensor) -> Tensor:
        inner, gelu, outer = self.output_mapping
        update = outer(F.dropout(gelu(inner(z)), self.config.dropout, self.training))
        return self.output_norm(update) if self.config.head == "norm" else update * self.scale.to(update.dtype)


class _Attention(nn.Module):
    def __init__(self, width: int, embed: int, *, own: bool) -> None:
        super().__init__()
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(embed, width)
        # The authors create it, save it and never read it; it exists here only where values are its own.
        self.v_linear = nn.Linear(embed, width) if own else None


class _Layer(nn.Module):
    def __init__(self, width: int, embed: int, heads: int, *, own: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attn = _Attention(width, embed, own=own)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width, bias=False),
            nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )

    def forward(
        self,
        z: Tensor,
        memory: Tensor,
        side: SideBatch,
        keep: Tensor | None,
        asked: Turns | None,
        answering: Turns | None,
    ) -> Tensor:
        """z ((b t) s w) after one look at `memory` (b τ n e), whose keys turn by `answering` and queries by `asked`."""
        attn = self.attn
        q = rearrange(attn.q_linear(z), "bt s (h e) -> bt s h e", h=self.heads)
        k = v = self._segments(attn.k_linear(memory), side)
        if attn.v_linear is not None:
            v = self._segments(attn.v_linear(memory), side)
        q = q if asked is None else rotate(q, asked)
        k = k if answering is None else rotate(k, answering)
        q, k, v = (rearrange(x, "bt n h e -> bt h n e") for x in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        z = z + rearrange(read, "bt h s e -> bt s (h e)")
        return z + self.ffn(z)

    def _segments(self, x: Tensor, side: SideBatch) -> Tensor:
        return rearrange(_stretched_segments(x, side), "bt n (h e) -> bt n h e", h=self.heads)


class Beside(nn.Module):
    """The concatenation baseline: side tokens as tokens of the language model, to be put beside the visual ones.

        token = scale · (W_2 GELU(W_1 x̂ + b_1) + b_2),   x̂ = x / rms(x)

    Out: tokens (b t n d) and which of them are real (b t n); for `prefix` all steps come once, as one group (t = 1).
    """

    scale: Tensor

    def __init__(self, config: FusionConfig, *, side_dim: int, visual_dim: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Sequential(
            nn.Linear(side_dim, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, visual_dim),
        )
        self.register_buffer("scale", torch.ones(()))

    calibrate = Fusion.calibrate

    def forward(self, side: SideBatch) -> tuple[Tensor, Tensor]:
        """Tokens (b t n d) in the dtype of the weights, and their mask (b t n)."""
        b, steps, h, w = side.x.shape[:4]
        x = rearrange(side.x, "b τ h w c -> b τ (h w) c").to(self.scale.dtype)
        tokens = self.project(F.rms_norm(x, x.shape[-1:], eps=1e-6)) * self.scale
        real = torch.arange(steps, device=x.device) < side.steps[:, None]
        real = repeat(real, "b τ -> b τ (h w)", h=h, w=w)
        if side.valid is not None:
            real = real & rearrange(side.valid, "b τ h w -> b τ (h w)")
        if self.config.combine == "prefix":
            return rearrange(tokens, "b τ n d -> b 1 (τ n) d"), rearrange(real, "b τ n -> b 1 (τ n)")
        mask = repeat(side.mask, "b t m -> (b t) (m n)", n=h * w) & _segments(real[..., None], side)[..., 0]
        return rearrange(_segments(tokens, side), "(b t) n d -> b t n d", b=b), rearrange(mask, "(b t) n -> b t n", b=b)


def build_fusion(
    config: FusionConfig, *, side_dim: int, vision_dim: int, visual_dim: int, tokens: int, frames: int
) -> Fusion | Beside:
    """The module that `config` describes; the dimensions are read from encoder and base, never typed."""
    if config.combine != "add":
        return Beside(config, side_dim=side_dim, visual_dim=visual_dim)
    if config.kind == "folded" and config.rope == "3d":
        raise RecipeError("fusion.rope: 3d is the authors' table for kind: official; a folded fusion takes time or off")
    dims = {"vision_dim": vision_dim, "visual_dim": visual_dim, "tokens": tokens, "frames": frames}
    if config.rope == "3d" and config.width != config.heads * 2 * sum(SECTIONS):
        raise RecipeError(
            f"fusion.rope: 3d needs {2 * sum(SECTIONS)} channels per head, got {config.width}/{config.heads}"
        )
    kind = Folded if config.kind == "folded" else Official
    return kind(config, side_dim=side_dim, **dims)


def _segments(x: Tensor, side: SideBatch) -> Tensor:
    """Projected side tokens (b τ n e) of each key frame's segment, as ((b t) (m n) e)."""
    if side.layout == "even":
        return rearrange(x, "b (t m) n e -> (b t) (m n) e", t=side.index.shape[1])
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return rearrange(x[rows, side.index], "b t m n e -> (b t) (m n) e")


def _stretched_segments(x: Tensor, side: SideBatch) -> Tensor:
    """As `_segments`, interpolated along time where a row has fewer steps than key frames under the index rule."""
    if side.rule == "time" or not side.stretched:
        return _segments(x, side)
    before, after, share = neighbours(side)
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    mixed = torch.lerp(x[rows, before], x[rows, after], share[..., None, None].to(x.dtype))
    return rearrange(mixed, "b t m n e -> (b t) (m n) e")


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
