"""What a stream keeps of the past, in a bounded number of bytes.

In: tensors and their seconds. Out: those that are kept, spread evenly over all of the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """Something that came at a moment."""

    number: int
    second: float
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class History:
    """What came, in the order of time, in up to `size` bytes. When it is more, every second one is forgotten, and of
    what is to come every second one is kept; and so on. So it lies evenly over all of the past."""

    def __init__(self, size: int) -> None:
        self.size, self.held, self.nbytes = size, deque[Entry](), 0
        self.every, self.count = 1, 0

    def add(self, second: float, make: Callable[[], tuple[Tensor, ...]]) -> None:
        """Keep one more, which is made only if it is kept."""
        if self.count % self.every == 0:
            self.held.append(Entry(self.count, second, make()))
            self.nbytes += self.held[-1].nbytes
        self.count += 1
        while self.nbytes > self.size and len(self.held) > 1:
            self.every *= 2
            self.held = deque(each for each in self.held if each.number % self.every == 0)
            self.nbytes = sum(each.nbytes for each in self.held)

    def add_seconds(self, times: Tensor, *parts: Tensor) -> None:
        """Keep time steps (τ …) at `times` second by second, so that what happens within a second stays whole."""
        counts = torch.unique_consecutive(times.floor(), return_counts=True)[1].tolist()
        for each in zip(*(part.split(counts) for part in (times, *parts)), strict=True):
            self.add(each[0][0].item(), lambda each=each: tuple(part.clone() for part in each))

    def forget(self, before: float) -> None:
        """Keep nothing that is over at second `before`: what came last until then still is."""
        while len(self.held) > 1 and self.held[1].second <= before:
            self.nbytes -= self.held.popleft().nbytes

    def joined(self) -> list[Tensor]:
        """The parts of all that is held, in line."""
        return [torch.cat(parts) for parts in zip(*(each.parts for each in self.held), strict=True)]
