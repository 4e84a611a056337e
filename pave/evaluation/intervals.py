"""Intervals of metrics, by a bootstrap over clips.

In: what each answer adds to a metric (pave/evaluation/metrics/measured.py), and the clip of each. Out: values with the
interval that holds 95 % of resampled ones. Whole clips are drawn, since questions about one clip are not independent
(Field and Welsh 2007); runs on the same clips use the same draws, so that a difference of two is paired.

n answers, c clips, r resamples, k numbers of one answer
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pave.evaluation.metrics.measured import Measured

RESAMPLES = 1_000
BLOCK = 50  # of them are computed at once, in numbers of 64 bits
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A value and its interval; None: it has none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.2f} {self.high:.2f}]")


class Bootstrap:
    """Draws of whole clips, the same for all metrics and runs."""

    def __init__(self, clips: Sequence[Hashable], seed: int, level: float = LEVEL, resamples: int = RESAMPLES) -> None:
        self.level = level
        numbers = {clip: i for i, clip in enumerate(dict.fromkeys(clips))}
        self.owner, self.size = np.array([numbers[clip] for clip in clips]), len(numbers)
        random, even = np.random.default_rng(seed), np.full(len(numbers), 1 / len(numbers))
        draws = [random.multinomial(self.size, even, BLOCK).astype(np.uint16) for _ in range(resamples // BLOCK)]
        self.draws = np.concatenate(draws)  # (r c): how often each clip is drawn

    def figure(self, measured: Measured, chosen: np.ndarray) -> Figure:
        """A metric of the chosen answers, a mask (n,)."""
        return self._figure(measured.only(chosen).value, self._drawn(measured, chosen))

    def difference(self, one: Measured, other: Measured, chosen: np.ndarray) -> Figure:
        """How much a metric is higher in one run than in another."""
        value = one.only(chosen).value - other.only(chosen).value
        drawn = [self._drawn(each, chosen) for each in (one, other)]
        return self._figure(value, None if drawn[0] is None or drawn[1] is None else drawn[0] - drawn[1])

    def _drawn(self, measured: Measured, chosen: np.ndarray) -> np.ndarray | None:
        """The metric of each resample (r,); NaN where it has none of the answers."""
        if measured.whole is not None:
            return None
        sums = np.zeros((self.size, measured.parts.shape[1]))
        np.add.at(sums, self.owner[chosen], measured.parts[chosen])
        parts = np.split(self.draws, len(self.draws) // BLOCK)
        totals = np.concatenate([draws.astype(np.float64) @ sums for draws in parts])
        with np.errstate(invalid="ignore"):
            return measured.total(totals)

    def _figure(self, value: float, drawn: np.ndarray | None) -> Figure:
        known = None if drawn is None else drawn[np.isfinite(drawn)]
        if known is None or not len(known):
            return Figure(value)
        low, high = np.quantile(known, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Figure(value, float(low), float(high))
