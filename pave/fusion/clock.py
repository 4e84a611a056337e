"""Synchronisation: several senses on one clock of equal steps, and windows of steps for key frames. Nothing is learned.

In: the side channels of one clip, as SideBatches of one row. Out: the step and slot of each token; and the windows or
steps of each key frame. FAVOR's synchronisation (Sun et al., arXiv 2310.05863), for any rates and lengths.
Knows nothing of weights.

t key frames, τ time steps of a sense, n = h w side tokens of a time step, w windows, k steps of a window, p tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.config import ResamplerConfig
from pave.errors import RecipeError, SignalError
from pave.fusion.align import segments_by_time, segments_of
from pave.sidechannel import SideBatch
from pave.text.shown import counted

APART = 3600.0  # seconds: no clip has a longer gap, so a longer one means two different clocks
INSTANT = 1e-6  # seconds: a time this close before the border of two steps or windows belongs to the later one


@dataclass(frozen=True)
class Clock:
    """The steps of one clip: `count` of them from second `start` on, and their windows."""

    start: float
    count: int
    rate: float  # steps per second
    window: int  # steps of a window
    stride: int  # steps from window to window
    places: Mapping[str, tuple[Tensor, Tensor]]  # sense -> index (p,) into its tokens (τ n), and into (count slots)
    known: int = 0  # number of first steps that earlier windows contain too, with a longer past

    @property
    def windows(self) -> int:
        """As many as it takes to cover every step; the last one may extend beyond the end."""
        return 1 + math.ceil(max(0, self.count - self.window) / self.stride)

    @property
    def steps(self) -> Tensor:
        """Indices of the steps of each window (w k); those from `count` on are beyond the end."""
        return self.stride * torch.arange(self.windows)[:, None] + torch.arange(self.window)

    @property
    def starts(self) -> Tensor:
        """Second at which each window begins (w,), float64."""
        return self.start + torch.arange(self.windows, dtype=torch.float64) * self.stride / self.rate

    @property
    def middles(self) -> Tensor:
        """Seconds of the windows' middles (w,)."""
        return self.starts + self.window / self.rate / 2

    def parts(self, windows: int, slots: int) -> Iterator[Clock]:
        """Clocks of so many windows each; the outputs of a part do not depend on the others, bit for bit."""
        for first in range(0, self.windows, windows):
            begin = first * self.stride
            count = min(self.count - begin, (windows - 1) * self.stride + self.window)
            places = {}
            for sense, (take, put) in self.places.items():
                own = (put >= begin * slots) & (put < (begin + count) * slots)
                places[sense] = take[own], put[own] - begin * slots
            start, known = self.start + begin / self.rate, self.window - self.stride if first else self.known
            yield Clock(start, count, self.rate, self.window, self.stride, places, known)


def nearest_windows(middles: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of each key frame, index and mask (t m): those whose middle is in its segment, or else the nearest, as
    `align` does with time steps."""
    return segments_by_time(middles - INSTANT, key_times)


def windows_before(starts: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
    """Each window once (t m): with the first key frame in or after it, or else with the last key frame."""
    first = torch.searchsorted(key_times + INSTANT, starts).clamp(max=len(key_times) - 1)
    return segments_of(first, len(key_times))


def steps_until(middles: Tensor, key_times: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Steps after the previous key frame's step, up to the key frame's own (t m), which several may share; none for key
    frames before the first step. No step is later than its key frame."""
    own = torch.searchsorted(steps_at(middles, rate), steps_at(key_times, rate), right=True) - 1
    first = torch.searchsorted(own, torch.arange(max(0, int(own[-1]) + 1)))
    index, mask = segments_of(first, len(own))
    shared = ~mask.any(-1) & (own >= 0)
    index[shared, 0], mask[shared, 0] = own[shared], True
    return index, mask


def synchronise(sides: Mapping[str, SideBatch | None], config: ResamplerConfig, since: int | None = None) -> Clock:
    """Put the senses of a clip on one clock. A token goes into the step of its centre time, in order of time; if that
    step is full, into the next. If the clip is a single picture, its tokens are repeated in every step.

    since: first step of the clock, counted from second 0; all earlier windows are done."""
    present = {sense: side for sense, side in sides.items() if side is not None}
    layout = {sense: laid_out(sense, side, config, since) for sense, side in present.items()}
    readable = torch.cat([layout[sense][0][_real(side).any(-1)] for sense, side in present.items()])
    if (readable.unique().diff() > APART * config.rate).any():
        spans = {sense: (side.times.min(), side.times.max()) for sense, side in present.items()}
        ranges = ", ".join(f"{sense} is at {begin:g} to {end:g} s" for sense, (begin, end) in spans.items())
        raise SignalError(f"{ranges}, with a gap of more than {APART:g} s; put all senses on one clock")
    first = int(readable.min()) if since is None else since
    count = int(readable.max()) - first + 1
    places = {}
    for sense, side in present.items():
        step, slot = layout[sense]
        token, real = torch.arange(slot.numel()).view_as(slot), _real(side)
        if len(step) == 1 and (side.key_times == side.key_times[:, :1]).all():
            step = torch.arange(first, first + count)
            slot, token, real = (each.expand(count, -1) for each in (slot, token, real))
        put = (step - first)[:, None] * config.slots + slot
        places[sense] = token[real], put[real]
    stride = config.stride or config.window
    known = 0 if since is None else config.window - stride
    return Clock(first / config.rate, count, config.rate, config.window, stride, places, known)


def refuse_overflow(sense: str, rate: float, grid: tuple[int, int], config: ResamplerConfig) -> None:
    """RecipeError where the tokens of a sense, `rate` grids per second, do not fit into the slots of a step."""
    n, due = (
        math.prod(grid),
        max(1, math.ceil(rate / config.rate - 1e-9)),
    )  # tokens of a time step; time steps in a step
    if config.slots // n < due:
        often = f"{rate:g} times a second" if rate else "for each key frame"
        raise RecipeError(
            f"resampler.slots={config.slots}: {sense} has {counted(n, 'token')} {often}, up to {due * n} in a step of "
            f"{1 / config.rate:g} s; set resampler.slots={due * n}, or use an encoder with fewer tokens"
        )


def laid_out(sense: str, side: SideBatch, config: ResamplerConfig, since: int | None) -> tuple[Tensor, Tensor]:
    """The step (τ,) and the slots (τ n) of each time step of a sense; steps are counted from second 0."""
    if side.sets is not None:
        raise SignalError(
            f"{sense} is a set, whose tokens have no times, and a resampler needs them; add times, or omit it"
        )
    n = math.prod(side.x.shape[2:4])
    fitting = config.slots // n
    if not fitting:
        raise SignalError(
            f"a time step of {sense} has {n} tokens, a step of the resampler {config.slots} slots; increase "
            "resampler.slots, or let the encoder pool more"
        )
    order = side.times[0].argsort(stable=True)
    due = steps_at(side.times[0][order], config.rate)
    step = _pushed(due if since is None else due.clamp(min=since), fitting)
    if (step - due).max() > 1:
        most = int(torch.unique_consecutive(due, return_counts=True)[1].max()) * n
        raise SignalError(
            f"up to {most} tokens of {sense} are in one step of {1 / config.rate:g} s, which has {config.slots} slots; "
            "increase resampler.slots or resampler.rate"
        )
    rank = torch.arange(len(step)) - torch.searchsorted(step, step)
    back = order.argsort()
    return step[back], rank[back][:, None] * n + torch.arange(n)


def steps_at(times: Tensor, rate: float) -> Tensor:
    """The step of each time, counted from second 0."""
    return ((times + INSTANT) * rate).floor().long()


def _pushed(due: Tensor, fitting: int) -> Tensor:
    """Sorted steps (τ,), moved later so that none occurs more than `fitting` times."""
    rows = F.pad(due, (0, -len(due) % fitting), value=int(due[-1])).view(-1, fitting)
    turn = torch.arange(len(rows))[:, None]
    return ((rows - turn).cummax(0).values + turn).flatten()[: len(due)]


def _real(side: SideBatch) -> Tensor:
    """Mask of valid tokens (τ n)."""
    if side.valid is None:
        return torch.ones(side.times.shape[1], math.prod(side.x.shape[2:4]), dtype=torch.bool)
    return side.valid[0].flatten(1)
