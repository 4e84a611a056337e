"""Streaming encoders: they encode incrementally, and finished tokens never change.

In: chunks of pictures and sound, in order of time. Out: side tokens, piece by piece, equal to those of the whole
recording. Knows nothing of patches, memories and questions.

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
from pave.media.arrays import one_channel
from pave.media.clip import Clip
from pave.media.pixels import scaled
from pave.media.resampling import Resampling
from pave.sidechannel import SideTokens
from pave.streaming.chunks import Chunk


class StreamingEncoder(ABC):
    """An encoder and its unfinished input."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reached = -inf  # second up to which input has arrived
        self.times = deque[Tensor]()  # of finished time steps that are not forgotten
        self.steps, self.since = 0, inf  # of forgotten time steps: their count, and the second of the first

    @abstractmethod
    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        """Encode a further chunk. Yields newly finished tokens, and the second up to which all are finished."""

    @abstractmethod
    def unfinished(self) -> SideTokens | None:
        """The tokens after the finished ones, as if the stream ended here."""

    def summary(self, unfinished: SideTokens | None, begin: float) -> str:
        """What has been encoded from second `begin` on, as text."""
        times = torch.cat([*self.times, torch.zeros(0) if unfinished is None else unfinished.times])
        recent = times[times >= begin].tolist()
        if self.steps or recent:
            return f"present: {self.steps + len(recent)} steps from {min([self.since, *recent]):.2f} s"
        what = "sound" if self.encoder.spec.sense == "audio" else "picture"
        return f"absent: no {what} has come" + (f" from {begin:.2f} s on" if len(times) else "")

    def forget(self, before: float) -> None:
        """Drop the times of steps before this second; -inf keeps the count of all steps, but not their times."""
        while self.times and (before == -inf or self.times[0][-1] < before):
            over = self.times.popleft()
            if before == -inf:
                self.steps, self.since = self.steps + len(over), min(self.since, over[0].item())

    def _counted(self, tokens: SideTokens | None) -> SideTokens | None:
        if tokens is not None and len(tokens.times):
            self.times.append(tokens.times)
        return tokens


def streaming_encoder(encoder: Encoder, name: str) -> StreamingEncoder:
    """The streaming form of an encoder; the patch `name` is for the error message."""
    spec = encoder.spec
    if spec.sense == "audio" and encoder.pieces is not None:
        return SoundStream(encoder, encoder.pieces)
    if spec.sense == "fast" and encoder.groups is not None:
        return FrameStream(encoder, encoder.groups)
    raise EncoderError(
        f"{name} needs the whole clip for {spec.name}, which reads {spec.sense}; ask() about a file, or watch with "
        "patches whose encoders can stream"
    )


class SoundStream(StreamingEncoder):
    """Encodes sound; the tokens of a complete piece are finished."""

    def __init__(self, encoder: Encoder, pieces: Pieces) -> None:
        super().__init__(encoder)
        self.pieces = pieces
        self.start = 0.0  # second of the stream's first sample
        self.resampling: Resampling | None = None
        self.sound = torch.zeros(1, 0)  # held samples (1 n)
        self.first = self.done = 0  # index of the first held sample; finished pieces

    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        if chunk.sound is None or not chunk.sound.shape[1]:
            return
        if self.resampling is None:
            self.resampling, self.start = Resampling(chunk.rate, self.pieces.rate), chunk.start
        sound = self.resampling.feed(one_channel(chunk.sound, self.encoder.channel))
        self.sound = torch.cat([self.sound, sound], dim=-1)
        self.reached = self.start + (self.first + self.sound.shape[1]) / self.pieces.rate
        while self.first + self.sound.shape[1] >= self._sample(self._end + self.pieces.after):
            until = self._end
            tokens = self._tokens(self.sound[:, : self._sample(until + self.pieces.after) - self.first], until)
            self.done += 1
            cut = max(0, self._sample(self.done * self.pieces.seconds - self.pieces.before))
            self.sound, self.first = self.sound[:, cut - self.first :].clone(), cut  # a view would hold all of it
            yield self._counted(tokens), self.start + until - INSTANT

    def unfinished(self) -> SideTokens | None:
        if self.resampling is None:
            return None
        last = copy(self.resampling).feed(torch.zeros(1, 0), last=True)  # a copy: the stream itself goes on
        return self._tokens(torch.cat([self.sound, last], dim=-1), inf)

    @property
    def _end(self) -> float:
        """Seconds from the first sample to the end of the unfinished piece."""
        return (self.done + 1) * self.pieces.seconds

    def _sample(self, seconds: float) -> int:
        return round(seconds * self.pieces.rate)

    def _tokens(self, sound: Tensor, until: float) -> SideTokens | None:
        """Tokens of the unfinished piece, from the held samples of it and around it."""
        rate = self.pieces.rate
        clip = Clip(audio=sound, rate=rate, audio_start=self.start + self.first / rate)
        tokens = self.encoder.encode(clip)
        if tokens is None:
            return None
        begin = self.start + self.done * self.pieces.seconds if self.done else -inf
        own = (tokens.times >= begin - INSTANT) & (tokens.times < self.start + until - INSTANT)
        return tokens.only(own)


class FrameStream(StreamingEncoder):
    """Encodes the pictures on screen at equal intervals from the first one on; the tokens of a complete group are
    finished. (On a file, LanguageBind stretches the intervals so that the last instant is the last picture.)"""

    def __init__(self, encoder: Encoder, groups: Groups) -> None:
        super().__init__(encoder)
        self.groups = groups
        self.first: float | None = None  # second of the first picture
        self.taken = 0  # instants whose pictures have arrived
        self.latest: Tensor | None = None  # the picture on screen (1 3 y x)
        self.held: list[tuple[Tensor, float]] = []  # pictures and instants of the unfinished group

    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        if chunk.frames is None or chunk.times is None:
            return
        for frame, second in zip(chunk.frames.split(1), chunk.times.tolist(), strict=True):
            self.first, self.reached = second if self.first is None else self.first, second
            while self._next <= second + INSTANT:
                shown = frame if self.latest is None or self._next >= second - INSTANT else self.latest
                y, x = (self.held[0][0] if self.held else shown).shape[2:]  # a camera may change its picture size
                self.held.append((scaled(shown, (y, x)).clone(), self._next))  # and reuse its buffer
                self.taken += 1
                if len(self.held) == self.groups.size:
                    group, self.held = self.held, []
                    yield self._counted(self._tokens(group)), self._next - INSTANT
            self.latest = frame
        self.latest = None if self.latest is None else self.latest.clone()

    def unfinished(self) -> SideTokens | None:
        return self._tokens(self.held) if self.held else None

    def _tokens(self, group: Sequence[tuple[Tensor, float]]) -> SideTokens | None:
        frames, times = zip(*group, strict=True)
        return self.encoder.encode(Clip.from_frames(frames, torch.tensor(times, dtype=torch.float64)))

    @property
    def _next(self) -> float:
        """The next instant."""
        assert self.first is not None
        return self.first + self.taken / self.groups.rate
