"""Bounded memory of a stream.

In: tensors and their seconds. Out: those that are held, evenly distributed over the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """Tensors of one instant."""

    number: int
    second: float
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class History:
    """Entries in order of time, in up to `size` bytes. When full, it drops every second entry and from then on stores
    only every second new one, and so on: what it holds stays evenly distributed over the past."""

    def __init__(self, size: int) -> None:
        self.size, self.held, self.nbytes = size, deque[Entry](), 0
        self.every, self.count = 1, 0

    def add(self, second: float, make: Callable[[], tuple[Tensor, ...]]) -> None:
        """Store one more entry; `make` is called only if it is stored."""
        if self.count % self.every == 0:
            self.held.append(Entry(self.count, second, make()))
            self.nbytes += self.held[-1].nbytes
        self.count += 1
        while self.nbytes > self.size and len(self.held) > 1:
            self.every *= 2
            self.held = deque(each for each in self.held if each.number % self.every == 0)
            self.nbytes = sum(each.nbytes for each in self.held)

    def add_seconds(self, times: Tensor, *parts: Tensor) -> None:
        """Store time steps (τ …) at `times` in entries of one second each, so that a second is dropped as a whole."""
        counts = torch.unique_consecutive(times.floor(), return_counts=True)[1].tolist()
        for each in zip(*(part.split(counts) for part in (times, *parts)), strict=True):
            self.add(each[0][0].item(), lambda each=each: tuple(part.clone() for part in each))

    def forget(self, before: float) -> None:
        """Drop entries before second `before`, except the last of them: it is still valid then."""
        while len(self.held) > 1 and self.held[1].second <= before:
            self.nbytes -= self.held.popleft().nbytes

    def joined(self) -> list[Tensor]:
        """The parts of all held entries, concatenated."""
        return [torch.cat(parts) for parts in zip(*(each.parts for each in self.held), strict=True)]
