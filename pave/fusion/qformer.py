"""Resampler: a causal Q-Former that looks at all senses of a clip together, window by window.

In: the side channels of one clip, as SideBatches of one row. Out: one SideBatch of a few tokens per window, aligned
with the key frames, for the fusion to read. This is FAVOR (Sun et al., arXiv 2310.05863), in the structure of its
authors' inference code (github.com/BriansIDP/AudioVisualLLM); several lengths of windows are from video-SALMONN (Sun et
al., ICML 2024). Knows nothing of base models, encoders and files.

t key frames, τ time steps of a sense, w windows, k steps of a window, m slots of a step, n queries, q channels of a
query and of a sense, c channels of a step (all senses side by side), h heads, e channels of a head
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pave.config import ResamplerConfig
from pave.fusion.clock import Clock, nearest_windows, steps_until, synchronise, windows_before
from pave.fusion.meta import Blank
from pave.fusion.reader import Standardise
from pave.sidechannel import SideBatch

WINDOWS = 16  # looked at at once: two hours of them would take 1.5 GB for every activation
EPS = 1e-12  # of BERT's norms (Devlin et al., arXiv 1810.04805), which the authors build on


class Attention(nn.Module):
    """x ← LayerNorm(x + W_o softmax(Q Kᵀ / √e) V), as BERT has it: q from x, k and v from what is read."""

    def __init__(self, width: int, heads: int, dropout: float, read: int | None = None) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(read or width, width)
        self.value = nn.Linear(read or width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, read: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (b n q) after one look at `read` (b k c), where `keep` (… k) is true."""
        q, k, v = (
            rearrange(each, "b n (h e) -> b h n e", h=self.heads)
            for each in (self.query(x), self.key(read), self.value(read))
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=dropout)
        found = self.out(rearrange(found, "b h n e -> b n (h e)"))
        return self.norm(x + F.dropout(found, self.dropout, self.training))


class Layer(nn.Module):
    """Steps look at earlier steps, queries at each other, then queries at steps. What steps have seen is not passed on:
    each layer begins with the same x."""

    def __init__(self, width: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.causal = Attention(channels, heads, dropout)
        self.among = Attention(width, heads, dropout)
        self.cross = Attention(width, heads, dropout, read=channels)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, queries: Tensor, x: Tensor, sees: Tensor | None, real: Tensor) -> Tensor:
        """queries (b n q) after one look at x (b k c); which token sees which, (k k), and which are real, (b k)."""
        states = self.causal(x, x, sees)
        queries = self.among(queries, queries)
        queries = self.cross(queries, states, rearrange(real, "b k -> b 1 1 k"))
        return self.norm(queries + self.ffn(queries))


class QFormer(nn.Module):
    """The authors' block. Padding at the end of a window is seen by the steps, as in their code, and by no query: only
    with `past` it has no influence at all."""

    def __init__(self, width: int, channels: int, *, heads: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, channels, heads, dropout) for _ in range(layers))
        self.apply(_begin)

    def forward(self, queries: Tensor, x: Tensor, sees: Tensor | None, real: Tensor) -> Tensor:
        """What queries (b n q) have made of x (b k c); which token sees which, (k k), and which are real, (b k)."""
        queries = self.dropout(self.norm(queries))
        for layer in self.layers:
            queries = layer(queries, x, sees, real)
        return queries


class Resampler(nn.Module, ABC):
    """What both kinds begin with: senses, projected and side by side on one clock.

        x_j = LayerNorm(concat_sense(W ŝ + b) at step j) + position        ŝ as `Standardise` has it

    A sense, token or step that is not there is zero before the LayerNorm.
    """

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.combine, self.width = config, combine, config.width * len(senses)
        self.standard = nn.ModuleDict({sense: Standardise(dim) for sense, dim in senses.items()})
        self.project = nn.ModuleDict({sense: nn.Linear(dim, config.width) for sense, dim in senses.items()})
        self.norm = nn.LayerNorm(self.width)
        # As large as what it is added to: at BERT's 0.02, the order of what is heard was learned half as fast.
        self.position = nn.Parameter(torch.randn(config.window * config.slots, self.width))

    def calibrate(self, heard: Mapping[str, Tensor]) -> None:
        """Fit an untrained resampler to side tokens (p dim) of each sense, as fusions are."""
        for sense, tokens in heard.items():
            standard: Any = self.standard[sense]
            standard.fit(tokens)

    def forward(self, sides: Mapping[str, SideBatch | None]) -> tuple[SideBatch, Tensor]:
        """What the fusion reads of a clip (one row; None: it lacks the sense), and how much alike the outputs of each
        of its windows are (w,)."""
        clock = synchronise(sides, self.config)
        parts = [self.part(sides, part) for part in clock.parts(WINDOWS, self.config.slots)]
        x, alike = (torch.cat(each) for each in zip(*parts, strict=True))
        key_times = next(side.key_times for side in sides.values() if side is not None)
        return self.side(x, self.times(clock), key_times[0]), alike

    def part(self, sides: Mapping[str, SideBatch | None], clock: Clock) -> tuple[Tensor, Tensor]:
        """Some of the windows: their tokens (τ n c), and how much alike they are."""
        return self.look(self._on(clock, sides), clock)

    def side(self, x: Tensor, times: Tensor, key_times: Tensor) -> SideBatch:
        """Tokens (τ n c) at `times`, all that are left of a clip, as the fusion reads them at these key frames."""
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

    @abstractmethod
    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Tokens (τ n c) of windows of steps (w k m c), and how much alike they are."""

    @abstractmethod
    def times(self, clock: Clock) -> Tensor:
        """Seconds of what `look` gives (τ,)."""

    @abstractmethod
    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        """What `look` gives by key frame: index and mask (t m)."""

    def _on(self, clock: Clock, sides: Mapping[str, SideBatch | None]) -> Tensor:
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
    """Learned queries read each window, and the fusion reads them: FAVOR as it is published."""

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__(config, combine, senses)
        width, heads = config.width, config.heads
        self.queries = nn.ParameterDict(
            {str(k): nn.Parameter(0.02 * torch.randn(n, width)) for k, n in config.levels.items()}
        )
        self.qformer = QFormer(width, self.width, heads=heads, layers=config.layers, dropout=config.dropout)

    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        real = clock.steps < clock.count
        levels = [self._level(x, real, k) for k in self.config.levels]
        # The shortest windows of several are left alone, as in video-SALMONN.
        alike = [alikeness(made) for _, made in levels[1:] or levels]
        return torch.cat([tokens for tokens, _ in levels], dim=-1), torch.cat(alike)

    def _level(self, x: Tensor, real: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Outputs of windows of k steps, in the order of time (w n q), zero for windows beyond the end; and those of
        the others alone."""
        m, queries = self.config.slots, self.queries[str(k)]
        real = repeat(real, "w (p k) -> (w p) (k m)", k=k, m=m)
        heard = real.any(-1).nonzero()[:, 0].to(x.device)
        windows = rearrange(x, "w (p k) m c -> (w p) (k m) c", k=k)[heard] + self.position[: k * m]
        asking = queries.expand(len(windows), -1, -1)
        sees = seen_by(k, m, self.config.causal_direction, x.device)
        made = self.qformer(asking, windows, sees, real.to(x.device)[heard])
        tokens = made.new_zeros(len(real), *queries.shape).index_copy(0, heard, made)
        return rearrange(tokens, "(w p) n q -> w (p n) q", w=len(x)), made

    def times(self, clock: Clock) -> Tensor:
        return clock.middles

    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        if self.combine == "add":
            return nearest_windows(times, key_times)
        return windows_before(times - self.config.window / self.config.rate / 2, key_times)


class States(Resampler):
    """The steps themselves, once each has looked at those before it in its window: nothing later is ever read."""

    def __init__(self, config: ResamplerConfig, combine: str, senses: Mapping[str, int]) -> None:
        super().__init__(config, combine, senses)
        self.causal = Attention(self.width, config.heads, config.dropout).apply(_begin)

    def look(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        k, m = x.shape[1:3]
        windows = rearrange(x, "w k m c -> w (k m) c") + self.position
        states = self.causal(windows, windows, seen_by(k, m, "past", x.device))
        steps = torch.arange(clock.known, clock.count)
        window = ((steps - k) // clock.stride + 1).clamp(min=0)  # of those that hold a step, the longest past
        states = rearrange(states, "w (k m) c -> w k m c", m=m)[window, steps - window * clock.stride]
        return states, x.new_zeros(0)

    def times(self, clock: Clock) -> Tensor:
        return clock.start + (torch.arange(clock.known, clock.count, dtype=torch.float64) + 0.5) / clock.rate

    def align(self, times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
        return steps_until(times, key_times, self.config.rate)


def build_resampler(config: ResamplerConfig, combine: str, senses: tuple[tuple[str, int], ...]) -> Resampler:
    """The module that `config` describes, for senses of so many channels; `combine` as the fusion has it."""
    return (Queries if config.readout == "queries" else States)(config, combine, dict(senses))


blank_resampler = Blank(build_resampler)


def seen_by(k: int, m: int, direction: str, device: torch.device) -> Tensor | None:
    """Which of k steps of m tokens each token sees ((k m) (k m)): all of its own step, and those before or after it.
    None: all there are."""
    if direction == "none":
        return None
    step = torch.arange(k, device=device).repeat_interleave(m)
    return step[:, None] >= step if direction == "past" else step[:, None] <= step


def alikeness(x: Tensor) -> Tensor:
    """Mean cosine between two different outputs of a window (w,), of outputs (w n q): 1 where all are alike, 0 where
    they are orthogonal, never below -1 / (n - 1). FAVOR's diversity loss, as the authors' code takes it."""
    n = x.shape[1]
    x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-9)
    return (x.sum(1).square().sum(-1) - x.square().sum((1, 2))) / max(1, n * n - n)


def _begin(module: nn.Module) -> None:
    """Weights that keep the scale of what they read. With BERT's 0.02, which the authors take, what narrow outputs knew
    of a window was 1 % of how they differed at birth, and 60 % so; they learned to hear several times faster."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
