"""Resampler: a causal Q-Former that reads all senses of a clip together, window by window.

In: the side channels of one clip, as SideBatches of one row. Out: one SideBatch of a few tokens per window, aligned
with the key frames, for the fusion to read. This is FAVOR (Sun et al., arXiv 2310.05863), with the structure of its
official inference code (github.com/BriansIDP/AudioVisualLLM); multiple window lengths are from video-SALMONN (Sun et
al., ICML 2024). Knows nothing of base models, encoders and files.

t key frames, τ time steps of a sense, w windows, k steps of a window, m slots of a step, n queries, q channels of a
query and of a sense, c channels of a step (all senses concatenated), h heads, e channels of a head
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pave.config import ResamplerConfig
from pave.fusion.attention import Seen, attention
from pave.fusion.clock import Clock, nearest_windows, steps_until, synchronise, windows_before
from pave.fusion.meta import Blank
from pave.fusion.reader import Standardise
from pave.sidechannel import SideBatch

WINDOWS = 16  # per batch: all windows of two hours would take 1.5 GB for every activation
EPS = 1e-12  # of BERT's norms (Devlin et al., arXiv 1810.04805), which FAVOR builds on


class Attention(nn.Module):
    """x ← LayerNorm(x + W_o softmax(Q Kᵀ / √e) V), as in BERT: q from x, k and v from `read`."""

    def __init__(self, width: int, heads: int, dropout: float, read: int | None = None) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(read or width, width)
        self.value = nn.Linear(read or width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, read: Tensor, keep: Tensor | None = None, seen: Seen = None) -> Tensor:
        """x (b n q) after attention to `read` (b k c), where `keep` (… k) is true; `seen` gets the weights."""
        q, k, v = (
            rearrange(each, "b n (h e) -> b h n e", h=self.heads)
            for each in (self.query(x), self.key(read), self.value(read))
        )
        if seen is not None:
            seen.append(attention(q, k, keep))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=dropout)
        y = self.out(rearrange(y, "b h n e -> b n (h e)"))
        return self.norm(x + F.dropout(y, self.dropout, self.training))


class Layer(nn.Module):
    """Causal self-attention of steps, self-attention of queries, then cross-attention of queries to steps. The states
    of the steps are not passed on: each layer starts from the same x."""

    def __init__(self, width: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.causal = Attention(channels, heads, dropout)
        self.among = Attention(width, heads, dropout)
        self.cross = Attention(width, heads, dropout, read=channels)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, queries: Tensor, x: Tensor, mask: Tensor | None, real: Tensor, seen: Seen = None) -> Tensor:
        """queries (b n q) after attention to x (b k c), with the masks of causal attention (k k) and of real tokens
        (b k); `seen` gets the weights of queries on states (b n k), and of states on x (b k k)."""
        states = self.causal(x, x, mask, seen)
        queries = self.among(queries, queries)
        queries = self.cross(queries, states, rearrange(real, "b k -> b 1 1 k"), seen)
        return self.norm(queries + self.ffn(queries))


class QFormer(nn.Module):
    """FAVOR's block. Steps attend to padding at the end of a window, as in the official code; queries never do. So
    padding has no influence only with `past`."""

    def __init__(self, width: int, channels: int, *, heads: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, channels, heads, dropout) for _ in range(layers))
        self.apply(_init_weights)

    def forward(self, queries: Tensor, x: Tensor, mask: Tensor | None, real: Tensor, seen: Seen = None) -> Tensor:
        """Outputs of queries (b n q) for x (b k c); masks of causal attention (k k) and of real tokens (b k)."""
        queries = self.dropout(self.norm(queries))
        for layer in self.layers:
            queries = layer(queries, x, mask, real, seen)
        return queries


class Resampler(nn.Module, ABC):
    """Base class of both kinds: senses are projected and concatenated on one clock.

        x_j = LayerNorm(concat_sense(W ŝ + b) at step j) + position        ŝ as in `Standardise`

    A missing sense, token or step is zero before the LayerNorm.
    """

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.combine, self.width = config, combine, config.width * len(senses)
        self.standard = nn.ModuleDict({sense: Standardise(dim) for sense, dim in senses.items()})
        self.project = nn.ModuleDict({sense: nn.Linear(dim, config.width) for sense, dim in senses.items()})
        self.norm = nn.LayerNorm(self.width)
        # Unit scale, like the features it is added to: with BERT's 0.02, temporal order was learned half as fast.
        self.position = nn.Parameter(torch.randn(config.window * config.slots, self.width))

    def calibrate(self, senses: Mapping[str, Tensor]) -> None:
        """Fit an untrained resampler to side tokens (p dim) of each sense, like a fusion."""
        for sense, tokens in senses.items():
            standard: Any = self.standard[sense]
            standard.fit(tokens)

    def forward(self, sides: Mapping[str, SideBatch | None]) -> tuple[SideBatch, Tensor]:
        """Side tokens of a clip for the fusion (in: one row per sense; None: missing), and the similarity of the
        outputs within each window (w,)."""
        clock = synchronise(sides, self.config)
        parts = [self.part(sides, part) for part in clock.parts(WINDOWS, self.config.slots)]
        x, similar = (torch.cat(each) for each in zip(*parts, strict=True))
        key_times = next(side.key_times for side in sides.values() if side is not None)
        return self.side(x, self.times(clock), key_times[0]), similar

    def part(self, sides: Mapping[str, SideBatch | None], clock: Clock) -> tuple[Tensor, Tensor]:
        """Some of the windows: their tokens (τ n c), and similarities (w,)."""
        return self.look(self._windows(clock, sides), clock)

    def side(self, x: Tensor, times: Tensor, key_times: Tensor) -> SideBatch:
        """All tokens (τ n c) of a clip, at `times`, as the fusion reads them at these key frames."""
        index, mask = self.align(times, key_times)
        return SideBatch(
            x=rearrange(x, "τ n c -> 1 τ n 1 c"),
            times=times[None],
            steps=torch.tensor([len(times)]),
            index=index[None],
            mask=mask[None],
            valid=None,
            key_times=key_times[None],
        )

    def compared(self, sides: Mapping[str, SideBatch | None]) -> int:
        """The number of similarities that `forward` gives for these sides."""
        return 0

    def weights(self, sides: Mapping[str, SideBatch | None], read: Tensor) -> tuple[Tensor, Tensor]:
        """From the weights of key frames on the tokens of `look` (t τ n): those on the steps of the clock (t τ), each
        of which holds all senses; and the middles of these steps (τ,) in seconds."""
        clock = synchronise(sides, self.config)
        found, first = read.new_zeros(len(read), clock.count), 0
        for part in clock.parts(WINDOWS, self.config.slots):
            own, steps = self.reads(self._windows(part, sides), part)
            mine, first = read[:, first : first + len(own)], first + len(own)
            begin = round((part.start - clock.start) * clock.rate)
            steps = (steps + begin).flatten().clamp(max=clock.count - 1)  # beyond the end: padding
            found.index_add_(1, steps.to(read.device), torch.einsum("tin,ink->tik", mine, own).flatten(1))
        return found, clock.start + (torch.arange(clock.count, dtype=torch.float64) + 0.5) / clock.rate

    @abstractmethod
    def reads(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """The weights of the tokens of `look` on the steps of their window (τ n k), and which steps these are (τ k)."""

    @abstractmethod
    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Tokens (τ n c) of windows of steps (w k m c), and the similarity of the outputs within a window."""

    @abstractmethod
    def times(self, clock: Clock) -> Tensor:
        """Seconds of the tokens of `look` (τ,)."""

    @abstractmethod
    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of `look` by key frame: index and mask (t m)."""

    def _windows(self, clock: Clock, sides: Mapping[str, SideBatch | None]) -> Tensor:
        """The windows (w k m c) of all senses."""
        steps, (m, q) = clock.steps, (self.config.slots, self.config.width)
        x = self.position.new_zeros((int(steps.max()) + 1) * m, len(self.project), q)
        for i, sense in enumerate(self.project):
            if (side := sides[sense]) is not None:
                take, put = clock.places[sense]
                tokens = self.standard[sense](side.x.flatten(0, 3)[take].to(x.device))
                x[put, i] = self.project[sense](tokens.to(x.dtype))
        return self.norm(rearrange(x, "(τ m) sense q -> τ m (sense q)", m=m))[steps]


class Queries(Resampler):
    """Learned queries attend to each window, and the fusion reads their outputs: FAVOR as published."""

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__(config, combine, senses)
        width, heads = config.width, config.heads
        self.queries = nn.ParameterDict(
            {str(k): nn.Parameter(0.02 * torch.randn(n, width)) for k, n in config.levels.items()}
        )
        self.qformer = QFormer(width, self.width, heads=heads, layers=config.layers, dropout=config.dropout)

    def compared(self, sides: Mapping[str, SideBatch | None]) -> int:
        clock = synchronise(sides, self.config)
        real = clock.steps < clock.count
        levels = [*self.config.levels]
        return sum(int(reduce(real, "w (p k) -> w p", "any", k=k).sum()) for k in levels[1:] or levels)

    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        real = clock.steps < clock.count
        levels = [self._level(x, real, k) for k in self.config.levels]
        # With several lengths, the shortest windows do not count, as in video-SALMONN.
        similar = [similarity(outputs) for _, outputs in levels[1:] or levels]
        return torch.cat([tokens for tokens, _ in levels], dim=-1), torch.cat(similar)

    def reads(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Mean of the layers; the states of a layer are half the steps themselves, as in attention rollout (Abnar and
        Zuidema, arXiv 2005.00928)."""
        real, m = clock.steps < clock.count, self.config.slots
        found = []
        for k in self.config.levels:
            layers: list[Tensor] = []
            self._level(x, real, k, layers)
            pairs = zip(layers[1::2], layers[::2], strict=True)
            own = torch.stack([cross @ _half(causal) for cross, causal in pairs]).mean(0)
            kept = repeat(real, "w (p k) -> (w p) k", k=k).any(-1)
            level = own.new_zeros(len(kept), own.shape[1], k)
            level[kept.to(x.device)] = reduce(own, "w n (k m) -> w n k", "sum", m=m)
            level = rearrange(level, "(w p) n k -> w p n k", w=len(x))
            # a piece of a window reads its own steps only
            apart = torch.eye(level.shape[1], device=x.device)
            found.append(rearrange(torch.einsum("wpnk,pr->wpnrk", level, apart), "w p n r k -> w (p n) (r k)"))
        return torch.stack(found).mean(0), clock.steps

    def _level(self, x: Tensor, real: Tensor, k: int, seen: Seen = None) -> tuple[Tensor, Tensor]:
        """Outputs of windows of k steps in order of time (w n q), zero for windows beyond the end; and the outputs of
        real windows only."""
        m, queries = self.config.slots, self.queries[str(k)]
        real = repeat(real, "w (p k) -> (w p) (k m)", k=k, m=m)
        kept = real.any(-1).nonzero()[:, 0].to(x.device)
        windows = rearrange(x, "w (p k) m c -> (w p) (k m) c", k=k)[kept] + self.position[: k * m]
        mask = causal_mask(k, m, self.config.causal_direction, x.device)
        outputs = self.qformer(queries.expand(len(windows), -1, -1), windows, mask, real.to(x.device)[kept], seen)
        tokens = outputs.new_zeros(len(real), *queries.shape).index_copy(0, kept, outputs)
        return rearrange(tokens, "(w p) n q -> w (p n) q", w=len(x)), outputs

    def times(self, clock: Clock) -> Tensor:
        return clock.middles

    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        if self.combine == "add":
            return nearest_windows(times, key_times)
        return windows_before(times - self.config.window / self.config.rate / 2, key_times)


class States(Resampler):
    """The steps themselves, after causal attention within their window: nothing later is ever read."""

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__(config, combine, senses)
        self.causal = Attention(self.width, config.heads, config.dropout).apply(_init_weights)

    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        states, window, place = self._states(x, clock)
        return rearrange(states, "w (k m) c -> w k m c", m=x.shape[2])[window, place], x.new_zeros(0)

    def reads(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        _, window, place = self._states(x, clock, seen)
        m = x.shape[2]
        own = reduce(_half(seen[0]), "w (k m) (l n) -> w k m l", "sum", m=m, n=m)
        return own[window, place], clock.steps[window]

    def _states(self, x: Tensor, clock: Clock, seen: Seen = None) -> tuple[Tensor, Tensor, Tensor]:
        """States of all windows (w (k m) c); the window that contains each step's longest past, and the step's place in
        it."""
        k, m = x.shape[1:3]
        windows = rearrange(x, "w k m c -> w (k m) c") + self.position
        states = self.causal(windows, windows, causal_mask(k, m, "past", x.device), seen)
        steps = torch.arange(clock.known, clock.count)
        window = ((steps - k) // clock.stride + 1).clamp(min=0)
        return states, window, steps - window * clock.stride

    def times(self, clock: Clock) -> Tensor:
        return clock.start + (torch.arange(clock.known, clock.count, dtype=torch.float64) + 0.5) / clock.rate

    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        return steps_until(times, key_times, self.config.rate)


def build_resampler(config: ResamplerConfig, combine: str, senses: tuple[tuple[str, int], ...]) -> Resampler:
    """The module that `config` describes, for senses with their channels; `combine` of the fusion."""
    return (Queries if config.readout == "queries" else States)(config, combine, dict(senses))


blank_resampler = Blank(build_resampler)


def causal_mask(k: int, m: int, direction: str, device: torch.device) -> Tensor | None:
    """Attention mask of k steps of m tokens ((k m) (k m)): a token attends to its own step, and to those before or
    after it. None: no mask."""
    if direction == "none":
        return None
    step = torch.arange(k, device=device).repeat_interleave(m)
    return step[:, None] >= step if direction == "past" else step[:, None] <= step


def _half(weights: Tensor) -> Tensor:
    """Weights (b k k) with those of the residual beside them."""
    return (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2


def similarity(x: Tensor) -> Tensor:
    """Mean cosine between two different outputs of a window (w,), of outputs (w n q): 1 where all are equal, 0 where
    they are orthogonal, never below -1 / (n - 1). FAVOR's diversity loss, as in the official code."""
    n = x.shape[1]
    x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-9)
    return (x.sum(1).square().sum(-1) - x.square().sum((1, 2))) / max(1, n * n - n)


def _init_weights(module: nn.Module) -> None:
    """Weights that preserve the scale of their input. With BERT's 0.02, as in the official code, 1 % of the initial
    variation of narrow outputs came from the window; with this, 60 %, and training was several times faster."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
