"""What a metric finds: what each answer adds to it, and its value for any selection of the answers.

In: numbers of each answer. Out: the value of all of them, of one, and of resampled ones. A metric over a whole set is a
function of sums over its answers (a mean, a rate, BLEU), so a bootstrap is one matrix product. Knows nothing of texts.

n answers, k numbers of one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # of each answer, one text or more


class Unavailable(Exception):
    """Why a metric cannot be computed here: it is shown as n/a, never as 0."""


def ratio(sums: np.ndarray) -> np.ndarray:
    """Numerator over denominator (... 2); NaN if nothing counts."""
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Measured:
    """One metric of n answers."""

    parts: np.ndarray  # (n k)
    total: Callable[[np.ndarray], np.ndarray] = ratio  # sums (... k) -> values (...)
    whole: float | None = None  # the value of all answers, of a metric that no sum gives

    @classmethod
    def mean(cls, values: Sequence[float] | np.ndarray) -> Measured:
        """The mean of values, one of each answer."""
        return cls(np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=-1))

    @classmethod
    def mean_of(cls, values: Sequence[float | None]) -> Measured:
        """The mean of the values that are there; an answer without one does not count."""
        return cls(np.array([(value or 0.0, value is not None) for value in values], np.float64))

    def weighed(self, weights: np.ndarray) -> Measured:
        """The same metric, a mean, with other weights (n,) of the answers."""
        return Measured(self.parts * weights[:, None], self.total)

    @property
    def value(self) -> float:
        return float(self.total(self.parts.sum(0))) if self.whole is None else self.whole

    @property
    def each(self) -> np.ndarray:
        """The value of each answer alone (n,)."""
        return self.total(self.parts)

    def only(self, chosen: np.ndarray) -> Measured:
        """Some of the answers, by index or by mask. A part of `whole` is not known."""
        return Measured(self.parts[chosen], self.total, None if self.whole is None else float("nan"))
