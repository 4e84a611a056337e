"""A sound track as one even stream of samples on the clip's clock.

In: decoded frames with time stamps. Out: pieces of samples, each with its place in the stream. Time stamps decide, not
the count of samples: holes become silence, overlaps are cut, and a clock that runs slower or faster than the samples is
followed by resampling, as `aresample=async` of FFmpeg does. Stamps that only jitter change nothing.

Legend: c channels, n samples. `nominal` places count samples as they come; `drift` is how many seconds later than its
nominal place a frame is stamped. The applied drift follows the median drift of the frames within HALF_WINDOW: a median
ignores jitter, and neither bends a steady drift nor moves a sudden step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import inf
from statistics import median
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from einops import rearrange

from pave.media.container import refuse
from pave.media.key_frames import MAX_BYTES, Mono, Request

HALF_WINDOW = 1.0  # seconds
TOLERANCE = 0.015  # seconds of drift that are left alone: rounding and jitter of time stamps
STEADY = 0.15  # of a frame's length: the drift of a clock grows by less, a hole or an overlap by more
LONGEST_HOLE = 600.0  # seconds; sound after a longer one is left out
CATCH_UP = 0.5  # seconds over which a drift found late is made up for, so that the pitch is not bent
TAPS = 8  # samples on each side that a resampled one is computed from
PLANES = 7

Piece = tuple[int, np.ndarray]  # place of its first sample, and samples (c n)


@dataclass
class Frame:
    """One decoded frame, not yet placed."""

    nominal: int  # samples before it
    wave: np.ndarray  # (c n)


class Sound:
    """One sound track, frame by frame."""

    def __init__(self, request: Request, origin: Fraction | None, counted: bool = False) -> None:
        self.request, self.origin, self.counted = request, origin, counted
        self.rate = 0
        self.channels = 0  # in the file
        self.begin = 0.0  # seconds of the first sample on the clip's clock
        self.over = False  # the rest of the track is not needed or cannot be used
        self.warnings: list[str] = []
        self._first = 0.0  # second of the first sample, by the first stamp
        self._stamped: int | None = None
        self._nominal = 0
        self._place = 0  # samples placed so far, counted from `begin`
        self._applied = 0.0  # drift at `_place`
        self._begun, self._at_begin = False, 0.0
        self._following = False
        self._turned = 0.0  # seconds by which resampling has stretched the sound
        self._drifts: deque[tuple[int, float]] = deque()  # nominal place and drift of the frames around
        self._waiting: deque[Frame] = deque()
        self._tail = np.zeros((1, 0), np.float32)
        self._steps: list[tuple[float, float]] = []  # second and seconds of holes (> 0) and overlaps (< 0)
        self._kept_from: int | None = None  # first place in the requested span
        self._resamplers: dict[tuple[int, str, str], Any] = {}
        self._bad = False

    @property
    def seconds(self) -> float:
        """Length of the track placed so far."""
        return self._place / (self.rate or 1)

    def read(self, frames: Iterator[Any]) -> Iterator[Piece]:
        """The requested part of a track, in pieces."""
        for frame in frames:
            yield from self.add(frame)
            if self.over:
                break
        yield from self.finish()

    def add(self, frame: Any) -> list[Piece]:
        """Take one more frame; what it completes."""
        if not self.rate:
            self.rate, self.channels = frame.sample_rate, frame.layout.nb_channels
        pieces: list[Piece] = []
        for part in self._at_rate(frame):
            wave = waveform(part, self.request.mono)
            if self.request.mono is not True and len(wave) != width_of(self.channels, self.request.mono):
                second = self._nominal / self.rate
                self.warnings.append(f"the sound changes its channels at {second:.2f} s: the rest is ignored")
                self.over = True
                break
            if part.pts is not None and part.pts != self._stamped and not (self.counted and self._waiting):
                self._stamp(float(part.pts * part.time_base))
                self._stamped = part.pts  # several pieces in a row with one stamp: only the first is known
            self._waiting.append(Frame(self._nominal, wave))
            self._nominal += wave.shape[1]
        while self._waiting and self._nominal - self._waiting[0].nominal > (HALF_WINDOW + TOLERANCE) * self.rate:
            pieces += self._put(self._waiting.popleft())
        return pieces

    def finish(self) -> list[Piece]:
        """The rest, and the warnings."""
        pieces: list[Piece] = []
        while self._waiting and not self.request_ended:
            pieces += self._put(self._waiting.popleft())
        self.over = True
        self._conclude()
        return pieces

    @property
    def request_ended(self) -> bool:
        """Whether the requested span lies before what comes now."""
        return self.request.end is not None and self.begin + self.seconds >= self.request.end

    # ------------------------------------------------------------ clock

    def _stamp(self, second: float) -> None:
        """Note the stamp of the frame that comes next."""
        if self._stamped is None:
            self._first = second - self._nominal / self.rate
            if self.origin is not None:
                self.begin = self._first - float(self.origin)
        while self._drifts and self._drifts[0][0] < self._nominal - 4 * HALF_WINDOW * self.rate:
            self._drifts.popleft()
        self._drifts.append((self._nominal, second - self._first - self._nominal / self.rate))

    def _drift(self, nominal: int) -> float:
        """The median drift around a place; the applied one if that is within TOLERANCE of it."""
        applied, near = self._applied, self._near(nominal)
        allowed = 0 if self._following else TOLERANCE
        if 2 * sum(abs(drift - applied) > allowed for drift in near) <= len(near):
            return applied  # so is the median: nothing to compute
        middle = median(near)
        return middle if abs(middle - applied) > allowed else applied

    def _near(self, nominal: int) -> list[float]:
        """The drifts within HALF_WINDOW of a place."""
        reach = HALF_WINDOW * self.rate
        return [drift for place, drift in self._drifts if abs(place - nominal) <= reach]

    def _put(self, frame: Frame) -> list[Piece]:
        """Place a frame on the clock."""
        wave, length = frame.wave, frame.wave.shape[1] / self.rate
        drift = self._drift(frame.nominal)
        if not self._begun:  # if there is a drift at once, it is the first stamp that is off
            self._begun, self._applied, self._at_begin = True, drift, drift
            self.begin += drift
        change = drift - self._applied
        step = self._step(frame, drift) if change else 0.0
        if abs(change) > 1.5 * TOLERANCE + STEADY * length or abs(step) > length / 2:  # a piece was lost before it
            if change > LONGEST_HOLE:
                left = f"sound after a hole of {change:.0f} s at {self.begin + self.seconds:.2f} s is left out"
                self.warnings.append(f"{left}: request it with start=")
                self.over = True
                self._waiting.clear()
                return []
            self._steps.append((self.begin + self.seconds, change))
            self._applied = drift
        elif change:
            self._following = True
            turn = step + (change - step) * min(length / CATCH_UP, 1)
            turn = min(max(turn, -STEADY * length), STEADY * length)
            self._turned += turn
            self._applied += turn
            end = self._due(frame.nominal + wave.shape[1])
            after = self._waiting[0].wave if self._waiting else wave[:, :0]
            stretched = resampled(self._tail, wave, after, max(end - self._place, 0))
            self._tail = wave[:, -TAPS:]
            return self._kept(stretched)
        self._tail = wave[:, -TAPS:]
        late = self._place - self._due(frame.nominal)
        if late < 0:
            self._place -= late
        return self._kept(wave[:, max(late, 0) :])

    def _step(self, frame: Frame, drift: float) -> float:
        """By how much the drift grows with this frame."""
        before = self._near(frame.nominal - frame.wave.shape[1])
        return drift - median(before) if before else 0.0

    def _due(self, nominal: int) -> int:
        """The place of a sample under the applied drift."""
        return round(nominal + (self._applied - self._at_begin) * self.rate)

    # ------------------------------------------------------------ pieces

    def _kept(self, wave: np.ndarray) -> list[Piece]:
        """The part of the next samples (c n) that is in the requested span."""
        rate, request, place = self.rate, self.request, self._place
        first = 0 if request.start is None else round((request.start - self.begin) * rate)
        last = inf if request.end is None else round((request.end - self.begin) * rate)
        self._place += wave.shape[1]
        self.over = self.over or place >= last
        low, high = max(first - place, 0), int(min(last - place, wave.shape[1]))
        if low >= high:
            return []
        begin = self._kept_from = place + low if self._kept_from is None else self._kept_from
        span = place + high - begin
        if span * len(wave) * 4 > MAX_BYTES:
            cause = f"{span / rate:.0f} s of sound need more than {MAX_BYTES >> 30} GiB"
            raise refuse(request.path, cause, "request a shorter span (start, end)")
        wave = wave[:, low:high]
        if not np.isfinite(wave).all():
            self._bad, wave = True, np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0)
        return [(place + low, np.clip(wave, -1, 1))]

    def _at_rate(self, frame: Any) -> list[Any]:
        """The frame at the track's first rate; a track may change it where recordings were joined."""
        if frame.sample_rate == self.rate:
            return [frame]
        if not self._resamplers:
            place = f"at {self.begin + self._nominal / self.rate:.2f} s"
            self.warnings.append(f"the sound changes from {self.rate} to {frame.sample_rate} Hz {place}: resampled")
        key = (frame.sample_rate, frame.format.name, frame.layout.name)
        if key not in self._resamplers:
            self._resamplers[key] = AudioResampler(format="fltp", layout=frame.layout.name, rate=self.rate)
        return self._resamplers[key].resample(frame)

    def _conclude(self) -> None:
        """Warnings about the whole track."""
        for what, steps in (
            ("of sound are missing", [step for step in self._steps if step[1] > 0]),
            ("of sound overlap and are cut", [step for step in self._steps if step[1] < 0]),
        ):
            places = [f"{abs(change):.2f} s {what} at {second:.2f} s" for second, change in steps]
            self.warnings += places[:3]
            if len(places) > 3:
                rest = sum(abs(change) for _, change in steps[3:])
                self.warnings.append(f"{rest:.2f} s {what} at {len(places) - 3} more places")
        self._steps.clear()
        if abs(self._turned) > TOLERANCE:
            told = f"the clock of the sound and its samples differ by {self._turned:+.2f} s over {self.seconds:.2f} s"
            self.warnings.append(f"{told}: the sound was resampled to its clock")
            self._turned = 0.0
        if self._bad:
            self.warnings.append("samples that are not finite were set to 0")
            self._bad = False


def joined(pieces: Iterator[Piece] | list[Piece]) -> np.ndarray:
    """Pieces (c n), with silence between them; the list is emptied, so that memory holds the sound once."""
    pieces = list(pieces)
    first, (last, tail) = pieces[0][0], pieces[-1]
    sound = np.zeros((len(tail), last + tail.shape[1] - first), np.float32)
    pieces.reverse()
    while pieces:
        place, wave = pieces.pop()
        sound[:, place - first : place - first + wave.shape[1]] = wave
    return sound


def resampled(before: np.ndarray, wave: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Samples (c n) stretched to `count`, by a windowed sinc over TAPS neighbours on each side."""
    channels, length = wave.shape
    if count == 0 or length == 0:
        return np.zeros((channels, 0), np.float32)
    padded = np.zeros((channels, length + 2 * TAPS), np.float32)
    padded[:, TAPS : TAPS + length] = wave
    head, tail = before[:, -TAPS:], after[:, :TAPS]
    if len(head) == channels and head.shape[1]:
        padded[:, TAPS - head.shape[1] : TAPS] = head
    if tail.shape[1]:
        padded[:, TAPS + length : TAPS + length + tail.shape[1]] = tail
    at = np.arange(count) * (length / count)
    whole = at.astype(np.int64)
    taps = np.arange(1 - TAPS, TAPS + 1)
    x = (at - whole)[:, None] - taps
    kernel = (np.sinc(x) * np.cos(np.clip(x / TAPS, -1, 1) * (np.pi / 2)) ** 2).astype(np.float32)
    return np.einsum("cnk,nk->cn", padded[:, whole[:, None] + taps + TAPS], kernel)


def width_of(channels: int, mono: Mono) -> int:
    """Channels of a sound with so many, mixed."""
    return min(channels, 2 if mono == "stereo" else 1) if mono else channels


def waveform(frame: Any, mono: Mono = False) -> np.ndarray:
    """Samples (c n) of one decoded frame as float32, full scale = 1; mixed to one channel if `mono`, or to two."""
    if frame.layout.nb_channels > PLANES and frame.format.is_planar:  # PyAV 18 crashes on more planes
        pack = AudioResampler(format=frame.format.packed.name, layout=frame.layout.name, rate=frame.sample_rate)
        frame = pack.resample(frame)[0]
    wave = frame.to_ndarray()
    if frame.format.is_packed:
        wave = rearrange(wave, "1 (n c) -> c n", c=frame.layout.nb_channels)
    if wave.dtype == np.uint8:
        wave = (wave.astype(np.float32) - 128) / 128
    else:
        # Full scale is the most negative integer, so that no sample leaves [-1, 1].
        scale = 1 if wave.dtype.kind == "f" else -float(np.iinfo(wave.dtype).min)
        wave = (wave / scale).astype(np.float32)
    if (width := width_of(len(wave), mono)) == len(wave):
        return wave
    weights = mixing(frame.layout.name, len(wave), "mono" if width == 1 else "stereo")
    if weights is None:
        return wave.mean(0, keepdims=True) if width == 1 else wave[:width]
    return weights @ wave


@lru_cache
def mixing(layout: str, channels: int, to: str = "mono") -> np.ndarray | None:
    """How much of each channel FFmpeg takes for one, or two: weights (1 c) or (2 c) of libswresample, scaled to a sum
    of 1 as it does for integers. None where they are equal: stereo, and layouts that it does not know."""
    if channels <= 2:
        return None
    try:
        unit = av.AudioFrame.from_ndarray(
            np.eye(channels, dtype=np.float32).reshape(1, -1), format="flt", layout=layout
        )
        unit.sample_rate = 48000
        mixed = AudioResampler(format="fltp", layout=to, rate=48000).resample(unit)
        weights = np.concatenate([part.to_ndarray() for part in mixed], axis=1)
    except (FFmpegError, ValueError):
        return None
    total = np.abs(weights).sum(1).max()
    fits = weights.shape == (1 if to == "mono" else 2, channels)
    return weights / total if fits and 0 < total < inf else None
