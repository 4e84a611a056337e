"""The plan of a run: its stages, the clips of a step, their parts that go through the base together, learning rates.

In: the keys of `train`, the weights of clips, the tokens of rows. Out: numbers. Everything depends on the seed and the
number of a step alone, so that a resumed run goes on as it would have. Knows nothing of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest

import torch

from pave.recipe import TrainConfig
from pave.training.ranks import Ranks

SPARED = 0.25  # of a step's tokens at least, for a second pass


@dataclass(frozen=True)
class Stretch:
    """The steps of a stage, or of a run without stages, and the values of `train` in them."""

    options: TrainConfig
    begin: int
    end: int  # the step behind the last one
    seen: int  # clips of all steps before

    def clips(self, step: int) -> range:
        """The places of a step's clips in the order of all epochs, one after the other."""
        first = self.seen + (step - self.begin) * self.options.batch
        return range(first, first + self.options.batch)

    def factor(self, step: int) -> float:
        """The factor of the learning rates: linear warm-up, then the schedule."""
        steps, done = self.end - self.begin, step - self.begin
        warm = max(1, round(steps * self.options.warmup))
        if done < warm:
            return (done + 1) / warm
        share = (done - warm) / max(1, steps - warm)
        match self.options.schedule:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * share))
            case "linear":
                return 1 - share
            case "constant":
                return 1.0


def stretches(options: TrainConfig, epoch: int) -> list[Stretch]:
    """The stages of a run whose epochs have so many clips; a stage in epochs ends with a whole step."""
    found: list[Stretch] = []
    for part in options.parts:
        begin, seen = (found[-1].end, found[-1].clips(found[-1].end).start) if found else (0, 0)
        steps = part.steps or math.ceil(
            (part.epochs or 0) * epoch / part.batch - 1e-9
        )  # exact, but for 0.1 and the like
        found.append(Stretch(part, begin, begin + steps, seen))
    return found


def order(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    """The places of clips in an epoch, in random order. Of n clips with weight w, w n places, whole turns of all of
    them first: every epoch has as many."""
    draw = torch.Generator().manual_seed(mix(seed, epoch))
    places: list[int] = []
    for weight in dict.fromkeys(weights):
        group = [place for place, each in enumerate(weights) if each == weight]
        count = max(1, round(weight * len(group)))
        turns = (torch.randperm(len(group), generator=draw).tolist() for _ in range(0, count, len(group)))
        places += [group[each] for each in chain(*turns)][:count]
    if len(places) == len(weights) and len(set(weights)) == 1:
        return places  # as before there were weights, so that runs of earlier versions can be resumed
    return [places[each] for each in torch.randperm(len(places), generator=draw).tolist()]


def mix(seed: int, index: int) -> int:
    """A seed for one step or epoch of a run."""
    return (seed * 1_000_003 + index) % 2**63


@dataclass(frozen=True)
class Pass:
    """Some clips of a step that go through the base together in one process."""

    rows: list[int]  # their places in the step
    counts: bool  # False: it runs only because other processes have one more
    asks: bool  # whether one of the processes also asks the base alone in it


def passes(
    lengths: Sequence[int], asked: Sequence[bool], options: TrainConfig, ranks: Ranks, evenly: bool, sparing: bool
) -> list[Pass]:
    """The passes of this process in a step, from the tokens of each row and whether the base is asked about it. Evenly:
    all processes have equally many, since each stores a part of the base that the others need. Sparing: as in
    `divided`."""
    every_row = ranks.shares(range(len(lengths)))
    shares = ([rows, divided([lengths[row] for row in rows], options, sparing)] for rows in every_row)
    every = [[[rows[place] for place in part] for part in parts if part] for rows, parts in shares]
    own = every[ranks.rank]
    if not evenly:
        return [Pass(rows, True, any(asked[row] for row in rows)) for rows in own]
    rounds = zip_longest(*every, fillvalue=[])
    asks = [any(asked[row] for rows in each for row in rows) for each in rounds]
    return [Pass(own[i] if i < len(own) else own[0], i < len(own), each) for i, each in enumerate(asks)]


def divided(lengths: Sequence[int], options: TrainConfig, sparing: bool = False) -> list[list[int]]:
    """The rows of a step by part, from the tokens of each row. Rows of like lengths share a part, in which all are as
    long as the longest; with that padding, a part has at most `micro_batch` tokens, unless one row alone has more.
    Sparing: without these options, a second part where it spares padding, such as that beside a few rows that are
    also asked what the base knows."""
    sorted_rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if options.micro_batch is None and options.accumulate == 1:
        most = max(lengths, default=0)
        sizes = [most * n + lengths[row] * (len(lengths) - n) for n, row in enumerate(sorted_rows)]
        if not sparing or not lengths or min(sizes) > (1 - SPARED) * sizes[0]:
            return [list(range(len(lengths)))]
        longer = sizes.index(min(sizes))
        return [sorted_rows[:longer], sorted_rows[longer:]]
    if options.micro_batch is None:
        ends = [len(lengths) * part // options.accumulate for part in range(options.accumulate + 1)]
        return [sorted_rows[begin:end] for begin, end in pairwise(ends)]
    parts: list[list[int]] = []
    for row in sorted_rows:
        if not parts or lengths[parts[-1][0]] * (len(parts[-1]) + 1) > options.micro_batch:
            parts.append([])
        parts[-1].append(row)
    return parts
