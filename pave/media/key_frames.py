"""Which pictures of a file to read: the instants, the picture on screen at each, the packets to decode for them.

In: a `Request` and the time stamps of a track. Out: `Picks`. The arithmetic is exact. Knows nothing of decoders.

t pictures. A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf
from typing import NamedTuple

from pave.media.container import refuse
from pave.media.stamps import Packet, Track

MAX_BYTES = 4 << 30  # of decoded pictures, and of decoded sound, in one clip


@dataclass(frozen=True)
class Request:
    """What to read from a file. `at` overrides `fps`, which overrides `frames`; all None: every picture; `frames` 0:
    none."""

    path: str
    frames: int | None = 32
    fps: float | None = None
    audio: bool = True
    mono: bool = True
    start: float | None = None  # seconds on the clip's clock
    end: float | None = None  # seconds, exclusive
    at: Sequence[float] | None = None  # seconds on the clip's clock, also outside the span
    audio_track: int | None = None  # from 0 within its kind; None: the default one
    video_track: int | None = None


def check_window(request: Request) -> None:
    """Refuse a request that no file can satisfy."""
    start, end = request.start or 0.0, request.end
    if early := [second for second in request.at or () if not 0 <= second < inf]:
        raise refuse(request.path, f"the picture at {early[0]} s was requested", "request finite times >= 0 s")
    if request.frames is not None and request.frames < 0:
        raise refuse(request.path, f"frames={request.frames} is negative", "request 0 or more")
    if request.fps is not None and not 1e-3 <= request.fps <= 1e6:
        raise refuse(request.path, f"fps={request.fps} is out of range", "request 0.001 to 1,000,000")
    if not 0 <= start < inf or (end is not None and not start < end < inf):
        raise refuse(request.path, f"the span {start} s to {end} s is empty or not valid", "request 0 <= start < end")


class Picks(NamedTuple):
    """The requested instants (ticks, exact), the stamp of the picture on screen at each, and the span's first and last
    stamp."""

    targets: Sequence[Fraction | int]
    stamps: Sequence[int]
    span: tuple[int, int]


def pick(stamps: list[int], request: Request, track: Track) -> Picks:
    """The rule of key frames: instant i is linspace(first, last, t)[i]; its picture has the greatest stamp <= it.

    Stamps are sorted. The arithmetic is exact: a rounding error of linspace would select the previous picture.
    """
    if request.frames == 0 and request.fps is None and request.at is None:
        return Picks([], [], (stamps[0], stamps[-1]))
    shown = within(stamps, request, track)
    first, last = shown[0], shown[-1]
    if request.at is not None:
        count, step, shown = len(request.at), None, stamps
    elif request.fps is not None:
        step = 1 / (exact(request.fps) * track.base)
        count = int((last - first) / step) + 1
    elif request.frames is not None:
        count = request.frames if first < last else min(request.frames, 1)
        step = Fraction(last - first, max(count - 1, 1))
    else:
        count, step = len(shown), None
    size = count * track.size[0] * track.size[1] * 3
    if size > MAX_BYTES:
        cause = f"{count} pictures of {track.size[1]}x{track.size[0]} need {size / 2**30:.1f} GiB"
        raise refuse(request.path, cause, "request fewer frames, a lower fps or a shorter span (start, end)")
    if request.at is not None:
        targets = [stamps[0] + exact(second) / track.base for second in request.at]
    else:
        targets = shown if step is None else [first + i * step for i in range(count)]
    return Picks(targets, [shown[bisect_right(shown, floor(t)) - 1] for t in targets], (first, last))


def within(stamps: list[int], request: Request, track: Track) -> list[int]:
    """The stamps in [start, end); if the span is between two pictures, the one that is on screen."""
    start = stamps[0] + exact(request.start or 0) / track.base
    first = bisect_left(stamps, start)
    last = len(stamps) if request.end is None else bisect_left(stamps, stamps[0] + exact(request.end) / track.base)
    if first < last:
        return stamps[first:last]
    if start > stamps[-1] + track.gap / track.base:
        seconds = float((stamps[-1] - stamps[0]) * track.base + track.gap)
        cause = f"start={request.start:g} s is after its last picture ({seconds:.2f} s)"
        raise refuse(request.path, cause, "request an earlier span")
    return stamps[bisect_right(stamps, start) - 1 :][:1]


def exact(number: float) -> Fraction:
    """The number that the user wrote: 1.6 is 8/5, not the float slightly above it. Accurate to a microsecond."""
    return Fraction(number).limit_denominator(1_000_000)


def needed(packets: list[Packet], wanted: set[int]) -> tuple[list[bool], set[int]]:
    """Which packets must be decoded for the wanted pictures, and the stamps at which decoding restarts.

    Each picture needs the packets from the key packet before it up to its own. A key packet with a later stamp does not
    suffice: the picture is then a leading one, which refers to the previous group of pictures.
    """
    feed, entries, covered = [False] * len(packets), set(), 0
    keys = [n for n, packet in enumerate(packets) if packet.key]
    for n in (n for n, packet in enumerate(packets) if packet.stamp in wanted):
        key = bisect_right(keys, n)
        while key and packets[keys[key - 1]].stamp > packets[n].stamp:
            key -= 1
        begin = keys[key - 1] if key else 0
        if begin > covered:
            entries.add(packets[begin].stamp)
        begin = max(begin, covered)
        feed[begin : n + 1] = [True] * (n + 1 - begin)
        covered = max(covered, n + 1)
    return feed, entries
