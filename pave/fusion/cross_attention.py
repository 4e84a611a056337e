"""Fusion: cross-attention from visual tokens to the side tokens of their own key frame; the result is added to them.

In: the visual tokens of b clips (before and after the base's projector) and their SideBatch. Out: the update to add,
exactly zero at initialisation and for a key frame without side tokens. (`combine: interleave | prefix | compact`, whose
side tokens are inserted: inserted.py.) Knows nothing of base models, encoders, packing or files.

b clips, t key frames, s visual tokens of a key frame, τ time steps, m steps of a segment, n side tokens of a step,
k keys of a segment (m n, perhaps a null), h heads, e channels of a head, w = h e, q channels before the projector,
c side channels, d channels of the language model. The code minimises the number of operators: on a GPU, launching one
takes most of its time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from operator import attrgetter

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pave.config import FusionConfig
from pave.errors import BaseModelError, RecipeError, SignalError
from pave.fusion.attention import Seen, attention
from pave.fusion.inserted import Concatenation, Pooled
from pave.fusion.meta import Blank
from pave.fusion.reader import POINT, Reader, Standardise
from pave.fusion.rope import SECTIONS, Places, Rotations, cube_places, cube_turns, rotate, time_turns
from pave.fusion.segments import Segments, groups, part, spread
from pave.sidechannel import SideBatch

Numbers = Tensor | None  # of key frames; None: all


class Fusion(Reader, ABC):
    """Base class of the kinds with `combine: add`."""

    def __init__(
        self,
        config: FusionConfig,
        *,
        side_dim: int,
        vision_dim: int,
        visual_dim: int,
        tokens: int,
        frames: int,
        standard: bool,
        points: bool,
    ) -> None:
        super().__init__(side_dim, standard=standard, points=points)
        self.config, self.heads, self.visual_dim = config, config.heads, visual_dim
        self.query_dim = {"vision": vision_dim, "projected": visual_dim, "learnable": config.width}[config.query]
        if config.query == "learnable":
            self.learnable_query = nn.Parameter(torch.randn(frames, tokens, config.width))

    def forward(self, vision: Tensor | None, tokens: Tensor, side: SideBatch) -> Tensor:
        """The update (b t s d) of `tokens` (b t s d), in their dtype; `vision` is (b t s q)."""
        if not side.x.shape[1]:
            return torch.zeros_like(tokens)
        parts = groups(side)
        updates = [self._part(vision, tokens, side, frames) for frames in parts or [None]]
        return torch.cat(updates, dim=1)[:, torch.cat(parts).argsort()] if parts else updates[0]

    def weights(self, vision: Tensor | None, tokens: Tensor, side: SideBatch) -> Tensor:
        """The attention of the visual tokens of each key frame to the side tokens of one clip (t τ h w): the mean
        of layers, heads and visual tokens. A null key has its share of it, so that a key frame sums to 1 or less."""
        found = torch.zeros(side.index.shape[1], *side.x.shape[1:4], device=tokens.device)
        for frames in groups(side) or [None]:
            layers: list[Tensor] = []
            self._part(vision, tokens, side, frames, layers)
            own = slice(None) if frames is None else frames
            found[own] = spread(torch.stack(layers).mean((0, 2)), side, own)
        return found

    def _part(
        self, vision: Tensor | None, tokens: Tensor, side: SideBatch, frames: Numbers, seen: Seen = None
    ) -> Tensor:
        """`forward` for some key frames."""
        places = cube_places(side) if self.config.rope == "3d" else None
        if frames is None:
            return self._update(vision, tokens, side, None, places, seen)
        own = None if vision is None else vision[:, frames]
        there = None if places is None else (places[0][:, frames], places[1][:, frames])
        return self._update(own, tokens[:, frames], part(side, frames), frames, there, seen)

    @abstractmethod
    def _update(
        self, vision: Tensor | None, tokens: Tensor, side: SideBatch, frames: Numbers, places: Places | None, seen: Seen
    ) -> Tensor:
        """`forward` for some key frames, and their places for `rope: 3d`; `seen` gets the attention of each layer
        ((b t) s (m n))."""

    def _rotations(
        self, side: SideBatch, segments: Segments, s: int, places: Places | None
    ) -> tuple[Rotations | None, Rotations | None]:
        """Rotations of queries and of keys; None: not rotated."""
        if places is not None:
            return cube_turns(side, s, places)
        if self.config.rope == "time":
            return None, time_turns(segments.seconds(), self.config.width // self.heads)
        return None, None

    def _query_input(self, vision: Tensor | None, tokens: Tensor, numbers: Tensor | None) -> Tensor:
        """Input of the query projection ((b t s) q), in the dtype of the weights. `numbers`: of the key frames."""
        dtype = next(self.parameters()).dtype
        if self.config.query == "projected":
            return tokens.flatten(0, 2).to(dtype)
        if self.config.query == "vision":
            if vision is None:
                raise BaseModelError("the base has no features before its projector; use fusion.query: projected")
            return vision.flatten(0, 2).to(dtype)
        b, t, s = tokens.shape[:3]
        frames, each = self.learnable_query.shape[:2]
        t = t if numbers is None else int(numbers.max()) + 1
        if t > frames or s != each:
            raise SignalError(
                f"this fusion has learned queries for {frames} × {each} visual tokens, but got {t} × {s}; "
                f"use at most {frames} key frames, or train with fusion.query: vision"
            )
        queries = self.learnable_query[:t] if numbers is None else self.learnable_query[numbers]
        return repeat(queries, "t s w -> (b t s) w", b=b)


class Folded(Fusion):
    """Projections are folded into the few side tokens, and a null key lets a query abstain.

    With y a visual token before the projector, x_j the side tokens of its key frame, Δ_j their time minus the key
    frame's, R a rotation (rope), and one learned key k_∅ per head:

        k_j = W_k x̂_j + b_k          x̂ as in `Reader`
        v_j = W_2 GELU(W_1 x̂_j + b_1) + b_2
        q   = W_q ŷ + b_q            ŷ = LayerNorm(y) without gain
        a   = softmax_j(q · R(Δ_j) k_j / √e,  q · k_∅ / √e)
        update = scale · Σ_h W_o,h Σ_j a_hj v_hj            W_o = 0 at initialisation, no bias

    With `rope: 3d`, places in time and in the grids of both are R, and q is rotated too, except for k_∅. The null key
    has no value, so attention to it adds nothing. Both outer products are associative: with few side
    tokens, W_qᵀ R k_j and W_o v_j are computed on them, and no visual token is ever projected. With many, the usual
    order is cheaper; `folds` chooses the one with fewer multiplications.
    """

    standard: Standardise

    def __init__(self, config: FusionConfig, *, points: bool = False, **dims: int) -> None:
        super().__init__(config, standard=True, points=points, **dims)
        width = config.width
        self.query = nn.Linear(self.query_dim, width) if config.query != "learnable" else None
        self.key = nn.Linear(self.features, width)
        self.value = nn.Sequential(
            nn.Linear(self.features, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.null = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, self.visual_dim, bias=False)
        nn.init.zeros_(self.out.weight)
        self.register_buffer("scale", torch.ones(()))

    def _update(
        self, vision: Tensor | None, tokens: Tensor, side: SideBatch, frames: Numbers, places: Places | None, seen: Seen
    ) -> Tensor:
        if not side.x.shape[1]:
            return torch.zeros_like(tokens)
        y = self._query_input(vision, tokens, frames)
        x = self.read(side, y.dtype)
        segments = Segments(side)
        k = segments(self.key(x)).unflatten(-1, (self.heads, -1))
        q_turns, k_turns = self._rotations(side, segments, tokens.shape[2], places)
        k = k if k_turns is None else rotate(k, k_turns)
        null = self.null.view(1, 1, self.heads, -1).expand(len(k), -1, -1, -1)
        k = torch.cat([k.flatten(1, 2), null], dim=1)
        v = segments(self.value(x).mul_(self.scale.to(x.dtype))).view(len(k), -1, self.heads, k.shape[-1])
        v = F.pad(v, (0, 0, 0, 0, 0, 1))
        mask = segments.mask()
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)
        if self.query is not None:
            y = F.layer_norm(y, y.shape[-1:])
        y = y.view(len(k), -1, y.shape[-1])
        if q_turns is not None:
            update = self._attend_placed(y, k, v, mask, q_turns, seen)
        elif seen is None and self.folds(y.shape[1], k.shape[1]):
            update = self._attend_folded(y, k, v, mask)
        else:
            update = self._attend(y, k, v, mask, seen)
        return update.view_as(tokens).to(tokens.dtype)

    def folds(self, s: int, n: float) -> bool:
        """Whether folding costs fewer multiplications per key frame of s visual tokens and n keys, null included; never
        with `rope: 3d`, whose queries are rotated."""
        return self.config.rope != "3d" and self.products(s, n, folded=True) < self.products(s, n, folded=False)

    def products(self, s: int, n: float, *, folded: bool) -> float:
        """Multiplications of attention from s visual tokens to n keys, in either order."""
        width, q, d = self.config.width, self.query_dim, self.visual_dim
        if folded:
            scores = s * n * width if self.query is None else n * width * (q + 1) + s * self.heads * n * q
            return scores + n * width * d + s * self.heads * n * d
        project = 0 if self.query is None else s * q * width
        return project + 2 * s * n * width + s * width * d

    def _attend_folded(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Update (bt s d) from y (bt s q) and k, v (bt k h e): weights are multiplied with side tokens only."""
        frames = len(k)
        k, v = (rearrange(x, "bt k h e -> h (bt k) e") for x in (k / math.sqrt(k.shape[-1]), v))
        if self.query is None:
            keys = rearrange(k, "h (bt k) e -> bt h e k", bt=frames)
            scores = rearrange(y, "bt s (h e) -> bt h s e", h=self.heads) @ keys
            scores = rearrange(_masked(scores, mask, "bt k -> bt 1 1 k"), "bt h s k -> bt s h k")
        else:
            keys = torch.bmm(k, self.query.weight.unflatten(0, (self.heads, -1)))
            bias = torch.bmm(k, self.query.bias.view(self.heads, -1, 1))
            bias = rearrange(bias, "h (bt k) 1 -> bt 1 h k", bt=frames)
            bias = _masked(bias, mask, "bt k -> bt 1 1 k").flatten(2)
            keys = rearrange(keys, "h (bt k) q -> bt (h k) q", bt=frames)
            scores = torch.baddbmm(bias, y, keys.mT).unflatten(-1, (self.heads, -1))
        values = torch.bmm(v, self.out.weight.T.unflatten(0, (self.heads, -1)))
        values = rearrange(values, "h (bt k) d -> bt (h k) d", bt=frames)
        return torch.bmm(scores.softmax(-1).flatten(2), values)

    def _attend(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, seen: Seen) -> Tensor:
        """The same in the usual order, for many side tokens."""
        q = y if self.query is None else self.query(y)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keep = None if mask is None else mask[:, None, None]
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if seen is not None:
            seen.append(attention(q, k, keep)[..., :-1])  # without the null key
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.out(read.transpose(1, 2).flatten(2))

    def _attend_placed(
        self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, turns: Rotations, seen: Seen
    ) -> Tensor:
        """The usual order for queries with rotations of their own; the null key has no place, and reads none."""
        q = (y if self.query is None else self.query(y)).unflatten(-1, (self.heads, -1)) / math.sqrt(k.shape[-1])
        turned, q, k, v = (x.transpose(1, 2) for x in (rotate(q, turns), q, k, v))
        scores = torch.cat([turned @ k[:, :, :-1].mT, q @ k[:, :, -1:].mT], dim=-1)
        weights = _masked(scores, mask, "bt k -> bt 1 1 k").softmax(-1)
        if seen is not None:
            seen.append(weights.mean(1)[..., :-1])
        read = weights @ v
        return self.out(read.transpose(1, 2).flatten(2))


class Official(Fusion):
    """The fusion of the PAVE paper (Liu et al., CVPR 2025), with the tensor names of the official release.

        z = W_q y,   m = W_in x
        z ← z + softmax(Q Kᵀ / √e) V                    Q, K and V are linear; V = K when values are shared
        z ← z + W_2 GELU(W_1 LayerNorm(z))              `layers` times; m is not updated
        update = LayerNorm(W_d GELU(W_c z))             head: norm, gain and bias zero at initialisation
        update = scale · W_d GELU(W_c z)                head: linear, W_d and its bias zero at initialisation

    Each key frame attends to its own segment. When the index rule has fewer steps than key frames, K and V are
    interpolated along time; the official code interpolates m, which is the same, since both maps are affine.
    """

    def __init__(self, config: FusionConfig, *, points: bool = False, embed: int | None = None, **dims: int) -> None:
        super().__init__(config, standard=False, points=points, **dims)
        width, embed = config.width, embed or config.width
        self.input_mapping = nn.Linear(self.features, embed)
        self.query_input_mapping = nn.Linear(self.query_dim, width) if config.query != "learnable" else None
        self.cross_attn_layers = nn.ModuleList(
            _Layer(width, embed, own=config.values == "own") for _ in range(config.layers)
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

    def _update(
        self, vision: Tensor | None, tokens: Tensor, side: SideBatch, frames: Numbers, places: Places | None, seen: Seen
    ) -> Tensor:
        if not side.x.shape[1]:
            return torch.zeros_like(tokens)
        z = self._query_input(vision, tokens, frames)
        z = z if self.query_input_mapping is None else self.query_input_mapping(z)
        memory = self.input_mapping(self.read(side, z.dtype))
        segments = Segments(side)
        mask, keep, has_keys = segments.mask(), None, None
        if mask is not None:
            has_keys = None if side.layout == "full" else mask.any(-1)
            # A softmax over no keys is NaN, and so is its gradient: such a key frame attends to padding, and its update
            # is masked below.
            keep = mask if has_keys is None else mask | ~has_keys[:, None]
            # Converted to a float mask once for all layers: attention would convert a boolean mask every time.
            keep = torch.zeros_like(keep, dtype=z.dtype).masked_fill(~keep, -math.inf)[:, None, None]
        q_turns, k_turns = self._rotations(side, segments, tokens.shape[2], places)
        k = self._projected("k_linear", memory, segments)
        v = self._projected("v_linear", memory, segments) if self.config.values == "own" else k
        k = k if k_turns is None else rotate(k, k_turns)
        k, v = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)
        for i, layer in enumerate(self.cross_attn_layers):
            own = slice(i * self.heads, (i + 1) * self.heads)
            z = layer(z, k[:, own], v[:, own], keep, q_turns, seen)
        update = self._head(z).view(len(k), *tokens.shape[2:])
        if has_keys is not None:
            update = update.masked_fill_(~has_keys[:, None, None], 0)
        return update.view_as(tokens).to(tokens.dtype)

    def _projected(self, linear: str, memory: Tensor, segments: Segments) -> Tensor:
        """Keys or values of all layers ((b t) m n (layer h) e) in one product: no layer updates `memory`."""
        layers = range(self.config.layers)
        weight, bias = (
            torch.cat([_weight(self, f"cross_attn_layers.{i}.attn.{linear}.{part}") for i in layers])
            for part in ("weight", "bias")
        )
        return segments(F.linear(memory, weight, bias)).unflatten(-1, (len(layers) * self.heads, -1))

    def _head(self, z: Tensor) -> Tensor:
        inner, gelu, outer = self.output_mapping
        z = F.dropout(gelu(inner(z)), self.config.dropout, self.training)
        if self.config.head == "norm":
            return self.output_norm(outer(z))
        scale = self.scale.to(z.dtype)  # on the weights, which are fewer than the visual tokens
        return F.linear(z, _weight(outer, "weight") * scale, _weight(outer, "bias") * scale)


class _Attention(nn.Module):
    def __init__(self, width: int, embed: int, *, own: bool) -> None:
        super().__init__()
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(embed, width)
        # The official code always creates and saves it, but never uses it; here it exists only for `values: own`.
        self.v_linear = nn.Linear(embed, width) if own else None


class _Layer(nn.Module):
    def __init__(self, width: int, embed: int, *, own: bool) -> None:
        super().__init__()
        self.attn = _Attention(width, embed, own=own)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width, bias=False),
            nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )

    def forward(
        self, z: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, turns: Rotations | None, seen: Seen
    ) -> Tensor:
        """z ((b t s) w) after attention to k and v (bt h k e); the mask `keep` (bt 1 1 k) is 0 or -inf."""
        q = self.attn.q_linear(z).view(len(k), -1, k.shape[1], k.shape[3])
        q = (q if turns is None else rotate(q, turns)).transpose(1, 2)
        if seen is not None:
            seen.append(attention(q, k, keep))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        z = z + read.transpose(1, 2).reshape(z.shape)
        norm, widen, gelu, narrow = self.ffn
        return torch.addmm(z, gelu(widen(norm(z))), _weight(narrow, "weight").T)


def build_fusion(
    config: FusionConfig,
    *,
    side_dim: int,
    vision_dim: int,
    visual_dim: int,
    tokens: int,
    frames: int,
    points: bool = False,
) -> Fusion | Concatenation:
    """The module that `config` describes; the dimensions come from encoder and base, never from a recipe. points:
    whether the last three channels of a side token are its point."""
    if points and side_dim <= POINT:
        cause = f"side tokens of {side_dim} channels with a point of {POINT} have no features"
        raise RecipeError(f"{cause}; use an encoder with feature channels beside the point")
    if config.combine != "add":
        kind = Pooled if config.combine == "compact" else Concatenation
        return kind(config, side_dim=side_dim, visual_dim=visual_dim, points=points)
    base = {"vision_dim": vision_dim, "visual_dim": visual_dim, "tokens": tokens, "frames": frames}
    if config.rope == "3d" and config.width != config.heads * 2 * sum(SECTIONS):
        raise RecipeError(
            f"fusion.rope: 3d needs {2 * sum(SECTIONS)} channels per head, got {config.width}/{config.heads}; "
            "change fusion.width or fusion.heads"
        )
    kind = Folded if config.kind == "folded" else Official
    return kind(config, side_dim=side_dim, points=points, **base)


blank_fusion = Blank(build_fusion)


def _weight(module: nn.Module, path: str) -> Tensor:
    """A weight by its path; not `get_parameter`, since inside `functional_call` it is a plain tensor."""
    weight = attrgetter(path)(module)
    assert isinstance(weight, Tensor)
    return weight


def _masked(scores: Tensor, mask: Tensor | None, pattern: str) -> Tensor:
    return scores if mask is None else scores.masked_fill(~rearrange(mask, pattern), -math.inf)
