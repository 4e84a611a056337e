"""Encoders that perceive as time goes by: what they have finished does not change any more.

In: chunks of pictures and sound, in the order of time. Out: side tokens, piece by piece, those of the whole recording.
Knows nothing of patches, memories and questions.

τ time steps, n samples, c channels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from math import inf

import torch
from torch import Tensor

from pave.encoder import Encoder, Groups, Pieces
from pave.errors import EncoderError
from pave.fusion.clock import INSTANT
from pave.media.clip import Clip
from pave.media.pixels import scaled
from pave.media.resampling import Resampling
from pave.sidechannel import SideTokens
from pave.streaming.chunks import Chunk


class StreamingEncoder(ABC):
    """An encoder and what it has not finished."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reached = -inf  # until which second anything has come
        self.times = deque[Tensor]()  # of finished time steps, as long as it matters which
        self.steps, self.since = 0, inf  # how many others, and the second of the very first

    @abstractmethod
    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        """Perceive what follows. Gives the tokens that are finished now, and until which second they are."""

    @abstractmethod
    def rest(self) -> SideTokens | None:
        """The tokens behind those, as if everything ended here."""

    def said(self, rest: SideTokens | None, begin: float) -> str:
        """What has been perceived from second `begin` on, in words."""
        times = torch.cat([*self.times, torch.zeros(0) if rest is None else rest.times])
        recent = times[times >= begin].tolist()
        if self.steps or recent:
            return f"present: {self.steps + len(recent)} steps from {min([self.since, *recent]):.2f} s"
        what = "sound" if self.encoder.spec.sense == "audio" else "picture"
        return f"absent: no {what} has come" + (f" from {begin:.2f} s on" if len(times) else "")

    def forget(self, before: float) -> None:
        """Nobody will ask what was perceived before this second; if it is infinitely long ago, only how much was."""
        while self.times and (before == -inf or self.times[0][-1] < before):
            over = self.times.popleft()
            if before == -inf:
                self.steps, self.since = self.steps + len(over), min(self.since, over[0].item())

    def _counted(self, tokens: SideTokens | None) -> SideTokens | None:
        if tokens is not None and len(tokens.times):
            self.times.append(tokens.times)
        return tokens


def streaming_encoder(encoder: Encoder, name: str) -> StreamingEncoder:
    """What perceives with this encoder, for the patch `name`."""
    spec = encoder.spec
    if spec.sense == "audio" and encoder.pieces is not None:
        return Ear(encoder, encoder.pieces)
    if spec.sense == "fast" and encoder.groups is not None:
        return Eye(encoder, encoder.groups)
    raise EncoderError(
        f"{name} needs the whole clip for {spec.name}, which reads {spec.sense}; ask() about a file, or watch with "
        "patches that hear and see piece by piece"
    )


class Ear(StreamingEncoder):
    """It hears a sound: what lies in a whole piece is finished."""

    def __init__(self, encoder: Encoder, pieces: Pieces) -> None:
        super().__init__(encoder)
        self.pieces = pieces
        self.start = 0.0  # second of the very first sample
        self.resampling: Resampling | None = None
        self.sound = torch.zeros(1, 0)  # held samples (1 n)
        self.first = self.done = 0  # sample that is held first; pieces that are finished

    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        if chunk.sound is None or not chunk.sound.shape[1]:
            return
        if self.resampling is None:
            self.resampling, self.start = Resampling(chunk.rate, self.pieces.rate), chunk.start
        heard = self.resampling.feed(chunk.sound.to(torch.float32).mean(0, keepdim=True))
        self.sound = torch.cat([self.sound, heard], dim=-1)
        self.reached = self.start + (self.first + self.sound.shape[1]) / self.pieces.rate
        while self.first + self.sound.shape[1] >= self._sample(self._end + self.pieces.after):
            until = self._end
            tokens = self._tokens(self.sound[:, : self._sample(until + self.pieces.after) - self.first], until)
            self.done += 1
            cut = max(0, self._sample(self.done * self.pieces.seconds - self.pieces.before))
            self.sound, self.first = self.sound[:, cut - self.first :].clone(), cut
            yield self._counted(tokens), self.start + until - INSTANT

    def rest(self) -> SideTokens | None:
        if self.resampling is None:
            return None
        last = copy(self.resampling).feed(torch.zeros(1, 0), last=True)
        return self._tokens(torch.cat([self.sound, last], dim=-1), inf)

    @property
    def _end(self) -> float:
        """Second at which the piece ends that is not finished, after the first sample."""
        return (self.done + 1) * self.pieces.seconds

    def _sample(self, seconds: float) -> int:
        return round(seconds * self.pieces.rate)

    def _tokens(self, sound: Tensor, until: float) -> SideTokens | None:
        """Those of the piece that is not finished, from the samples that are held of it and around it."""
        rate = self.pieces.rate
        clip = Clip(audio=sound, rate=rate, audio_start=self.start + self.first / rate)
        tokens = self.encoder.encode(clip)
        if tokens is None:
            return None
        begin = self.start + self.done * self.pieces.seconds if self.done else -inf
        own = (tokens.times >= begin - INSTANT) & (tokens.times < self.start + until - INSTANT)
        return tokens.only(own)


class Eye(StreamingEncoder):
    """It looks at the pictures on screen at equal distances from the first one on: what lies in a whole group is
    finished. (Of a file, LanguageBind stretches these distances until the last of them is the last picture.)"""

    def __init__(self, encoder: Encoder, groups: Groups) -> None:
        super().__init__(encoder)
        self.groups = groups
        self.first: float | None = None  # second of the first picture
        self.taken = 0  # instants whose pictures have come
        self.latest: Tensor | None = None  # the picture on screen (1 3 y x)
        self.held: list[tuple[Tensor, float]] = []  # of the group that is not finished, with their instants

    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        if chunk.frames is None or chunk.times is None:
            return
        for frame, second in zip(chunk.frames.split(1), chunk.times.tolist(), strict=True):
            self.first, self.reached = second if self.first is None else self.first, second
            while self._next <= second + INSTANT:
                shown = frame if self.latest is None or self._next >= second - INSTANT else self.latest
                y, x = (self.held[0][0] if self.held else shown).shape[2:]  # a camera may change its pictures' size
                self.held.append((scaled(shown, (y, x)).clone(), self._next))  # and use its buffer again
                self.taken += 1
                if len(self.held) == self.groups.size:
                    group, self.held = self.held, []
                    yield self._counted(self._tokens(group)), self._next - INSTANT
            self.latest = frame
        self.latest = None if self.latest is None else self.latest.clone()

    def rest(self) -> SideTokens | None:
        return self._tokens(self.held) if self.held else None

    def _tokens(self, group: Sequence[tuple[Tensor, float]]) -> SideTokens | None:
        frames, times = zip(*group, strict=True)
        return self.encoder.encode(Clip.from_frames(frames, torch.tensor(times, dtype=torch.float64)))

    @property
    def _next(self) -> float:
        """The instant whose picture comes next."""
        assert self.first is not None
        return self.first + self.taken / self.groups.rate
