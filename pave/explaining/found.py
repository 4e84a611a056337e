"""What is found about an answer: what the key frames read, and what seconds are worth. Values alone.

t key frames, s visual tokens of a key frame, τ time steps, w windows, n samples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

VERBS = {"audio": "heard", "fast": "seen", "views": "seen", "imu": "felt"}


@dataclass(frozen=True)
class Reading:
    """What the key frames read of the tokens of one sense, or of all that a resampler has put on one clock."""

    patch: str
    senses: tuple[str, ...]
    resampled: bool  # of the steps of a resampler's clock, each of which holds all senses
    times: Tensor | None  # (τ,) middles of the time steps in seconds, float64; None: they have no times
    # (t τ h w) attention of a key frame's visual tokens, mean of layers, heads and visual tokens. A key frame sums to
    # 1, or to less: the rest is what the null key of a `folded` fusion gets
    weights: Tensor
    strength: Tensor  # (t s) norm of the update of each visual token, as a share of the norm of the token

    @property
    def by_step(self) -> Tensor:
        """Weights of the time steps (t τ)."""
        return self.weights.sum((-2, -1))

    @property
    def maps(self) -> Tensor:
        """Weights over the grid of the side tokens, for each key frame (t h w)."""
        return self.weights.sum(1)


@dataclass(frozen=True)
class Deletions:
    """How much likelihood an answer loses without what one sense gives in some seconds."""

    sense: str
    windows: Tensor  # (w 2) first and last second, float64
    lost: Tensor  # (w,) log-likelihood of the answer with the whole sense, less that without these seconds; nats


@dataclass(frozen=True)
class Cited:
    """Seconds that an answer depends on: without them it changes or is much less likely; without others it is not."""

    sense: str
    start: float  # seconds
    end: float
    lost: float  # nats
    answer: str  # without these seconds
    other: tuple[float, float]  # seconds drawn by lot among those that do not overlap
    other_lost: float  # nats, without those instead
    other_answer: str

    def __str__(self) -> str:
        return f"{VERBS.get(self.sense, 'read')} at {self.start:.1f}–{self.end:.1f} s"


@dataclass(frozen=True, repr=False)
class Found:
    """All of it."""

    question: str
    answer: str  # an `Answer`
    without: str  # the answer when no patch runs
    key_times: Tensor  # (t,) seconds, float64
    readings: tuple[Reading, ...]
    deletions: tuple[Deletions, ...]
    cited: tuple[Cited, ...]  # those that matter most first; empty: no second does by itself
    missing: Mapping[str, str]  # patch or sense -> why there are no weights or no deletions of it
    frames: Tensor | None = field(default=None, repr=False)  # uint8 (t 3 y x)
    sound: Tensor | None = field(default=None, repr=False)  # (n,) in [-1, 1]
    rate: int = 0  # Hz of `sound`
    sound_start: float = 0.0  # seconds
