"""Encoders that perceive as time goes by: what they have finished does not change any more.

In: chunks of pictures and sound, in the order of time. Out: side tokens, piece by piece, those of the whole recording.
Knows nothing of patches, memories and questions.

τ time steps, n samples, c channels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor

from pave.encoder import Encoder, Groups, Pieces
from pave.errors import EncoderError
from pave.media import Clip
from pave.progressive import Chunk
from pave.sidechannel import SideTokens
from pave.sync import INSTANT


class Organ(ABC):
    """An encoder and what it has not finished."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.steps, self.since = 0, inf  # finished time steps, and the second of the very first

    @abstractmethod
    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        """Perceive what follows. Gives the tokens that are finished now, and until which second they are."""

    @abstractmethod
    def rest(self) -> SideTokens | None:
        """The tokens behind those, as if everything ended here."""

    def said(self, rest: SideTokens | None) -> str:
        """What has been perceived, in words."""
        times = [] if rest is None else rest.times.tolist()
        if not self.steps and not times:
            return f"absent: no {'sound' if self.encoder.spec.sense == 'audio' else 'picture'} has come"
        return f"present: {self.steps + len(times)} steps from {min([self.since, *times]):.2f} s"

    def _counted(self, tokens: SideTokens | None) -> SideTokens | None:
        if tokens is not None and len(tokens.times):
            self.steps, self.since = self.steps + len(tokens.times), min(self.since, tokens.times[0].item())
        return tokens


def organ(encoder: Encoder, name: str) -> Organ:
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


class Ear(Organ):
    """It hears a sound: what lies in a whole piece is finished."""

    def __init__(self, encoder: Encoder, pieces: Pieces) -> None:
        super().__init__(encoder)
        self.pieces = pieces
        self.rate, self.start = 0, 0.0
        self.sound: Tensor | None = None  # held samples (c n)
        self.first = self.done = 0  # sample that is held first; pieces that are finished

    def feed(self, chunk: Chunk) -> Iterator[tuple[SideTokens | None, float]]:
        if chunk.sound is None or not chunk.sound.shape[1]:
            return
        self.rate, self.start = chunk.rate, chunk.start
        self.sound = chunk.sound if self.sound is None else torch.cat([self.sound, chunk.sound], dim=-1)
        while self.first + self.sound.shape[1] >= self._sample(self._end + self.pieces.after):
            until = self._end
            tokens = self._tokens(self.sound[:, : self._sample(until + self.pieces.after) - self.first], until)
            self.done += 1
            cut = max(0, self._sample(self.done * self.pieces.seconds - self.pieces.before))
            self.sound, self.first = self.sound[:, cut - self.first :].clone(), cut
            yield self._counted(tokens), self.start + until - INSTANT

    def rest(self) -> SideTokens | None:
        return None if self.sound is None else self._tokens(self.sound, inf)

    @property
    def _end(self) -> float:
        """Second at which the piece ends that is not finished, after the first sample."""
        return (self.done + 1) * self.pieces.seconds

    def _sample(self, seconds: float) -> int:
        return round(seconds * self.rate)

    def _tokens(self, sound: Tensor, until: float) -> SideTokens | None:
        """Those of the piece that is not finished, from the samples that are held of it and around it."""
        clip = Clip(audio=sound, rate=self.rate, audio_start=self.start + self.first / self.rate)
        tokens = self.encoder.encode(clip)
        if tokens is None:
            return None
        begin = self.start + self.done * self.pieces.seconds if self.done else -inf
        own = (tokens.times >= begin - INSTANT) & (tokens.times < self.start + until - INSTANT)
        return tokens.only(own)


class Eye(Organ):
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
            self.first = second if self.first is None else self.first
            while self._next <= second + INSTANT:
                shown = frame if self.latest is None or self._next >= second - INSTANT else self.latest
                self.held.append((shown.clone(), self._next))  # a camera may use its buffer again
                self.taken += 1
                if len(self.held) == self.groups.size:
                    tokens, self.held = self.rest(), []
                    yield self._counted(tokens), self._next - INSTANT
            self.latest = frame
        self.latest = None if self.latest is None else self.latest.clone()

    def rest(self) -> SideTokens | None:
        if not self.held:
            return None
        frames, times = zip(*self.held, strict=True)
        return self.encoder.encode(Clip.from_frames(frames, torch.tensor(times, dtype=torch.float64)))

    @property
    def _next(self) -> float:
        """The instant whose picture comes next."""
        assert self.first is not None
        return self.first + self.taken / self.groups.rate
