"""Watching: pictures and sound arrive incrementally, and a question can be asked at any moment.

In: a video file that is read progressively, or an iterable of pictures, their seconds and samples. Out: answers about
everything so far, or about the last seconds. Memory is bounded: pictures are stored at the input size of the vision
tower, which takes a fraction of their features, and are encoded when a question is asked; sound and dense pictures are
encoded piece by piece, and only the outputs of encoders and resamplers are stored.

t key frames, τ time steps, n samples, c channels, y x pixels
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.config import RESAMPLED
from pave.encoder import mixed
from pave.errors import MediaError, PatchNotFound, UsageError
from pave.fusion.clock import APART, INSTANT
from pave.media.arrays import pictures_of, sound_of, tensor_of, times_of
from pave.media.clip import Clip, Report
from pave.media.pixels import scaled
from pave.model.answer import Answer, Prepared, answers
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Use
from pave.model.layout import History as Turns
from pave.model.layout import lay_out, perceived, refuse_history, refuse_questions
from pave.model.options import MOST, answering
from pave.model.rows import UNTRAINED, refuse_blind, refuse_unread, unasked
from pave.patch.attached import Attached
from pave.sidechannel import SideTokens
from pave.streaming.chunks import Chunk, chunks_of
from pave.streaming.encoders import StreamingEncoder, streaming_encoder
from pave.streaming.memory import History
from pave.streaming.resampler import StreamingResampler

PATIENCE = 60.0  # seconds that a resampler waits for a sense that has stopped, while others go on
MEMORY = 1 << 28  # bytes: 600 pictures of 384 x 384, 18 hours of a token of 1024 channels per second


class Show:
    """A stream of pictures, sound or both. Iterating reads a chunk and yields the current second; `ask` answers about
    everything read by then. Both may be called from different threads.

    As long as no picture has come, the stream is a sound, as `ask("speech.wav", question)` is about one; from the first
    picture on it is a film."""

    @neutral()
    def __init__(
        self,
        calls: Calls,
        source: Any,
        *,
        rate: int | None,
        patches: Sequence[str] | None,
        last: float | None,
        memory: int,
        tracks: Mapping[str, int],
    ) -> None:
        if last is not None and not 0 < last < inf:
            raise UsageError(f"last={last}; give the number of seconds that a question covers, or None for all")
        if memory < 1:
            raise UsageError(f"memory={memory}; give the bytes for pictures and for each sense, 1 or more")
        self.calls, self.last = calls, inf if last is None else float(last)
        self.names, self.named = calls.applied.wanted(patches, 1)[0], patches is not None
        self.begin, self.seen = inf, -inf  # seconds of the first and the last picture
        self.sound_begin, self.sound_end = inf, -inf  # seconds at which the sound so far begins and ends
        self.latest = torch.zeros(0)
        self.pictures = History(memory)
        self.encoders: dict[str, StreamingEncoder] = {}  # by the encoder's `spec.preprocessing`
        self.tokens: dict[str, History] = {}  # the same key -> its tokens, for patches without a resampler
        self.resamplers: dict[Attached, tuple[StreamingResampler, History]] = {}
        self.late = Counter[tuple[Attached, str]]()  # steps that arrived after a resampler had stopped waiting
        self.waited: dict[tuple[Attached, str], float] = {}  # second up to which it was read when waiting ended
        self._attach(memory)
        self._lock = threading.RLock()
        self.warnings: list[str] = []  # of the file so far
        self._file = None
        if isinstance(source, str | os.PathLike):
            encoders = [each.encoder for each in self.encoders.values()]
            hears = any(encoder.hears for encoder in encoders)
            self._file = chunks_of(os.fsdecode(source), hears, mono=mixed(encoders), **tracks)
        elif tracks:
            raise UsageError(f"{', '.join(tracks)}: chooses a track of a file, and watch() got no path; leave it out")
        self._chunks = self._file or map(_Checked(rate), _iterable(source))

    def _attach(self, memory: int) -> None:
        for name in self.names:
            attached = self.calls.applied.module(name)
            if attached.resampler is not None:
                self.resamplers[attached] = StreamingResampler(attached.resampler), History(memory)
            for facts in attached.config.senses.values():
                if facts.preprocessing not in self.encoders:
                    self.encoders[facts.preprocessing] = streaming_encoder(self.calls.perception.encoder(facts), name)
                if attached.resampler is None:
                    self.tokens.setdefault(facts.preprocessing, History(memory))

    def __enter__(self) -> Show:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; an iterator passed by the caller stays open."""
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[float]:
        return self

    @neutral()
    def __next__(self) -> float:
        chunk = next(self._chunks)
        with self._lock:
            self._store(chunk)
            return self.now

    @property
    def now(self) -> float:
        """The current second: of the last picture; of the end of the sound, as long as no picture has come."""
        return self.sound_end if self.seen == -inf else self.seen

    def see(self, until: float = inf) -> float:
        """Read up to this second, to the end, or until sound is a minute ahead of the pictures; returns the current
        second."""
        while self.now < until and self.sound_end < until + PATIENCE and next(self, None) is not None:
            pass
        return self.now

    @neutral()
    def ask(
        self,
        question: str,
        *,
        patches: Sequence[str] | None = None,
        history: Turns = (),
        max_new_tokens: int = MOST,
        **options: Any,
    ) -> Answer:
        """Ask about everything so far. patches: names; None means those passed to watch(), or else all that were
        applied by then and are enabled. history, options: as in `PatchedModel.ask`."""
        refuse_questions(self.calls.host, [question])
        refuse_history(self.calls.host, history)
        checked = answering(max_new_tokens, options)
        names = self.names if patches is None else self.calls.applied.wanted(patches, 1)[0]
        if patches is None and not self.named:
            enabled = self.calls.applied.wanted(None, 1)[0]
            names = [name for name in names if name in enabled]
        uses = self.calls.applied.uses([names], 1)
        for use in uses:
            senses = {facts.preprocessing for facts in use.attached.config.senses.values()}
            if not (use.attached in self.resamplers if use.attached.resampler else senses <= self.tokens.keys()):
                raise PatchNotFound(
                    use.name, "watch() was called without it", "apply it and name it before you call watch()"
                )
        requested, uses = uses, self.calls.open(uses, [question])
        begin = time.perf_counter()
        with self._lock:
            clip, sides, made, summaries, late = self._remembered()
            told = tuple(self.warnings)
        if blind := clip.frames is None:
            refuse_blind(clip, [use.attached for use in requested if use.weight])
        features = replace(self.calls.perception.encode([clip], [])[0], sides=sides, absent=summaries)
        encoded = time.perf_counter()
        layout = lay_out(self.calls.host, [features], [self._perceived(use, features, made) for use in uses])
        inputs = self.calls.around(layout, [question], [history])
        signals = unasked(requested, uses, 0)
        for attached in (use.attached for use in uses):
            for sense, facts in attached.config.senses.items():
                if blind and not attached.config.sound_alone:
                    signals[sense] = UNTRAINED
                    continue
                signals[sense] = summaries[facts.preprocessing]
                if count := late[attached, sense]:
                    signals[sense] += f"; {count} steps arrived over {PATIENCE:g} s late and were skipped"
        if blind:
            refuse_unread(clip, layout.uses, 0, signals)
        seconds = {"encode": encoded - begin, "prepare": time.perf_counter() - encoded}
        return answers(self.calls, Prepared(inputs, [signals], [told], seconds, checked))[0]

    def _perceived(
        self, use: Use, features: ClipFeatures, made: Mapping[Attached, tuple[Tensor, Tensor] | None]
    ) -> Use:
        """A patch with its side channels, or with the outputs of its resampler so far."""
        resampler = use.attached.resampler
        if resampler is None:
            return perceived([use], [features])[0]
        outputs = made[use.attached] if use.attached.config.sound_alone or not features.blind else None
        side = None if outputs is None else resampler.side(outputs[0], outputs[1], features.times.cpu())
        return replace(use, sides={RESAMPLED: (side,)})

    def _store(self, chunk: Chunk) -> None:
        size = self.calls.host.size
        self._check_clock(chunk)
        self.warnings += chunk.warnings
        if chunk.sound is not None:
            self.sound_begin = min(self.sound_begin, chunk.start)
            self.sound_end = max(self.sound_end, chunk.start) + chunk.sound.shape[1] / chunk.rate
        if chunk.frames is not None and chunk.times is not None:
            for frame, second in zip(chunk.frames.split(1), chunk.times.tolist(), strict=True):
                self.pictures.add(second, lambda frame=frame: (scaled(frame, size).clone(),))
            self.latest = chunk.frames[-1:].clone()  # copied, since a camera may reuse its buffer
            self.begin, self.seen = min(self.begin, chunk.times[0].item()), chunk.times[-1].item()
        for key, each in self.encoders.items():
            for tokens, until in each.feed(chunk):
                self._finish(key, tokens, until)
        deadline = max(self.now, self.sound_end) - PATIENCE
        for attached, (resampler, _) in self.resamplers.items():
            for sense, facts in attached.config.senses.items():
                each, until = self.encoders[facts.preprocessing], resampler.senses[sense].until
                if max(each.reached, until) < deadline:  # it has stopped: go on with what there is
                    rest = None
                    if until <= each.reached:
                        rest, self.waited[attached, sense] = each.unfinished(), each.reached
                    self._resample(attached, sense, rest, deadline)
        memories = (self.pictures, *self.tokens.values(), *(memory for _, memory in self.resamplers.values()))
        for each in (*memories, *self.encoders.values()):
            each.forget(self.now - self.last)

    def _check_clock(self, chunk: Chunk) -> None:
        """MediaError for a chunk that cannot follow the previous ones; checked before any of it is stored."""
        clock = torch.tensor([] if self.seen == -inf else [self.seen], dtype=torch.float64)
        clock = clock if chunk.times is None else torch.cat([clock, chunk.times])
        jumps = clock.diff()
        if (jumps < 0).any():
            cause = f"a picture at {clock[1]:g} s follows one at {clock[0]:g} s"
            raise MediaError(f"{cause}; pass pictures in the order of time, on one clock")
        if (jumps > APART).any():
            before, after = clock[jumps.argmax() :][:2].tolist()
            cause = f"there is no picture between {before:g} s and {after:g} s"
            raise MediaError(f"{cause}; call watch() again for the rest")
        sound = max(self.sound_end, chunk.start)  # second of the next sample
        begins = self.seen == -inf or (self.sound_end == -inf and chunk.sound is not None)
        both = len(clock) and (chunk.sound is not None or self.sound_end > -inf)
        if self._file is None and begins and both and abs(clock[0].item() - sound) > PATIENCE:
            cause = f"pictures are at {clock[0]:g} s, their sound is at {sound:g} s"
            remedy = "its first sample is second 0: count the pictures' seconds from there, or begin with silence"
            raise MediaError(f"{cause}; {remedy}")

    def _finish(self, key: str, tokens: SideTokens | None, until: float) -> None:
        """Store the finished tokens of an encoder, or pass them to the resamplers that read them."""
        if tokens is not None and key in self.tokens:
            self.tokens[key].add_seconds(tokens.times, tokens.x, tokens.spans, tokens.valid)
        for attached in self.resamplers:
            for sense, facts in attached.config.senses.items():
                if facts.preprocessing == key:
                    self._resample(attached, sense, tokens, until)

    def _resample(self, attached: Attached, sense: str, tokens: SideTokens | None, until: float) -> None:
        """Pass tokens of a sense to a resampler, and store its outputs."""
        resampler, memory = self.resamplers[attached]
        due = None
        if tokens is not None:
            due, late = self._due(attached, sense, tokens)
            self.late[attached, sense] += late
        outputs = resampler.feed(sense, due, max(until, resampler.senses[sense].until))
        if outputs is not None:
            memory.add_seconds(outputs[1], outputs[0].cpu())

    def _due(self, attached: Attached, sense: str, tokens: SideTokens) -> tuple[SideTokens, int]:
        """The steps that a resampler can still read, and the number of those that arrived too late."""
        until = self.resamplers[attached][0].senses[sense].until
        late = (tokens.times < until) & (tokens.times > self.waited.get((attached, sense), -inf))
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
        """Key frames; side tokens, and outputs of resamplers; a summary of each sense as text, and its number of steps
        that arrived too late."""
        clip = self._key_frames()
        begin = self.now - self.last
        unfinished = {key: each.unfinished() for key, each in self.encoders.items()}
        sides = {key: _recent(begin, memory, unfinished[key]) for key, memory in self.tokens.items()}
        made, late = {}, self.late.copy()
        for attached, (resampler, memory) in self.resamplers.items():
            senses = attached.config.senses.items()
            ended = {sense: rest for sense, facts in senses if (rest := unfinished[facts.preprocessing]) is not None}
            for sense, tokens in ended.items():
                ended[sense], more = self._due(attached, sense, tokens)
                late[attached, sense] += more
            rest = resampler.unfinished(ended, still=self.pictures.count == 1)
            parts = [memory.joined()] if memory.held else []
            parts += [] if rest is None else [[rest[1], rest[0].cpu()]]
            times, x = map(torch.cat, zip(*parts, strict=True)) if parts else torch.zeros(2, 0)
            recent = times >= begin
            made[attached] = (x[recent], times[recent]) if recent.any() else None
        return (
            clip,
            sides,
            made,
            {key: each.summary(unfinished[key], begin) for key, each in self.encoders.items()},
            late,
        )

    def _key_frames(self) -> Clip:
        """Spread evenly over the pictures that the question covers, by the rule of `Clip.read`. Once pictures have been
        thinned out, a key frame has the time of the picture that it shows. As long as no picture has come: times spread
        evenly over the sound."""
        if self.seen == -inf:
            if self.sound_end <= self.sound_begin:
                raise MediaError("there is no picture and no sound yet; read further before you ask")
            first = max(self.sound_begin, self.sound_end - self.last)
            times = torch.linspace(first, self.sound_end, self.calls.host.frames, dtype=torch.float64)
            return Clip(times=times, report=Report(source="the stream so far"))
        first = max(self.begin, self.now - self.last)
        count = self.calls.host.frames if first < self.now else 1
        instants = torch.linspace(first, self.now, count, dtype=torch.float64)
        seconds = torch.tensor([*(each.second for each in self.pictures.held), self.now], dtype=torch.float64)
        shown = (torch.searchsorted(seconds, instants + INSTANT, right=True) - 1).clamp(min=0)
        last = scaled(self.latest, self.calls.host.size)
        frames = [self.pictures.held[i].parts[0] if i < len(self.pictures.held) else last for i in shown.tolist()]
        return Clip(torch.cat(frames), instants if self.pictures.every == 1 else seconds[shown])


def _recent(begin: float, memory: History, rest: SideTokens | None) -> SideTokens | None:
    """The tokens of a sense from second `begin` on: those in memory, and the unfinished ones."""
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
    raise MediaError(f"{cause}; pass the path of a video file, or an iterable of (frames, times, samples)")


class _Checked:
    """Validates chunks from the caller's iterator. A piece of sound too short to tell its channels from its samples has
    as many channels as the pieces before."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self.channels: int | None = None

    def __call__(self, chunk: Any) -> Chunk:
        frames, times, samples = _parts(chunk)
        pictures = None if frames is None else pictures_of(frames)
        clock = None if pictures is None else times_of(torch.atleast_1d(tensor_of(times)), len(pictures))
        if samples is None:
            return Chunk(pictures, clock)
        sound = sound_of(samples, self.rate, self.channels)
        self.channels = len(sound)
        return Chunk(pictures, clock, sound.mean(0, keepdim=True), self.rate or 0)


def _parts(chunk: Any) -> tuple[Any, Any, Any]:
    """Frames, times and samples of a chunk."""
    if not isinstance(chunk, tuple | list) or len(chunk) != 3:
        got = f"{len(chunk)} values" if isinstance(chunk, tuple | list) else f"a {type(chunk).__name__}"
        raise MediaError(f"a chunk is (frames, times, samples), got {got}; pass None for missing pictures or sound")
    frames, times, samples = chunk
    if frames is not None and times is None:
        raise MediaError("a chunk has pictures but no times; pass the second of each, on one clock")
    if frames is None and times is not None:
        raise MediaError("a chunk has times but no pictures; times are those of pictures, sound needs none: pass None")
    return frames, times, samples
