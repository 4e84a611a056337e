"""Streaming resampler: runs a resampler incrementally, in bounded memory.

In: side tokens as they arrive, and the second up to which they are complete. Out: finished outputs, which never change
and are bit for bit those of the same chunks of the whole recording. Knows nothing of media, encoders and prompts.

t key frames, τ time steps, n tokens of a time step, c channels of the output
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from itertools import islice
from math import inf
from types import MappingProxyType

import torch
from torch import Tensor

from pave.errors import SignalError
from pave.fusion.clock import Clock, laid_out, steps_at, synchronise
from pave.fusion.qformer import WINDOWS, Resampler
from pave.sidechannel import SideBatch, SideTokens

# Key times: `synchronise` takes a clip for a single picture when all of them are equal.
MOVING = torch.tensor([0.0, 1.0], dtype=torch.float64)
STILL = torch.zeros(2, dtype=torch.float64)


class SenseBuffer:
    """The tokens of one sense that are still needed, and the second up to which they are complete."""

    def __init__(self, sense: str) -> None:
        self.sense, self.until = sense, -inf
        self.tokens: SideTokens | None = None

    def add(self, tokens: SideTokens | None, until: float) -> None:
        """Append tokens; later ones must not lie before `until`."""
        first = inf if tokens is None or not len(tokens.times) else tokens.times.min().item()
        if min(first, until) < self.until:
            raise SignalError(
                f"{self.sense} comes late: it was declared complete up to {self.until:g} s, and now continues "
                f"at {min(first, until):g} s; feed it in order of time"
            )
        if tokens is not None:
            if tokens.kind == "set":
                raise SignalError(f"{self.sense} is a set, whose tokens have no times; it cannot be streamed")
            self.tokens = tokens if self.tokens is None else SideTokens.cat([self.tokens, tokens])
        self.until = until

    def keep(self, steps: Tensor) -> None:
        """Drop all other time steps."""
        if self.tokens is not None:
            self.tokens = self.tokens.only(steps)

    def side(self, key_times: Tensor) -> SideBatch | None:
        """The held tokens as one row for a resampler, which does not use the segments of key frames."""
        if self.tokens is None or not len(self.tokens.times):
            return None
        index = torch.zeros(1, len(key_times), 1, dtype=torch.long)
        return SideBatch(
            x=self.tokens.x.where(self.tokens.valid[..., None], 0)[None],
            times=self.tokens.times[None],
            steps=torch.tensor([len(self.tokens.times)]),
            index=index,
            mask=index.bool(),
            valid=self.tokens.valid[None],
            key_times=key_times[None],
        )


class StreamingResampler:
    """A resampler whose senses arrive incrementally. It holds the side tokens of unfinished windows: up to `WINDOWS` of
    them, which it processes together as it does offline, and those by which faster senses are ahead of the slowest."""

    def __init__(self, resampler: Resampler) -> None:
        self.resampler, self.config = resampler, resampler.config
        self.senses = {sense: SenseBuffer(sense) for sense in resampler.project}
        self.since: int | None = None  # first step of the first unfinished window

    @torch.no_grad()
    def feed(self, sense: str, tokens: SideTokens | None, until: float) -> tuple[Tensor, Tensor] | None:
        """Add the new tokens of a sense before second `until`; infinity means that the sense has ended. Returns newly
        finished outputs (τ n c) and their seconds (τ,), or None."""
        self.senses[sense].add(tokens, until)
        until = min(buffer.until for buffer in self.senses.values())
        sides = self._sides()
        clock = self._clock(sides) if until > -inf else None
        if clock is None:
            return None
        first, stride = round(clock.start * clock.rate), clock.stride
        known = clock.count if until == inf else min(clock.count, int(_step(until, clock.rate)) - first)
        done = max(0, (known - clock.window) // stride + 1) // WINDOWS
        if not done:
            return None
        outputs = self._process(sides, list(islice(clock.parts(WINDOWS, self.config.slots), done)))
        steps = {name: laid_out(name, side, self.config, self.since)[0] for name, side in sides.items() if side}
        self.since = first + done * WINDOWS * stride
        for name, step in steps.items():
            self.senses[name].keep(step >= self.since)
        return outputs

    @torch.no_grad()
    def unfinished(
        self, more: Mapping[str, SideTokens] = MappingProxyType({}), *, still: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """Outputs of the unfinished windows, as if the recording ended here, after the tokens `more`; the state does
        not change. still: the recording is a single picture, which lasts all the time."""
        ended = copy(self)
        ended.senses = {sense: copy(buffer) for sense, buffer in self.senses.items()}
        for sense, tokens in more.items():
            ended.senses[sense].add(tokens, inf)
        sides = ended._sides(STILL if still else MOVING)
        clock = ended._clock(sides)
        return None if clock is None else ended._process(sides, list(clock.parts(WINDOWS, self.config.slots)))

    def _sides(self, key_times: Tensor = MOVING) -> dict[str, SideBatch | None]:
        return {sense: buffer.side(key_times) for sense, buffer in self.senses.items()}

    def _clock(self, sides: Mapping[str, SideBatch | None]) -> Clock | None:
        """Clock of the held tokens; None where no step of it is new."""
        if not any(buffer.tokens is not None and buffer.tokens.present for buffer in self.senses.values()):
            return None
        clock = synchronise(sides, self.config, self.since)
        return clock if clock.count > clock.known else None

    def _process(self, sides: Mapping[str, SideBatch | None], parts: list[Clock]) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.resampler.part(sides, part)[0] for part in parts])
        return x, torch.cat([self.resampler.times(part) for part in parts])


def _step(second: float, rate: float) -> Tensor:
    return steps_at(torch.tensor(second, dtype=torch.float64), rate)
