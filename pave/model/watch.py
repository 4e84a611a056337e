"""Watching: pictures and sound come as time goes by, and a question can be asked at any moment.

In: a video file that is read progressively, or whatever gives pictures, their seconds and samples. Out: answers about
what has come so far, or in the last seconds. Memory does not grow with the hours: pictures are kept at the size that
the vision tower reads, which takes a fraction of their features, and are looked at when somebody asks; sound and dense
pictures are perceived piece by piece, and what encoders and resamplers have finished is kept in place of them.

t key frames, τ time steps, n samples, c channels, y x pixels
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from pave.config import RESAMPLED
from pave.errors import MediaError, PatchNotFound, UsageError
from pave.fusion.clock import APART, INSTANT
from pave.media.arrays import pictures_of, sound_of, tensor_of, times_of
from pave.media.clip import Clip
from pave.media.pixels import scaled
from pave.model.answer import Answer, Prepared, answers
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Use
from pave.model.layout import lay_out, perceived
from pave.patch.attached import Attached
from pave.sidechannel import SideTokens
from pave.streaming.chunks import Chunk, chunks_of
from pave.streaming.encoders import StreamingEncoder, streaming_encoder
from pave.streaming.memory import History
from pave.streaming.resampler import StreamingResampler

PATIENCE = 60.0  # seconds that a resampler waits for a sense of which nothing comes, while others do
MEMORY = 1 << 28  # bytes: 600 pictures of 384 x 384, 18 hours of a token of 1024 channels per second


class Show:
    """What is being watched. Iterating goes on by a chunk, and gives the second that has been reached; `ask` answers
    about what has come by then. Both may be called from different threads."""

    def __init__(
        self,
        calls: Calls,
        source: Any,
        *,
        rate: int | None,
        patches: Sequence[str] | None,
        last: float | None,
        memory: int,
    ) -> None:
        if last is not None and not 0 < last < inf:
            raise UsageError(f"last={last}; give the seconds before a question that it is about, or None for all")
        if memory < 1:
            raise UsageError(f"memory={memory}; give the bytes that pictures may take, and each sense")
        self.calls, self.last = calls, inf if last is None else float(last)
        self.names, self.named = calls.applied.wanted(patches, 1)[0], patches is not None
        self.begin, self.now = inf, -inf  # seconds of the first picture and of the last
        self.sounded = -inf  # until which second sound has come
        self.latest = torch.zeros(0)
        self.pictures = History(memory)
        self.encoders: dict[str, StreamingEncoder] = {}  # by the encoder's `spec.preprocessing`
        self.heard: dict[str, History] = {}  # its tokens, where a fusion reads them itself
        self.listening: dict[Attached, tuple[StreamingResampler, History]] = {}
        self.late = Counter[tuple[Attached, str]]()  # steps of a sense that a resampler did not wait for
        self.rested: dict[tuple[Attached, str], float] = {}  # until which second it was heard when patience ended
        self._attach(memory)
        self._lock = threading.RLock()
        self._file = chunks_of(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else None
        self._chunks = self._file or map(partial(_checked, rate=rate), _iterable(source))

    def _attach(self, memory: int) -> None:
        for name in self.names:
            attached = self.calls.applied.module(name)
            if attached.resampler is not None:
                self.listening[attached] = StreamingResampler(attached.resampler), History(memory)
            for facts in attached.config.senses.values():
                if facts.preprocessing not in self.encoders:
                    self.encoders[facts.preprocessing] = streaming_encoder(self.calls.perception.encoder(facts), name)
                if attached.resampler is None:
                    self.heard.setdefault(facts.preprocessing, History(memory))

    def __enter__(self) -> Show:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; an iterator of your own stays yours."""
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        chunk = next(self._chunks)
        with self._lock:
            self._take(chunk)
            return self.now

    def see(self, until: float = inf) -> float:
        """Go on until this second, or to the end, or until sound alone is a minute further; gives the second of the
        last picture."""
        while self.now < until and self.sounded < until + PATIENCE and next(self, None) is not None:
            pass
        return self.now

    def ask(self, question: str, *, patches: Sequence[str] | None = None, max_new_tokens: int = 32) -> Answer:
        """Ask about what has come so far. patches: names; None means those that watch() named, or else all that watch
        and are enabled."""
        names = self.names if patches is None else self.calls.applied.wanted(patches, 1)[0]
        if patches is None and not self.named:
            enabled = self.calls.applied.wanted(None, 1)[0]
            names = [name for name in names if name in enabled]
        uses = self.calls.applied.uses([names], 1)
        for use in uses:
            senses = {facts.preprocessing for facts in use.attached.config.senses.values()}
            if not (use.attached in self.listening if use.attached.resampler else senses <= self.heard.keys()):
                raise PatchNotFound(
                    use.name, "it has not been watching", "apply it, and name it, before you begin to watch"
                )
        begin = time.perf_counter()
        with self._lock:
            clip, sides, made, said, late = self._remembered()
        features = replace(self.calls.perception.encode([clip], [])[0], sides=sides, absent=said)
        encoded = time.perf_counter()
        laid = [self._perceived(use, features, made) for use in uses]
        inputs = self.calls.around(lay_out(self.calls.host, [features], laid), [question])
        signals = {}
        for attached in (use.attached for use in uses):
            for sense, facts in attached.config.senses.items():
                signals[sense] = said[facts.preprocessing]
                if count := late[attached, sense]:
                    signals[sense] += f"; {count} came {PATIENCE:g} s after what else came and are left out"
        seconds = {"encode": encoded - begin, "prepare": time.perf_counter() - encoded}
        return answers(self.calls, Prepared(inputs, [signals], seconds), max_new_tokens)[0]

    def _perceived(
        self, use: Use, features: ClipFeatures, made: Mapping[Attached, tuple[Tensor, Tensor] | None]
    ) -> Use:
        """A patch with what it perceives: its senses, or what its resampler has made of them so far."""
        resampler = use.attached.resampler
        if resampler is None:
            return perceived([use], [features])[0]
        found = made[use.attached]
        side = None if found is None else resampler.side(found[0], found[1], features.times.cpu())
        return replace(use, sides={RESAMPLED: (side,)})

    def _take(self, chunk: Chunk) -> None:
        size = self.calls.host.size
        self._one_clock(chunk)
        if chunk.sound is not None:
            self.sounded = max(self.sounded, chunk.start) + chunk.sound.shape[1] / chunk.rate
        if chunk.frames is not None and chunk.times is not None:
            for frame, second in zip(chunk.frames.split(1), chunk.times.tolist(), strict=True):
                self.pictures.add(second, lambda frame=frame: (scaled(frame, size).clone(),))
            self.latest = chunk.frames[-1:].clone()  # a camera may use its buffer again
            self.begin, self.now = min(self.begin, chunk.times[0].item()), chunk.times[-1].item()
        for key, each in self.encoders.items():
            for tokens, until in each.feed(chunk):
                self._finish(key, tokens, until)
        patient = max(self.now, self.sounded) - PATIENCE
        for attached, (listening, _) in self.listening.items():
            for sense, facts in attached.config.senses.items():
                each, until = self.encoders[facts.preprocessing], listening.senses[sense].until
                if max(each.reached, until) < patient:  # nothing of it has come for so long: what there is must do
                    rest = None
                    if until <= each.reached:
                        rest, self.rested[attached, sense] = each.unfinished(), each.reached
                    self._hand_on(attached, sense, rest, patient)
        memories = (self.pictures, *self.heard.values(), *(memory for _, memory in self.listening.values()))
        for each in (*memories, *self.encoders.values()):
            each.forget(self.now - self.last)

    def _one_clock(self, chunk: Chunk) -> None:
        """MediaError for what cannot lie behind what has come, before any of it is taken."""
        clock = torch.tensor([] if self.now == -inf else [self.now], dtype=torch.float64)
        clock = clock if chunk.times is None else torch.cat([clock, chunk.times])
        jumps = clock.diff()
        if (jumps < 0).any():
            cause = f"a picture of {clock[1]:g} s comes after one of {clock[0]:g} s"
            raise MediaError(f"{cause}; give them in the order of time, on one clock")
        if (jumps > APART).any():
            before, after = clock[jumps.argmax() :][:2].tolist()
            cause = f"no picture comes between {before:g} s and {after:g} s"
            raise MediaError(f"{cause}; watch what follows as a show of its own")
        sound = max(self.sounded, chunk.start)  # second of the next sample
        begins = self.now == -inf or (self.sounded == -inf and chunk.sound is not None)
        both = len(clock) and (chunk.sound is not None or self.sounded > -inf)
        if self._file is None and begins and both and abs(clock[0].item() - sound) > PATIENCE:
            cause = f"pictures are at {clock[0]:g} s, the sound that comes with them at {sound:g} s"
            remedy = "its first sample is second 0: count the pictures' seconds from there, or begin with silence"
            raise MediaError(f"{cause}; {remedy}")

    def _finish(self, key: str, tokens: SideTokens | None, until: float) -> None:
        """Keep what an organ has finished, or hand it on to the resamplers that listen to it."""
        if tokens is not None and key in self.heard:
            self.heard[key].add_seconds(tokens.times, tokens.x, tokens.spans, tokens.valid)
        for attached in self.listening:
            for sense, facts in attached.config.senses.items():
                if facts.preprocessing == key:
                    self._hand_on(attached, sense, tokens, until)

    def _hand_on(self, attached: Attached, sense: str, tokens: SideTokens | None, until: float) -> None:
        """Let a resampler listen."""
        listening, memory = self.listening[attached]
        due = None
        if tokens is not None:
            due, late = self._due(attached, sense, tokens)
            self.late[attached, sense] += late
        found = listening.feed(sense, due, max(until, listening.senses[sense].until))
        if found is not None:
            memory.add_seconds(found[1], found[0].cpu())

    def _due(self, attached: Attached, sense: str, tokens: SideTokens) -> tuple[SideTokens, int]:
        """What a resampler still waits for, and how many steps it has neither waited for nor heard."""
        until = self.listening[attached][0].senses[sense].until
        late = (tokens.times < until) & (tokens.times > self.rested.get((attached, sense), -inf))
        return tokens.only(tokens.times >= until), int(late.sum())

    def _remembered(
        self,
    ) -> tuple[
        Clip,
        dict[str, SideTokens | None],
        dict[Attached, tuple[Tensor, Tensor] | None],
        dict[str, str],
        Counter[tuple[Attached, str]],
    ]:
        """Key frames; side tokens, and what resamplers have made of others; what was heard, in words, and how many
        steps of it came too late."""
        clip = self._key_frames()
        begin = self.now - self.last
        rests = {key: each.unfinished() for key, each in self.encoders.items()}
        sides = {key: _recent(begin, memory, rests[key]) for key, memory in self.heard.items()}
        made, late = {}, self.late.copy()
        for attached, (listening, memory) in self.listening.items():
            senses = attached.config.senses.items()
            ended = {sense: rest for sense, facts in senses if (rest := rests[facts.preprocessing]) is not None}
            for sense, tokens in ended.items():
                ended[sense], more = self._due(attached, sense, tokens)
                late[attached, sense] += more
            rest = listening.unfinished(ended, still=self.pictures.count == 1)
            parts = [memory.joined()] if memory.held else []
            parts += [] if rest is None else [[rest[1], rest[0].cpu()]]
            times, x = map(torch.cat, zip(*parts, strict=True)) if parts else torch.zeros(2, 0)
            recent = times >= begin
            made[attached] = (x[recent], times[recent]) if recent.any() else None
        return clip, sides, made, {key: each.summary(rests[key], begin) for key, each in self.encoders.items()}, late

    def _key_frames(self) -> Clip:
        """Spread evenly from the first picture that is asked about to the last, by the rule of `Clip.read`. Where
        pictures have been forgotten, a key frame has the time of the picture that is left of its moment."""
        if self.now == -inf:
            raise MediaError("no picture has come yet; go on with watching before you ask")
        first = max(self.begin, self.now - self.last)
        count = self.calls.host.frames if first < self.now else 1
        instants = torch.linspace(first, self.now, count, dtype=torch.float64)
        seconds = torch.tensor([*(each.second for each in self.pictures.held), self.now], dtype=torch.float64)
        shown = (torch.searchsorted(seconds, instants + INSTANT, right=True) - 1).clamp(min=0)
        last = scaled(self.latest, self.calls.host.size)
        frames = [self.pictures.held[i].parts[0] if i < len(self.pictures.held) else last for i in shown.tolist()]
        return Clip(torch.cat(frames), instants if self.pictures.every == 1 else seconds[shown])


def _recent(begin: float, memory: History, rest: SideTokens | None) -> SideTokens | None:
    """What is held of a sense, and what is not finished, from second `begin` on."""
    parts = [] if rest is None else [rest]
    if memory.held:
        times, x, spans, valid = memory.joined()
        parts.insert(0, SideTokens(x, times, spans, valid))
    whole = SideTokens.cat(parts) if parts else None
    return None if whole is None else whole.only(whole.times >= begin)


def _iterable(source: Any) -> Iterable[Any]:
    if isinstance(source, Iterable) and not isinstance(source, Tensor | Clip):
        return source
    cause = f"watch() got a {type(source).__name__}"
    raise MediaError(f"{cause}; give the path of a video file, or what gives (frames, times, samples) again and again")


def _checked(chunk: Any, rate: int | None) -> Chunk:
    """What an iterator of the user's gave."""
    if not isinstance(chunk, tuple | list) or len(chunk) != 3:
        got = f"{len(chunk)} values" if isinstance(chunk, tuple | list) else f"a {type(chunk).__name__}"
        raise MediaError(f"a chunk is (frames, times, samples), got {got}; give None for pictures or sound it lacks")
    frames, times, samples = chunk
    if frames is not None and times is None:
        raise MediaError("a chunk has pictures but no times; give the second of each, on one clock")
    if frames is None and times is not None:
        raise MediaError("a chunk has times but no pictures, whose seconds they are; sound follows on: give None")
    pictures = None if frames is None else pictures_of(frames)
    clock = None if pictures is None else times_of(torch.atleast_1d(tensor_of(times)), len(pictures))
    if samples is None:
        return Chunk(pictures, clock)
    return Chunk(pictures, clock, sound_of(samples, rate).mean(0, keepdim=True), rate or 0)
