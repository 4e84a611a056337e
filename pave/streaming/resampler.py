"""Streaming: what a resampler makes of a recording, made as time goes by, in bounded memory.

In: side tokens as they come, and until which second all of them are there. Out: what is finished by that and will never
change, bit by bit what the same chunks of the whole recording give. Knows nothing of media, encoders and prompts.

t key frames, τ time steps, n tokens of a time step, c channels of what a resampler makes
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

MOVING = torch.tensor([0.0, 1.0], dtype=torch.float64)  # key times of a clip that is no picture
STILL = torch.zeros(2, dtype=torch.float64)  # and of one that is


class SenseBuffer:
    """The tokens of one sense that are still needed, and until when all of them are there."""

    def __init__(self, sense: str) -> None:
        self.sense, self.until = sense, -inf
        self.tokens: SideTokens | None = None

    def add(self, tokens: SideTokens | None, until: float) -> None:
        """Take the tokens that follow; none before `until` comes later."""
        first = inf if tokens is None or not len(tokens.times) else tokens.times.min().item()
        if min(first, until) < self.until:
            raise SignalError(
                f"{self.sense} comes late: all of it before {self.until:g} s was said to be here, and now comes "
                f"what is of {min(first, until):g} s; feed it in the order of time"
            )
        if tokens is not None:
            if tokens.kind == "set":
                raise SignalError(f"{self.sense} is a set, whose tokens have no time; it cannot come as time goes by")
            self.tokens = tokens if self.tokens is None else SideTokens.cat([self.tokens, tokens])
        self.until = until

    def keep(self, steps: Tensor) -> None:
        """Forget all other time steps."""
        if self.tokens is not None:
            self.tokens = self.tokens.only(steps)

    def side(self, key_times: Tensor) -> SideBatch | None:
        """What is held, as one row for a resampler, which asks for no segments of the key frames."""
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
    """A resampler that hears its senses as they come. It holds the side tokens of the windows that are not finished:
    `WINDOWS` of them, which it looks at together as it does with a recording that it hears at once, and those that the
    quicker senses are ahead of the slowest."""

    def __init__(self, resampler: Resampler) -> None:
        self.resampler, self.config = resampler, resampler.config
        self.senses = {sense: SenseBuffer(sense) for sense in resampler.project}
        self.since: int | None = None  # the step that the first unfinished window begins with

    @torch.no_grad()
    def feed(self, sense: str, tokens: SideTokens | None, until: float) -> tuple[Tensor, Tensor] | None:
        """Hear all that a sense has before second `until`, as far as it is not here yet: infinite where nothing more
        will come. Gives what is finished now, tokens (τ n c) and their seconds (τ,); None for nothing."""
        self.senses[sense].add(tokens, until)
        until = min(heard.until for heard in self.senses.values())
        sides = self._sides()
        clock = self._clock(sides) if until > -inf else None
        if clock is None:
            return None
        first, stride = round(clock.start * clock.rate), clock.stride
        known = clock.count if until == inf else min(clock.count, int(_step(until, clock.rate)) - first)
        done = max(0, (known - clock.window) // stride + 1) // WINDOWS
        if not done:
            return None
        found = self._look(sides, list(islice(clock.parts(WINDOWS, self.config.slots), done)))
        steps = {name: laid_out(name, side, self.config, self.since)[0] for name, side in sides.items() if side}
        self.since = first + done * WINDOWS * stride
        for name, step in steps.items():
            self.senses[name].keep(step >= self.since)
        return found

    @torch.no_grad()
    def rest(
        self, more: Mapping[str, SideTokens] = MappingProxyType({}), *, still: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """What the windows that are not finished give, as if the recording ended here; or with these tokens, which are
        not taken for good. still: all of it was one picture, which is there all the time."""
        ended = copy(self)
        ended.senses = {sense: copy(heard) for sense, heard in self.senses.items()}
        for sense, tokens in more.items():
            ended.senses[sense].add(tokens, inf)
        sides = ended._sides(STILL if still else MOVING)
        clock = ended._clock(sides)
        return None if clock is None else ended._look(sides, list(clock.parts(WINDOWS, self.config.slots)))

    def _sides(self, key_times: Tensor = MOVING) -> dict[str, SideBatch | None]:
        return {sense: heard.side(key_times) for sense, heard in self.senses.items()}

    def _clock(self, sides: Mapping[str, SideBatch | None]) -> Clock | None:
        """Of what is held; None where no step of it is new."""
        if not any(heard.tokens is not None and heard.tokens.present for heard in self.senses.values()):
            return None
        clock = synchronise(sides, self.config, self.since)
        return clock if clock.count > clock.known else None

    def _look(self, sides: Mapping[str, SideBatch | None], parts: list[Clock]) -> tuple[Tensor, Tensor]:
        made = torch.cat([self.resampler.part(sides, part)[0] for part in parts])
        return made, torch.cat([self.resampler.times(part) for part in parts])


def _step(second: float, rate: float) -> Tensor:
    return steps_at(torch.tensor(second, dtype=torch.float64), rate)
