"""Clips: decoded media on one clock.

In: a media file (read in a worker process with a time limit), or the user's arrays. Out: a `Clip` with any subset of
pictures, sound and further signals, and a `Report` of what was found. Knows nothing of models.

Legend: t key frames, y x pixels, c channels, n samples, τ steps of a sensor.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral, Real
from operator import index
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pave.ambient import neutral
from pave.errors import MediaError, SignalError, UsageError
from pave.media.arrays import pictures_of, size_of, sound_of, tensor_of, thumbnail, times_of
from pave.media.decoding import Timeout
from pave.media.key_frames import Request
from pave.media.pixels import scaled
from pave.media.resampling import resample
from pave.text.shown import Lines, brief, shown

Path = str | os.PathLike
if TYPE_CHECKING:
    from pave.media.decode import Part

TIMEOUT: Timeout = "auto"  # limit of decoding a file: grows with its length
SHOWN, HIGH = 8, 96  # key frames of a clip in a notebook, and their height in pixels
PICTURED = ("fast", "views")  # signals that are pictures, or a list of them


@dataclass(frozen=True, repr=False)
class Report(Lines):
    """What reading a clip found. `print(report)` gives one line, and one more per warning."""

    source: str = "arrays"
    pictures: int = 0  # decodable pictures in the file
    expected: int = 0  # pictures that the header or the coded packets announce
    size: tuple[int, int] | None = None  # y x, after rotation
    seconds: float = 0.0  # length of the pictures, or of the sound if there are none
    first: float = 0.0  # seconds of the first and the last picture in the requested span
    last: float = 0.0
    gap: float = 0.0  # usual seconds between two pictures
    audio: str = "no audio track"  # codec, rate, channels and length, or why there is no sound
    decoder: str = "none"
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        count = f"{self.pictures}" if self.pictures >= self.expected else f"{self.pictures} of {self.expected}"
        size = f" of {self.size[1]}x{self.size[0]}" if self.size else ""
        plural = "picture" if count == "1" else "pictures"
        pictures = f"{count} {plural}{size}" if self.pictures else "no pictures"
        head = f"{os.path.basename(self.source)}: {self.seconds:.2f} s, {pictures}; sound: {self.audio}"
        return [head, *(f"  warning: {text}" for text in self.warnings)]


@dataclass(frozen=True)
class Signal:
    """A sensor's stream: values (τ c) at times (τ,) in seconds on the clip's clock."""

    values: Tensor
    times: Tensor

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.times.shape != self.values.shape[:1]:
            shapes = f"values {tuple(self.values.shape)} and times {tuple(self.times.shape)}"
            raise SignalError(f"a signal needs values (τ c) and times (τ,), got {shapes}")
        odd = ~(self.values.isfinite().all(1) & self.times.isfinite())
        if odd.any():
            cause = f"{int(odd.sum())} of {len(odd)} steps have a value or time that is not finite"
            raise SignalError(f"a signal of values {tuple(self.values.shape)}: {cause}; drop those steps")


@dataclass(frozen=True)
class Clip:
    """Decoded media on one clock. Any stream may be absent; only code that needs it raises an error."""

    frames: Tensor | None = None  # uint8 (t 3 y x), upright
    times: Tensor | None = None  # float64 (t,) seconds; the file's first picture is at 0
    audio: Tensor | None = None  # float32 (c n) in [-1, 1]
    rate: int | None = None  # Hz of `audio`
    audio_start: float = 0.0  # seconds of the first sample on the clip's clock
    signals: Mapping[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    again: Callable[[Sequence[float]], Iterator[Tensor]] | None = None  # other pictures of the same file, one by one
    timeout: Timeout = TIMEOUT  # limit of decoding the files of its signals

    def __repr__(self) -> str:
        frames = f"{len(self.frames)} key frames, " if self.frames is not None else ""
        others = f"; {', '.join(self.signals)}" if self.signals else ""
        return f"Clip({frames}{self.report}{shown(others)})"

    def _repr_html_(self) -> str:
        """In a notebook: its first key frames, small, and its report."""
        few = () if self.frames is None else self.frames[:SHOWN]
        return f"{''.join(thumbnail(frame, HIGH) for frame in few)}{self.report._repr_html_()}"

    @classmethod
    @neutral()
    def read(
        cls,
        path: str | os.PathLike,
        *,
        frames: int | None = 32,
        fps: float | None = None,
        audio: bool = True,
        audio_rate: int | None = None,
        mono: bool | Literal["stereo"] = True,
        start: float | None = None,
        end: float | None = None,
        at: Sequence[float] | None = None,
        size: tuple[int, int] | None = None,
        audio_track: int | None = None,
        video_track: int | None = None,
        timeout: Timeout = TIMEOUT,
    ) -> Clip:
        """Read a video, sound or image file.

        frames: key frames equally spaced in time; frame i is the picture on screen at
            linspace(first stamp, last stamp, frames)[i], and that instant is its time. Pictures repeat if there are
            fewer; a single picture gives one frame. 0: none. None: every picture, at its own time.
        fps: frames at this rate instead.
        audio_rate: resample the sound to this rate (Hz); None keeps the file's, and each encoder resamples to its own.
        mono: mix the channels to one, "stereo": to at most two, as FFmpeg weighs them; False: leave them as they are.
        start, end: seconds on the file's clock; times stay relative to the whole file.
        at: the pictures on screen at these seconds on the file's clock instead.
        size: resize each frame to this height and width as it comes, as the vision tower of a base does (`preprocess`);
            None keeps the file's. The report says the file's.
        audio_track, video_track: which track, counted from 0 within its kind, as FFmpeg's `0:a:1`; None: the file's
            default one. If that sound does not decode, the next one is read.
        timeout: seconds after which a worker process that decodes is killed; math.inf: never. "auto" allows more
            processor time the longer the file is, and does not count the time for which a busy machine lets it wait.
            None decodes in this process, without a limit.
        """
        from pave.media.decode import gathered

        # A worker keeps the working directory it was started in, so paths are made absolute (URLs are refused later).
        path = os.fsdecode(path)
        full = path if "://" in path else os.path.abspath(path)
        count = None if frames is None else index(frames)
        sound_track, film_track = track_of(audio_track, "audio_track"), track_of(video_track, "video_track")
        fps, start, end = (None if value is None else float(value) for value in (fps, start, end))
        timeout = limit_of(timeout)
        instants = None if at is None else [float(second) for second in at]
        request = Request(full, count, fps, audio, mono, start, end, instants, sound_track, film_track)
        result = gathered(_parts(request, timeout), None if size is None else partial(_resized, size=size))
        pictures = None if result.frames is None else rearrange(torch.from_numpy(result.frames), "t y x c -> t c y x")
        sound, rate = None if result.audio is None else torch.from_numpy(result.audio), result.rate
        if sound is not None and rate and audio_rate is not None:
            sound, rate = resample(sound, rate, audio_rate).clamp(-1, 1), audio_rate
        facts: dict[str, Any] = {**result.facts, "warnings": tuple(result.facts["warnings"])}
        return cls(
            frames=None if pictures is None else pictures.contiguous(),
            times=None if result.times is None else torch.from_numpy(result.times),
            audio=sound,
            rate=rate,
            audio_start=result.audio_start,
            report=Report(source=path, size=result.size, **facts),
            again=partial(_again, request, timeout),
            timeout=timeout,
        )

    @classmethod
    @neutral()
    def from_frames(
        cls,
        frames: Any = None,
        times: Any = None,
        audio: Any = None,
        rate: int | None = None,
        **signals: Any,
    ) -> Clip:
        """A clip from arrays.

        frames: uint8 (t 3 y x) or (t y x 3), one picture (3 y x) or (y x 3), a PIL image, or a list of images.
        times: seconds of the frames; by default spread evenly over the sound, or 1 s apart without sound.
        audio: (n,), (c n) or (n c) float in [-1, 1] or int16, at `rate` Hz, starting at 0 s.
        signals: further streams by name; a pair (values (τ c), times (τ,)) becomes a `Signal`, a pair of frames and
            times a `Clip`.
        """
        pictures = None if frames is None else pictures_of(frames)
        sound = None if audio is None else sound_of(audio, rate)
        seconds = 0.0 if sound is None or rate is None else sound.shape[1] / rate
        warnings, clock = [], None
        if pictures is not None:
            count = len(pictures)
            if times is not None:
                clock = times_of(times, count)
            elif seconds:
                clock = torch.linspace(0, seconds, count, dtype=torch.float64)
            else:
                clock = torch.arange(count, dtype=torch.float64)
                warnings += ["no times were given: frames are assumed to be 1 s apart"] if count > 1 else []
            seconds = float(clock[-1] - clock[0]) if count > 1 else 0.0
        report = Report(
            pictures=0 if pictures is None else len(pictures),
            expected=0 if pictures is None else len(pictures),
            size=size_of(pictures),
            seconds=seconds,
            first=0.0 if clock is None else float(clock[0]),
            last=0.0 if clock is None else float(clock[-1]),
            gap=0.0 if clock is None else seconds / max(len(clock) - 1, 1),
            audio="no audio was given" if sound is None else f"array, {rate} Hz, {sound.shape[1] / (rate or 1):.2f} s",
            warnings=tuple(warnings),
        )
        return cls(pictures, clock, sound, rate if sound is not None else None, 0.0, signals_of(signals), report)

    @neutral()
    def beside(self, signals: Mapping[str, Any], *, timeout: Timeout = TIMEOUT) -> Clip:
        """This clip with further streams, by name, as in `from_frames`. `audio` replaces the clip's own sound, see
        `sound`; None drops it."""
        others = {name: value for name, value in signals.items() if name != "audio"}
        clip = replace(self, signals={**self.signals, **signals_of(others)}, timeout=limit_of(timeout))
        if "audio" not in signals:
            return clip
        if signals["audio"] is None:
            report = replace(self.report, audio="left out by the caller")
            return replace(clip, audio=None, rate=None, audio_start=0.0, report=report)
        own = sound(signals["audio"], timeout)
        report = replace(self.report, audio=own.report.audio, warnings=(*self.report.warnings, *_named(own)))
        return replace(clip, audio=own.audio, rate=own.rate, audio_start=own.audio_start, report=report)

    @neutral()
    def opened(self, names: Iterable[str]) -> Clip:
        """This clip with the files of these signals opened, where they are pictures (`fast`, and a list: `views`):
        within its own limit of time, and with their warnings in its report."""
        signals, warnings = dict(self.signals), [*self.report.warnings]

        def read(stream: Any) -> Any:
            if not isinstance(stream, str | os.PathLike):
                return stream
            clip = Clip.read(stream, frames=1, audio=False, timeout=self.timeout)
            warnings.extend(_named(clip))
            return clip

        for name in self.signals.keys() & set(names) & set(PICTURED):
            each = signals[name]
            if name == "fast":
                signals[name] = read(each)
            elif isinstance(each, list | tuple):
                signals[name] = [read(stream) for stream in each]
        return replace(self, signals=signals, report=replace(self.report, warnings=tuple(warnings)))

    @neutral()
    def at(self, seconds: Sequence[float]) -> Tensor:
        """The frames (t 3 y x) on screen at these instants; a file is read again."""
        return torch.stack(list(self.passing(seconds)))

    def passing(self, seconds: Sequence[float]) -> Iterator[Tensor]:
        """The frames (3 y x) on screen at these instants, one by one. A file is read again, once, as far as they are
        used; instants in ascending order hold one frame in memory."""
        if self.again is not None:
            yield from self.again(seconds)
            return
        if self.frames is None or self.times is None:
            raise MediaError(f"{self.report.source}: has no frames to sample; pass frames or a video file")
        instants = torch.tensor(seconds, dtype=torch.float64) + 1e-6  # absorbs rounding errors, as `exact` for files
        for place in (torch.searchsorted(self.times, instants, right=True) - 1).clamp(min=0):
            yield self.frames[place]


def _named(clip: Clip) -> Iterator[str]:
    """The warnings of a file beside a clip, with its name."""
    return (f"{os.path.basename(clip.report.source)}: {text}" for text in clip.report.warnings)


def _parts(request: Request, timeout: Timeout) -> Iterator[Part]:
    """What a file holds, decoded here or, within a limit, in a worker process."""
    from pave.media.decode import decode
    from pave.media.decoding import parts_within

    return decode(request) if timeout is None else parts_within(request, timeout)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (y x 3) at another size."""
    frame = rearrange(torch.from_numpy(np.ascontiguousarray(picture)), "y x c -> 1 c y x").contiguous()
    return rearrange(scaled(frame, size), "1 c y x -> y x c").numpy()


def _again(request: Request, timeout: Timeout, seconds: Sequence[float]) -> Iterator[Tensor]:
    """The pictures (3 y x) of a request's file on screen at these seconds."""
    from pave.media.decode import one_by_one

    request = replace(request, at=[float(second) for second in seconds], audio=False, start=None, end=None)
    for picture in one_by_one(_parts(request, timeout)):
        yield rearrange(torch.from_numpy(np.ascontiguousarray(picture)), "y x c -> c y x").contiguous()


def sound(audio: Any, timeout: Timeout = TIMEOUT) -> Clip:
    """A sound in any form as a clip that has one: a pair (samples, rate in Hz), the path of a file, or a Clip."""
    if isinstance(audio, str | os.PathLike):
        audio = Clip.read(audio, frames=0, timeout=timeout)
    if isinstance(audio, Clip):
        if audio.audio is None:
            cause = f"{audio.report.source}: has no sound ({audio.report.audio})"
            raise MediaError(f"{cause}; give a file with sound, or audio=None to drop the clip's own")
        return audio
    if not isinstance(audio, tuple | list) or len(audio) != 2 or not isinstance(audio[1], Integral):
        raise SignalError(
            "audio= must be a pair (samples, rate in Hz), the path of a file, or None to drop the clip's own sound"
        )
    return Clip.from_frames(audio=audio[0], rate=int(audio[1]))


def decode_many(
    paths: Iterable[Path | tuple[Path, Mapping[str, Any]]],
    *,
    workers: int = 1,
    timeout: Timeout = TIMEOUT,
    **options: Any,
) -> Iterator[Clip | MediaError]:
    """`Clip.read` of many files in `workers` processes: results in order, a MediaError in place of a bad file. A path
    may be paired with options of its own.

    At most two files per worker are read ahead, so that memory use does not grow with the list.
    """
    ahead: deque[Future[Clip | MediaError]] = deque()

    def attempt(entry: Path | tuple[Path, Mapping[str, Any]]) -> Clip | MediaError:
        path, own = entry if isinstance(entry, tuple) else (entry, {})
        try:
            return Clip.read(path, timeout=timeout, **{**options, **own})
        except MediaError as error:
            return error

    # Threads suffice: each only waits for its worker process.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for path in paths:
            ahead.append(pool.submit(attempt, path))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def track_of(number: int | None, name: str) -> int | None:
    """The number of a track, checked."""
    if number is None or (isinstance(number, Integral) and not isinstance(number, bool)):
        return None if number is None else index(number)
    raise UsageError(f"{name}={number!r} is not a whole number; tracks are counted from 0")


def limit_of(timeout: Timeout) -> Timeout:
    """A limit of decoding, checked."""
    if timeout is None or (isinstance(timeout, str) and timeout == "auto"):
        return timeout
    try:
        seconds = float(timeout) if isinstance(timeout, Real) and not isinstance(timeout, bool) else math.nan
    except OverflowError:
        seconds = math.nan
    if not seconds > 0:
        raise UsageError(f"timeout={timeout!r} is not a limit; pass seconds above 0, math.inf, 'auto' or None")
    return seconds


def signals_of(signals: Mapping[str, Any]) -> dict[str, Any]:
    """Streams by name; pairs become `Signal`s or `Clip`s. Anything else, such as a path, is left to its encoder."""
    return {
        name: _pair(*value) if isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]) else value
        for name, value in signals.items()
    }


def _is_array(value: Any) -> bool:
    return not (value is None or isinstance(value, str | os.PathLike | Clip))


def _pair(values: Any, times: Any) -> Signal | Clip:
    values = tensor_of(values)
    if values.ndim == 4:
        return Clip.from_frames(values, times)
    return Signal(values.float(), tensor_of(times).double())
