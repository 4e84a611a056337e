"""The time stamps of a file's packets as one clock that only goes forward.

In: packets in the file's order, stamped as the file stamps them. Out: what to add to the stamps of each track, and for
every picture a stamp of its own. Knows nothing of decoders.

The stamps of recordings that were joined (`cat a.ts b.ts`, live streams that restarted) begin anew in the middle, or
jump. Players and FFmpeg's own tools then play the parts one after another. What counts as a break follows ffmpeg
(fftools/ffmpeg_demux.c, `ts_discontinuity_detect`): decoding stamps that go back, or that jump forward in a format
whose stamps may restart. Unlike there, each track crosses a break where its own packets do, and all by the same amount:
so the parts stay in sync, however their packets are interleaved. A few packets that leave the clock and return to it
are no break: they are moved to where they are due.

A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, groupby, pairwise
from math import inf
from typing import Any, NamedTuple

UNKNOWN = -(1 << 62)  # below every real stamp
FAR = 1 << 56  # ticks: larger stamps are damaged
BACK = 0.1  # seconds: ffmpeg's tolerance for stamps that go back
JUMP = 10.0  # seconds: ffmpeg's -dts_delta_threshold
OVERLAP = 1.0  # seconds that sound may go back in formats whose stamps do not restart: that much is cut
LONGEST_HOLE = 600.0  # seconds without sound that become silence in such formats
SLIGHT = 0.02  # seconds of a jump that may belong to a break of another track
STRAYS = 3  # packets in a row that may leave the clock
NEAR = 16  # packets after a break among which its first picture is
BEGINNING = 1.0  # seconds before a break in which a track of the part after it may begin
MOST_SHARED = 8  # packets with one stamp: more are the stamps of a file that has none
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
class Lane:
    """The packets of one track; stamps in seconds."""

    base: Fraction
    pictures: bool
    places: list[int] = field(default_factory=list)  # among the packets of all tracks
    numbers: list[int] = field(default_factory=list)  # among those of the track
    stamps: list[float] = field(default_factory=list)  # for decoding
    shown: list[float] = field(default_factory=list)  # for presentation
    lengths: list[float] = field(default_factory=list)
    count: int = 0


class Break(NamedTuple):
    """A place where the stamps of a track jump."""

    place: int  # among the packets of all tracks
    track: int
    number: int  # among those of the track
    due: float  # end of what comes before
    start: float  # stamp of what follows
    sure: bool  # False: only if another track breaks alike

    @property
    def jump(self) -> float:
        """Seconds that are too many."""
        return self.start - self.due

    def like(self, other: Break) -> bool:
        """Whether both are one break of the file."""
        return abs(self.jump - other.jump) <= min(1.0, abs(other.jump) / 2)


@dataclass
class Clock:
    """Records the stamps of all packets, then settles what to add to them."""

    restarts: bool  # the format's stamps may restart or jump
    lanes: dict[int, Lane] = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    breaks: list[Break] = field(default_factory=list)
    strays: int = 0  # packets moved to where they are due
    counted: int = 0  # pieces of sound whose stamps say nothing
    hole: float = 0.0  # the longest time without a picture
    count: int = 0

    def see(self, packet: Any, stream: Any, cut: bool) -> None:
        """Record the next packet of the file. One that an edit list cuts off may overlap what is shown."""
        lane = self.lanes.setdefault(stream.index, Lane(packet.time_base, stream.type == "video"))
        if packet.dts is not None and not cut:
            base = float(lane.base)
            lane.places.append(self.count)
            lane.numbers.append(lane.count)
            lane.stamps.append(packet.dts * base)
            lane.shown.append((packet.dts if packet.pts is None else packet.pts) * base)
            length = seconds_of(packet, stream)
            lane.lengths.append(length if length < LONGEST_HOLE else min(lane.lengths[-1:] or [0.0]))
        lane.count += 1
        self.count += 1

    def settle(self) -> None:
        """Find the breaks, and what each track adds to its stamps after them."""
        moves = {track: self._counted(lane) for track, lane in self.lanes.items()}
        found = [each for track, lane in self.lanes.items() for each in self._found(track, lane, moves[track])]
        crossed: dict[tuple[int, int], Break] = {}  # by break of the file, and track
        for each in sorted((each for each in found if each.sure), key=lambda each: each.place):
            free = (n for n, other in enumerate(self.breaks) if (n, each.track) not in crossed and each.like(other))
            number = next(free, len(self.breaks))
            if number == len(self.breaks):
                self.breaks.append(each)
            crossed[number, each.track] = each
        for number, known in enumerate(self.breaks):
            for track, lane in self.lanes.items():
                own = crossed.get((number, track)) or self._followed(known, track, lane, found)
                if own is not None:
                    moves[track].append((own.number, -known.jump))
                    moves[track] += reordered(lane, own, known.jump) if lane.pictures else []
        holes = (each.jump for each in found if self.lanes[each.track].pictures and not each.sure)
        self.hole = max(
            (hole for hole in holes if not any(abs(hole - each.jump) <= OVERLAP for each in self.breaks)), default=0.0
        )
        if self.restarts and not self.breaks:
            for track, lane in self.lanes.items():
                moves[track].append((0, -self._apart(lane)))
        self.shifts = {track: summed(moves[track], lane.base) for track, lane in self.lanes.items()}

    def _counted(self, lane: Lane) -> list[tuple[int, float]]:
        """Moves that put pieces of sound with one stamp one after another, where many share it; the lane's stamps then
        say so."""
        moves: list[tuple[int, float]] = []
        ends = accumulate(len(list(run)) for _, run in groupby(list(lane.stamps)))
        for begin, end in pairwise([0, *ends] if not lane.pictures else ()):
            if end - begin <= MOST_SHARED or not all(lane.lengths[begin:end]):
                continue
            whole = 0.0
            for k in range(begin + 1, end):
                length = lane.lengths[k - 1]
                whole += length
                moves.append((lane.numbers[k], length))
                lane.stamps[k] += whole
                lane.shown[k] += whole
            moves.append((lane.numbers[end - 1] + 1, -whole))
            self.counted += end - begin
        return moves

    def _found(self, track: int, lane: Lane, moves: list[tuple[int, float]]) -> Iterator[Break]:
        """The possible breaks of a track; packets that stray are noted in `moves`."""
        stamps, lengths = lane.stamps, lane.lengths
        due, end, last, k = inf, -inf, -inf, 0
        first, steps = 0, (0.0, 0.0)  # of the part
        while k < len(stamps):
            ahead, back = stamps[k] - due, last - stamps[k]
            sure = self._sure(lane, ahead, back, lengths[k])
            if (sure or ahead > JUMP) and (away := strays(stamps, k, due, lengths[k])):
                for n in range(k, k + away):
                    move = due + (n - k) * lengths[k] - stamps[n]
                    moves += [(lane.numbers[n], move), (lane.numbers[n] + 1, -move)]
                self.strays += away
                due += away * lengths[k]
                last = due - lengths[k]
                k += away
                continue
            if sure:
                start = min(lane.shown[k : k + NEAR])
                if lane.pictures and self.restarts:
                    recent, length = lane.shown[max(k - NEAR, first) : k], max(lengths[k - 1], min(steps))
                    end = max(end, max(recent) + length, last + length + delay_of(lane, first))
                    if recent[-1] in recent[:-1]:  # the parser had to guess it
                        move = end - length - recent[-1]
                        moves += [(lane.numbers[k - 1], move), (lane.numbers[k - 1] + 1, -move)]
                yield Break(lane.places[k], track, lane.numbers[k], end, start, True)
                end, first, steps = -inf, k, (0.0, 0.0)
            elif back > SLIGHT or ahead > JUMP:
                yield Break(lane.places[k], track, lane.numbers[k], due, stamps[k], False)
            steps = steps[1], stamps[k] - last if last > -inf else 0.0
            last, due, end = stamps[k], stamps[k] + lengths[k], max(end, lane.shown[k] + lengths[k])
            k += 1

    def _sure(self, lane: Lane, ahead: float, back: float, length: float) -> bool:
        """Whether a packet stamped so many seconds ahead of where it is due, and before its predecessor, is a break."""
        if self.restarts:
            return ahead > JUMP or back > BACK or (lane.pictures and back > length / 2)
        return back > BACK if lane.pictures else ahead > LONGEST_HOLE or back > OVERLAP

    def _followed(self, known: Break, track: int, lane: Lane, found: list[Break]) -> Break | None:
        """Where a track follows a break that it does not show by itself: where it jumps alike, or from its beginning,
        if it begins in the part after the break."""
        if track == known.track or not lane.places:
            return None
        alike = [each for each in found if each.track == track and not each.sure and each.like(known)]
        if alike:
            return min(alike, key=lambda each: abs(each.place - known.place))
        other, first = self.lanes[known.track], lane.places[0]
        before = other.stamps[max(bisect_left(other.places, first) - 1, 0)]
        nearer = abs(lane.stamps[0] - known.start) < abs(lane.stamps[0] - known.due)
        if first > known.place or (nearer and abs(known.due - before) < BEGINNING):
            return known._replace(number=0)
        return None

    def _apart(self, lane: Lane) -> float:
        """Seconds by which the first stamp of a track is away from those around it, if more than JUMP."""
        if not lane.places:
            return 0.0
        others = [other for other in self.lanes.values() if other.places and other.places[0] < lane.places[0]]
        around = [other.stamps[bisect_left(other.places, lane.places[0]) - 1] for other in others]
        apart = lane.stamps[0] - max(around, default=lane.stamps[0])
        return apart if abs(apart) > JUMP else 0.0

    def told(self, begin: float) -> list[str]:
        """What was found, in words, for a clip that begins at this second."""
        told = []
        if self.breaks:
            shift, places = -begin, []
            for each in self.breaks:
                places.append(f"{each.jump:+.2f} s at {each.due + shift:.2f} s")
                shift -= each.jump
            more = f" and {len(places) - 3} times more" if len(places) > 3 else ""
            told.append(f"its time stamps jump ({', '.join(places[:3])}{more}): the parts are read one after another")
        if self.strays:
            told.append(f"{self.strays} packets have stamps far from their neighbours: they are read in between")
        if self.counted:
            told.append(f"{self.counted} pieces of sound share few time stamps: they are read one after another")
        if self.hole > LONGEST_HOLE:
            told.append(f"it has no picture for {self.hole:.0f} s")
        return told

    def reached(self) -> float:
        """The end of the last packet, in seconds of the file's clock."""
        ends = [
            max(shown + length + moved for shown, length, moved in zip(lane.shown, lane.lengths, along, strict=True))
            for track, lane in self.lanes.items()
            if lane.shown
            for along in [[moved_at(self.shifts.get(track, []), n) * float(lane.base) for n in lane.numbers]]
        ]
        return max(ends, default=0.0)


def strays(stamps: list[float], k: int, due: float, length: float) -> int:
    """How many packets from `k` on leave the clock, if the next one returns to it; else 0."""
    for away in range(1, STRAYS + 1):
        if k + away >= len(stamps):
            return 0
        back = abs(stamps[k + away] - (due + away * length))
        on = abs(stamps[k + away] - (stamps[k + away - 1] + length))
        if back < min(on, BACK):
            return away
    return 0


def delay_of(lane: Lane, first: int) -> float:
    """Seconds from when the picture `first` of a part is decoded to when the part's first one is shown. As many later
    than the last one is decoded, its last one is shown: also where the stamp of that one is lost."""
    return max(min(lane.shown[first : first + NEAR]) - lane.stamps[first], 0.0)


def reordered(lane: Lane, own: Break, jump: float) -> list[tuple[int, float]]:
    """Moves of the pictures around a break that are shown on its other side: decoding order is not that of display."""
    if abs(jump) < 2 * OVERLAP:
        return []
    moves, at = [], bisect_left(lane.numbers, own.number)
    for k in range(max(at - NEAR, 0), min(at + NEAR, len(lane.numbers))):
        after = abs(lane.shown[k] - own.start) < abs(lane.shown[k] - own.due)
        if after != (k >= at):
            move = -jump if after else jump
            moves += [(lane.numbers[k], move), (lane.numbers[k] + 1, -move)]
    return moves


def summed(moves: list[tuple[int, float]], base: Fraction) -> list[tuple[int, int]]:
    """Moves by packet as what to add from each of these packets on, in ticks."""
    places, whole = [], 0.0
    for number, move in sorted(moves):
        whole += move
        places.append((number, round(whole / float(base))))
    return places


def moved_at(places: list[tuple[int, int]], number: int) -> int:
    """Ticks to add to the stamps of a packet."""
    at = bisect_left(places, (number + 1,))
    return places[at - 1][1] if at else 0


def seconds_of(packet: Any, stream: Any) -> float:
    """How long a packet lasts."""
    length = float(packet.duration * packet.time_base) if packet.duration else 0.0
    context = stream.codec_context
    if stream.type == "audio" and context is not None and context.frame_size and context.sample_rate:
        exact = context.frame_size / context.sample_rate  # containers round it
        return exact if abs(exact - length) <= packet.time_base else length
    if length:
        return length
    pace = stream.average_rate if stream.type == "video" else None
    return float(1 / pace) if pace else 0.0


def spread(packets: list[Packet], track: Track) -> tuple[list[Packet], Track, int]:
    """Pictures that share a stamp, spread evenly up to the next one, and how many they are. Ticks become finer by a
    whole factor, so that all other stamps mean the same second as before. Stamps that many pictures share are dropped.
    """
    groups: dict[int, list[int]] = {}
    for n, packet in enumerate(packets):
        if packet.shown and packet.stamp > UNKNOWN:
            groups.setdefault(packet.stamp, []).append(n)
    factor = max(map(len, groups.values()), default=1)
    if factor == 1:
        return packets, track, 0
    if factor > MOST_SHARED:
        return [packet._replace(stamp=UNKNOWN) for packet in packets], track, len(packets)
    order = sorted(groups)
    following = dict(pairwise(order))
    usual = max(round(track.gap / track.base), 1) if len(order) < 2 else order[-1] - order[-2]
    finer = [p._replace(stamp=p.stamp * factor if p.stamp > UNKNOWN else UNKNOWN) for p in packets]
    for stamp, group in groups.items():
        room = (following.get(stamp, stamp + usual) - stamp) * factor
        for k, n in enumerate(group):
            finer[n] = finer[n]._replace(stamp=stamp * factor + room * k // len(group))
    return finer, track._replace(base=track.base / factor), sum(len(group) - 1 for group in groups.values())
