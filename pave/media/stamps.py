"""The time stamps of a file's packets as one clock that only goes forward.

In: packets in the file's order, stamped as the file stamps them. Out: what to add to the stamps of each track, and for
every picture a stamp of its own. Knows nothing of decoders.

The stamps of recordings that were joined (`cat a.ts b.ts`, live streams that restarted) begin anew in the middle, or
jump. Players and FFmpeg's own tools then play the parts one after another. The rule here is that of ffmpeg
(fftools/ffmpeg_demux.c, `ts_discontinuity_detect`): decoding stamps that go back, or that jump in a format whose stamps
may restart, move all tracks by the difference. Added to it: a jump back counts in every format, and in a transport
stream also where only the pictures go back, by less.

A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

UNKNOWN = -(1 << 62)  # below every real stamp
FAR = 1 << 56  # ticks: larger stamps are damaged
BACK = 0.1  # seconds: ffmpeg's tolerance for stamps that go back
JUMP = 10.0  # seconds: ffmpeg's -dts_delta_threshold
MOST_SHARED = 1000  # pictures with one stamp: more are the stamps of a file that has none
Shifts = dict[int, list[tuple[int, int]]]  # by track: from this packet on, add these ticks


class Track(NamedTuple):
    """The header of a video track."""

    index: int
    base: Fraction  # seconds of one tick
    gap: Fraction  # usual seconds between two pictures
    size: tuple[int, int]  # y x
    unsorted: bool  # its stamps are in coding order, not in display order


class Packet(NamedTuple):
    """One coded picture, not decoded."""

    stamp: int  # on the clip's clock; UNKNOWN if the file has none
    key: bool
    shown: bool  # False: never displayed (cut off by an edit list)


@dataclass
class Passed:
    """The packets of one track so far."""

    count: int = 0
    last: float | None = None  # seconds on the clip's clock: decoding stamp of the latest packet
    due: float = 0.0  # and where the next one is due


@dataclass
class Clock:
    """Follows the decoding stamps of all tracks."""

    restarts: bool  # the format's stamps may restart or jump
    shift: Fraction = Fraction(0)  # seconds added to the stamps that follow
    latest: float | None = None  # decoding stamp of the latest packet of any track
    tracks: dict[int, Passed] = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    breaks: list[tuple[float, float]] = field(default_factory=list)  # second, and seconds by which stamps jump there

    def see(self, packet: Any, stream: Any) -> int:
        """Ticks to add to the stamps of the next packet of this track."""
        passed = self.tracks.setdefault(stream.index, Passed())
        base, length = packet.time_base, seconds_of(packet, stream)
        if packet.dts is not None:
            second = float(packet.dts * base + self.shift)
            jump = self._jump(second, passed, length, stream.type == "video")
            if jump:
                self.breaks.append((second - jump, jump))
                self.shift -= Fraction(jump)
                second -= jump
            passed.last, passed.due, self.latest = second, second + length, second
        elif passed.last is not None:
            passed.due += length
        places = self.shifts.setdefault(stream.index, [(0, 0)])
        if (ticks := round(self.shift / base)) != places[-1][1]:
            places.append((passed.count, ticks))
        passed.count += 1
        return ticks

    def _jump(self, second: float, passed: Passed, length: float, pictures: bool) -> float:
        """Seconds by which a packet stamped `second` is away from where it is due, if that is a break; else 0."""
        if passed.last is None:
            far = self.restarts and self.latest is not None and abs(second - self.latest) > JUMP
            return second - self.latest if far and self.latest is not None else 0.0
        back = passed.last - second
        broken = back > BACK or (self.restarts and (second - passed.due > JUMP or (pictures and back > length / 2)))
        return second - passed.due if broken else 0.0

    def told(self, begin: float) -> str:
        """The breaks in words, for a clip that begins at this second."""
        places = ", ".join(f"{jump:+.2f} s at {second - begin:.2f} s" for second, jump in self.breaks[:3])
        more = f" and {len(self.breaks) - 3} times more" if len(self.breaks) > 3 else ""
        return f"its time stamps jump ({places}{more}): the parts are read one after another"


def seconds_of(packet: Any, stream: Any) -> float:
    """How long a packet lasts."""
    if packet.duration:
        return float(packet.duration * packet.time_base)
    pace = stream.average_rate if stream.type == "video" else None
    return float(1 / pace) if pace else 0.0


def spread(packets: list[Packet], track: Track) -> tuple[list[Packet], Track, int]:
    """Pictures that share a stamp, spread evenly up to the next one, and how many they are. Ticks become finer by a
    whole factor, so that all other stamps mean the same second as before."""
    groups: dict[int, list[int]] = {}
    for n, packet in enumerate(packets):
        if packet.shown and packet.stamp > UNKNOWN:
            groups.setdefault(packet.stamp, []).append(n)
    factor = max(map(len, groups.values()), default=1)
    if factor == 1 or factor > MOST_SHARED:
        return packets, track, 0
    following = dict(pairwise(sorted(groups)))
    usual = max(round(track.gap / track.base), 1)
    finer = [p._replace(stamp=p.stamp * factor if p.stamp > UNKNOWN else UNKNOWN) for p in packets]
    for stamp, group in groups.items():
        room = (following.get(stamp, stamp + usual) - stamp) * factor
        for k, n in enumerate(group):
            finer[n] = finer[n]._replace(stamp=stamp * factor + room * k // len(group))
    return finer, track._replace(base=track.base / factor), sum(len(group) - 1 for group in groups.values())
