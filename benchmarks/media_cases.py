"""Media files of four kinds, each with what a player would show: clocks, lengths, damage, formats.

In: the name of a case. Out: its file, and what it expects of whoever reads it. Knows nothing of PAVE.

kind 1: stamps that repeat, run backward, jump or drift, and tracks to choose from. 2: long files. 3: cut or damaged
files. 4: unusual rates, channels and formats.

What is expected: the design of the file. `heard` lists (flashes, tones) in seconds after the first picture; with
several pairs, each is a legitimate reading (a gap of an hour may stay or close up). `as_ffmpeg` accepts the clock of
the ffmpeg command too: where parts are joined it lays the second one after the longer track of the first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from media_files import (
    EVENTS,
    LENGTH,
    box,
    cut,
    damage,
    ffmpeg,
    found,
    join,
    restamp_flv,
    restamp_fragments,
    restamp_mkv,
    restamp_ts,
    shifted,
    with_edits,
    without_edits,
    without_packets,
    write,
)

Moments = tuple[float, ...]
Heard = tuple[Moments, Moments]
PLAIN: Heard = (EVENTS, EVENTS)
NOTHING: Heard = ((), ())


def both(*moments: float) -> Heard:
    """Flashes and tones at the same seconds."""
    return moments, moments


TWICE = both(1.0, 3.0, 5.0, 7.0)


@dataclass(frozen=True)
class Case:
    """One file. `pictures`: how many decode, by design; None: as many as ffmpeg decodes."""

    name: str
    kind: int
    make: Callable[[Path], Any]
    heard: tuple[Heard, ...] = (PLAIN,)
    pictures: int | None = 100
    warns: bool | None = False  # None: it may
    as_ffmpeg: bool = False
    slack: int = 0  # pictures that two versions of a decoder may differ by on damaged data
    level: bool = False  # compare the loudness of the tone with `ffmpeg -ac 1`
    refused: str | None = None  # words of the error that is due
    or_refused: bool = False  # an error with words is as good
    read: dict[str, Any] = field(default_factory=dict)
    command: bool = False  # needs the command ffmpeg to be made
    small: bool = False
    witness: str = ""  # why ffmpeg cannot be asked
    seconds: float | None = None  # length


def cases() -> list[Case]:
    made = [*clean(), *streams(), *matroska(), *drifts(), *holes(), *starts(), *others(), *tracks()]
    made += [*long(), *damaged(), *rates(), *layouts(), *formats()]
    assert len({case.name for case in made}) == len(made)
    return made


def part(path: Path, number: int, **arguments: Any) -> Path:
    return write(path.with_name(f"{path.stem}-part{number}{path.suffix}"), **arguments)


def joined(*parts: dict[str, Any]) -> Callable[[Path], Any]:
    """Parts written one by one and joined by cat."""
    return lambda path: join(path, [part(path, n, **arguments) for n, arguments in enumerate(parts)])


def plain(**arguments: Any) -> Callable[[Path], Any]:
    return lambda path: write(path, **arguments)


def then(change: Callable[..., Any], *values: Any, **arguments: Any) -> Callable[[Path], Any]:
    """A file written, then changed."""
    return lambda path: change(write(path, **arguments), *values)


def converted(
    *options: object, source: dict[str, Any] | None = None, before: Sequence[object] = ()
) -> Callable[[Path], Any]:
    """A lossless file, converted by the command ffmpeg."""

    def make(path: Path) -> None:
        first = path.with_name(f"{path.stem}-source.mkv")
        write(first, **{"codec": "ffv1", "sound": "pcm_s16le", **(source or {})})
        ffmpeg(*before, "-i", first, *options, path)

    return make


def copied(
    *options: object, before: Sequence[object] = (), ext: str = "mp4", **arguments: Any
) -> Callable[[Path], Any]:
    """An MP4, copied into another by the command ffmpeg."""

    def make(path: Path) -> None:
        first = write(path.with_name(f"{path.stem}-source.{ext}"), **arguments)
        ffmpeg(*before, "-i", first, "-c", "copy", *options, path)

    return make


def after(second: float, by: float, tracks: Sequence[int] | None = None) -> Callable[[int, float], float]:
    """From this second on, the stamps of these tracks (None: of all) are shifted."""
    return lambda track, t: t + by if t >= second - 1e-3 and (tracks is None or track in tracks) else t


def moved(heard: Heard, by: float) -> Heard:
    return tuple(m + by for m in heard[0]), tuple(m + by for m in heard[1])


# ---------------------------------------------------------------- kind 1


def clean() -> list[Case]:
    def one(name: str, small: Any = False, **arguments: Any) -> Case:
        return Case(name, 1, plain(**arguments), small=small)

    pcm = {"sound": "pcm_s16le"}
    return [
        one("clean.mp4", small=True),
        one("clean.mkv"),
        one("clean.ts", small=True),
        one("clean.mov", **pcm),
        one("clean.flv"),
        one("clean.avi", codec="mpeg4", sound="pcm_s16le", codec_options={"bf": "0"}),
        one("clean-b-frames.avi", codec="mpeg4", sound="pcm_u8"),
        one("clean-mpeg2.mpg", codec="mpeg2video", sound="mp2"),
        one("clean.webm", codec="libvpx-vp9", sound="libopus"),
        one("clean-hevc.mp4", codec="hevc"),
        one("clean.3gp", codec="mpeg4"),
        one("clean-fragmented.mp4", options={"movflags": "frag_keyframe+delay_moov+default_base_moof"}),
        Case("clean.wmv", 1, converted("-c:v", "wmv2", "-c:a", "wmav2"), command=True),
        Case(
            "clean.ogv",
            1,
            converted("-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis"),
            pictures=None,
            command=True,
        ),
        Case("clean-vp8.webm", 1, plain(codec="libvpx", sound="libopus")),
        Case(
            "clean-xvid-packed.avi",
            1,
            converted("-c:v", "libxvid", "-bf", "2", "-c:a", "ac3"),
            pictures=None,
            command=True,
        ),
    ]


def streams() -> list[Case]:
    """MPEG transport and program streams."""
    one: dict[str, Any] = {}
    far, mpeg2 = {"clock": shifted(600)}, {"codec": "mpeg2video", "sound": "mp2"}
    three = both(*TWICE[0], 9.0, 11.0)
    late = {"clock": shifted(100.0)}

    def joint(name: str, *parts: dict[str, Any], **more: Any) -> Case:
        given = {"heard": (TWICE,), "pictures": 200, "warns": True, "as_ffmpeg": True, **more}
        return Case(name, 1, joined(*parts), **given)

    def restamped(name: str, clock: Callable[[int, float], float | None], **more: Any) -> Case:
        return Case(name, 1, then(restamp_ts, clock, clock=shifted(10)), **{"warns": True, "as_ffmpeg": True, **more})

    def from_ten(second: float, by: float, tracks: Sequence[int] | None = None) -> Callable[[int, float], float]:
        return after(second + 11.4, by, tracks)  # the muxer adds 1.4 s

    return [
        joint("ts-equal.ts", one, one, small=True),
        joint("ts-equal-three.ts", one, one, one, heard=(three,), pictures=300),
        joint(
            "ts-equal-five.ts",
            *[{"seconds": 2.0, "events": (1.0,)}] * 5,
            heard=(both(1.0, 3.0, 5.0, 7.0, 9.0),),
            pictures=250,
        ),
        joint("ts-equal-other-size.ts", one, {"size": (128, 96)}),
        joint("ts-equal-other-codec.ts", one, mpeg2, pictures=None, slack=8),
        # a decoder opened for HEVC reads no H.264, ffmpeg's neither: no flashes in the second part
        joint(
            "ts-equal-hevc-then-h264.ts",
            {"codec": "hevc"},
            one,
            pictures=None,
            slack=8,
            heard=(((1.0, 3.0), TWICE[0]),),
        ),
        joint("ts-equal-mpeg2.ts", mpeg2, mpeg2),
        joint("ts-equal-other-rate.ts", one, {"rate": 44100}),
        joint("ts-equal-other-fps.ts", one, {"fps": 50}, pictures=300),
        joint("ts-equal-no-sound-first.ts", {"sound": None}, one, heard=((TWICE[0], (5.0, 7.0)),)),
        joint("ts-equal-no-sound-second.ts", one, {"sound": None}, heard=((TWICE[0], (1.0, 3.0)),)),
        joint("ts-overlap-two-pictures.ts", one, {"clock": shifted(3.92)}),
        joint("ts-overlap-one-second.ts", one, {"clock": shifted(3.0)}),
        joint("ts-follows.ts", one, {"clock": shifted(4.0)}, warns=None),
        joint("ts-gap-1s.ts", one, {"clock": shifted(5.0)}, heard=(both(1.0, 3.0, 6.0, 8.0),), warns=None),
        joint("ts-gap-5s.ts", one, {"clock": shifted(9.0)}, heard=(both(1.0, 3.0, 10.0, 12.0), TWICE)),
        joint("ts-forward-5min.ts", one, {"clock": shifted(300)}, small=True),
        joint("ts-forward-2h.ts", one, {"clock": shifted(7200)}),
        joint("ts-backward-10min.ts", far, one),
        joint("ts-backward-then-forward.ts", late, one, {"clock": shifted(500)}, heard=(three,), pictures=300),
        joint("ts-wrap-join.ts", {"clock": shifted(95440.0)}, one),
        joint(
            "ts-sound-offset-differs.ts",
            one,
            {"clock": shifted(50.0), "sound_clock": shifted(50.1)},
            heard=((TWICE[0], (1.0, 3.0, 5.1, 7.1)),),
        ),
        Case("ts-wrap.ts", 1, plain(clock=shifted(95441.5)), small=True),
        Case("ts-wrap-at-the-start.ts", 1, plain(clock=shifted(95442.3177))),
        restamped("ts-sound-jumps-1h.ts", from_ten(2, 3600, (0xC0,))),
        restamped("ts-sound-jumps-back-5s.ts", from_ten(2, -5, (0xC0,))),
        restamped("ts-pictures-jump-1h.ts", from_ten(2, 3600, (0xE0,))),
        restamped("ts-pictures-jump-back-5s.ts", from_ten(2, -5, (0xE0,))),
        restamped("ts-both-jump-back-1s.ts", from_ten(2, -1)),
        restamped("ts-both-jump-12s.ts", from_ten(2, 12)),
        restamped("ts-sound-without-stamps.ts", lambda track, t: None if track == 0xC0 and t > 12 else t, warns=None),
        restamped(
            "ts-pictures-without-stamps.ts", lambda track, t: None if track == 0xE0 and t > 12.5 else t, warns=None
        ),
        Case("hls-segments.ts", 1, hls, warns=False, command=True),
        Case(
            "hls-discontinuity.ts",
            1,
            joined(*[{"seconds": 1.0, "events": (0.48,)}] * 6),
            heard=(both(*(0.48 + n for n in range(6))),),
            pictures=150,
            warns=True,
            as_ffmpeg=True,
        ),
        joint("sound-only-equal.ts", {"codec": None}, {"codec": None}, heard=(((), TWICE[0]),), pictures=0),
        joint("pictures-only-equal.ts", {"sound": None}, {"sound": None}, heard=((TWICE[0], ()),)),
        joint("mpg-equal.mpg", mpeg2, mpeg2),
        joint("mpg-forward-5min.mpg", mpeg2, {**mpeg2, "clock": shifted(300)}),
        joint("mpg-follows.mpg", mpeg2, {**mpeg2, "clock": shifted(4)}, warns=None),
        joint(
            "m2v-equal.m2v",
            {"codec": "mpeg2video", "sound": None, "format": "mpeg2video"},
            {"codec": "mpeg2video", "sound": None, "format": "mpeg2video"},
            heard=((TWICE[0], ()),),
            warns=None,
        ),
        joint("h264-equal.h264", {"sound": None}, {"sound": None}, heard=((TWICE[0], ()),), warns=None),
        joint(
            "aac-equal.aac",
            {"codec": None, "format": "adts"},
            {"codec": None, "format": "adts"},
            heard=(((), TWICE[0]),),
            pictures=0,
            warns=None,
        ),
        joint(
            "mp3-equal.mp3",
            {"codec": None, "sound": "mp3"},
            {"codec": None, "sound": "mp3"},
            heard=(((), TWICE[0]),),
            pictures=0,
            warns=None,
        ),
        joint(
            "ac3-equal.ac3",
            {"codec": None, "sound": "ac3"},
            {"codec": None, "sound": "ac3"},
            heard=(((), TWICE[0]),),
            pictures=0,
            warns=None,
        ),
        joint(
            "mjpeg-equal.mjpeg",
            {"codec": "mjpeg", "sound": None},
            {"codec": "mjpeg", "sound": None},
            heard=((TWICE[0], ()),),
            warns=None,
        ),
    ]


def hls(path: Path) -> None:
    """Segments of one stream, joined."""
    first = write(path.with_name(f"{path.stem}-source.mp4"))
    ffmpeg("-i", first, "-c", "copy", "-f", "segment", "-segment_time", 1, path.with_name(f"{path.stem}-segment%d.ts"))
    join(path, sorted(path.parent.glob(f"{path.stem}-segment*.ts")))


def matroska() -> list[Case]:
    def one(
        name: str, clock: Callable[[int, float], float], codec: str = "h264", sound: str = "aac", **more: Any
    ) -> Case:
        return Case(name, 1, then(restamp_mkv, clock, codec=codec, sound=sound), **{"warns": True, **more})

    def pairs(track: int, t: float) -> float:
        number = round(t * 25)
        return (number - 1 + number % 2) / 25 if track == 1 and number else t

    web = {"codec": "libvpx", "sound": "libopus"}
    kept_hour: Heard = ((1.0, 3603.0), (1.0, 3603.0))
    return [
        one("mkv-restamped.mkv", lambda track, t: t, warns=False),
        one("mkv-backward-2s.mkv", after(2, -2), small=True),
        one("mkv-backward-50ms.mkv", after(2, -0.05), heard=(PLAIN, both(1.0, 2.95))),
        one("mkv-sound-backward-2s.mkv", after(2, -2, (2,))),
        one("mkv-pictures-backward-2s.mkv", after(2, -2, (1,))),
        one("mkv-forward-1h.mkv", after(2, 3600), heard=(PLAIN, kept_hour), small=True),
        one("mkv-sound-forward-1h.mkv", after(2, 3600, (2,)), heard=(PLAIN, ((1.0, 3.0), (1.0, 3603.0)))),
        one("mkv-pictures-forward-1h.mkv", after(2, 3600, (1,)), heard=(PLAIN, ((1.0, 3603.0), (1.0, 3.0)))),
        one("mkv-forward-3s.mkv", after(2, 3), heard=(both(1.0, 6.0),)),
        one("mkv-stamps-in-pairs.mkv", pairs, warns=None, small=True),
        one("mkv-all-pictures-at-zero.mkv", lambda track, t: 0.0 if track == 1 else t),
        one("mkv-all-sound-at-zero.mkv", lambda track, t: 0.0 if track == 2 else t),
        one("mkv-begins-at-1h.mkv", lambda track, t: t + 3600, warns=False),
        one(
            "mkv-pictures-begin-at-1h.mkv",
            lambda track, t: t + 3600 * (track == 1),
            heard=(PLAIN, ((1.0, 3.0), (-3599.0, -3597.0))),
            or_refused=True,
            warns=None,
        ),
        one("webm-backward-2s.webm", after(2, -2), **web),
        one("webm-forward-30s.webm", after(2, 30), **web, heard=(PLAIN, both(1.0, 33.0))),
        one("mkv-one-stamp-far.mkv", lambda track, t: t + 1000 if track == 1 and round(t * 25) == 50 else t),
        one("mkv-one-sound-stamp-far.mkv", lambda track, t: t + 1000 if track == 2 and 2.0 <= t < 2.02 else t),
        one("mkv-one-stamp-back.mkv", lambda track, t: t - 1.5 if track == 1 and round(t * 25) == 50 else t),
        Case("mkv-backward-pcm.mkv", 1, then(restamp_mkv, after(2, -2), codec="mjpeg", sound="pcm_s16le"), warns=True),
    ]


def drifts() -> list[Case]:
    """The sound's stamps run slower or faster than its samples; 10 s, events near both ends."""
    events = (1.0, 5.0, 9.0)
    base = {"seconds": 10.0, "events": events, "fps": 10}

    def one(name: str, ratio: float, small: bool = False, **more: Any) -> Case:
        arguments = {**base, "ratio": ratio, **more}
        due = abs(ratio - 1) * 10 > 0.1
        why = "" if abs(ratio - 1) < 0.002 else "aresample=async=1 corrects only from 0.1 s on"
        return Case(
            name,
            1,
            plain(**arguments),
            heard=((events, events),),
            warns=True if due else None,
            witness=why,
            small=small,
        )

    pcm = {"codec": "mjpeg", "sound": "pcm_s16le", "rate": 16000, "block": 800}
    ratios = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.001, 1.005, 1.02, 1.05, 1.1)
    return [
        *(one(f"drift-{ratio}.mkv", ratio, small=ratio in (0.98, 1.02), **pcm) for ratio in ratios),
        one("drift-aac-0.98.mp4", 0.98),
        one("drift-aac-1.02.mp4", 1.02),
        one("drift-aac-0.98.ts", 0.98),
        one("drift-aac-1.02.ts", 1.02),
        one("drift-opus-0.98.webm", 0.98, codec="libvpx", sound="libopus"),
        one("drift-aac-0.98.flv", 0.98),
        one("drift-aac-1.02.flv", 1.02),
        one("drift-1.02-stereo.mkv", 1.02, **{**pcm, "layout": "stereo", "rate": 44100, "block": 2205}),
    ]


def holes() -> list[Case]:
    """Sound with holes, overlaps, jitter."""

    def missing(low: float, high: float) -> Callable[[int, float], bool]:
        return lambda track, t: track == 2 and low <= t < high

    def often(track: int, t: float) -> bool:
        return track == 2 and 1.5 < t < 2.9 and round(t * 20) % 5 == 0

    def dropped(drop: Callable[[int, float], bool], **arguments: Any) -> Callable[[Path], Any]:
        return lambda path: restamp_mkv(write(path, **arguments), lambda track, t: t, drop)

    def jitter(by: float, seed: int) -> Callable[[Path], Any]:
        random = Random(seed)
        return then(restamp_mkv, lambda track, t: t + random.uniform(-by, by) * (track == 2 and t > 0.05), **pcm)

    pcm = {"codec": "mjpeg", "sound": "pcm_s16le", "rate": 16000, "block": 800}

    def slipped(by: float) -> Callable[[Path], Any]:
        """From 2 s on the sound's stamps are behind: its samples overlap what was there, or leave a hole."""
        return then(restamp_mkv, after(2, by, (2,)), **pcm)

    return [
        Case("hole-0.5s.mkv", 1, dropped(missing(2.0, 2.5), **pcm), warns=True, small=True),
        Case("hole-0.5s-aac.mkv", 1, dropped(missing(2.0, 2.5)), warns=True),
        Case("hole-0.1s.mkv", 1, dropped(missing(2.0, 2.09), **pcm), warns=True),
        Case("hole-50ms-often.mkv", 1, dropped(often, **pcm), warns=True),
        Case(
            "hole-21ms-often-aac.mkv",
            1,
            dropped(lambda k, t: k == 2 and 1.3 < t < 2.9 and round(t * 1000) % 5 == 0),
            warns=None,
        ),
        Case("overlap-0.3s.mkv", 1, slipped(-0.3), heard=(((1.0, 3.0), (1.0, 2.7)),), warns=True),
        Case("overlap-0.1s.mkv", 1, slipped(-0.1), heard=(((1.0, 3.0), (1.0, 2.9)),), warns=True),
        Case("slip-0.3s.mkv", 1, slipped(0.3), heard=(((1.0, 3.0), (1.0, 3.3)),), warns=True),
        Case(
            "slip-40ms.mkv",
            1,
            slipped(0.04),
            heard=(((1.0, 3.0), (1.0, 3.04)),),
            warns=None,
            witness="aresample=async=1 corrects only from 0.1 s on",
        ),
        Case("jitter-10ms.mkv", 1, jitter(0.010, 1), warns=False),
        Case("jitter-25ms.mkv", 1, jitter(0.025, 2), warns=None),
        Case("jitter-40ms.mkv", 1, jitter(0.040, 3), warns=None),
        Case(
            "jitter-40ms-drift-0.98.mkv",
            1,
            jitter_and_drift,
            heard=(both(1.0, 5.0, 9.0),),
            warns=None,
            witness="aresample=async=1 corrects only from 0.1 s on",
        ),
        Case(
            "picture-jitter-15ms.mkv",
            1,
            then(
                restamp_mkv,
                lambda k, t: t + 0.015 * (-1) ** round(t * 25) * (k == 1 and t > 0.05),
                **{"codec": "mjpeg"},
            ),
            warns=False,
        ),
        Case(
            "hole-in-pictures-1s.mkv",
            1,
            dropped(lambda k, t: k == 1 and 1.5 < t < 2.5, codec="mjpeg"),
            pictures=75,
            warns=None,
        ),
    ]


def jitter_and_drift(path: Path) -> None:
    random = Random(4)
    write(
        path,
        seconds=10.0,
        events=(1.0, 5.0, 9.0),
        codec="mjpeg",
        sound="pcm_s16le",
        rate=16000,
        block=800,
        ratio=0.98,
        fps=10,
    )
    restamp_mkv(path, lambda track, t: t + random.uniform(-0.04, 0.04) * (track == 2 and t > 0.05))


def starts() -> list[Case]:
    """One track begins earlier than the other; edit lists; variable frame rates."""
    moments = [0.0]
    random = Random(5)
    while moments[-1] < 3.9:
        moments.append(round(moments[-1] + random.choice((0.02, 0.04, 0.1, 0.2)), 3))
    moments = sorted({*(m for m in moments if not any(e < m < e + 0.1 for e in EVENTS)), *EVENTS})
    held = [n / 25 for n in range(100) if not 38 <= n < 62]
    late: Heard = ((1.0, 3.0), (3.0,))
    cases = []
    for ext in ("mp4", "mkv", "ts", "flv"):
        later = plain(sound_span=(1.5, 4.0))
        cases += [Case(f"sound-starts-1.5s-late.{ext}", 1, later, heard=(late,), warns=None)]
        pictures_late = plain(moments=[n / 25 for n in range(50, 100)])
        heard = ((1.0,), (-1.0, 1.0))
        cases += [
            Case(
                f"pictures-start-2s-late.{ext}",
                1,
                pictures_late,
                heard=(heard, ((1.0,), (1.0,))),
                pictures=50,
                warns=None,
            )
        ]
    parts = ((1.0, 0.48), (2.0, 2.0))  # of 4 s: 0.48 .. 1.48 and 2 .. 4
    return [
        *cases,
        Case(
            "sound-starts-0.5s-early.mkv",
            1,
            plain(sound_span=(-0.5, 4.0), codec="mjpeg", sound="pcm_s16le"),
            small=True,
        ),
        Case("sound-starts-0.5s-early.mp4", 1, plain(sound_span=(-0.5, 4.0))),
        Case("sound-ends-2s-early.mp4", 1, plain(sound_span=(0.0, 2.0)), heard=(((1.0, 3.0), (1.0,)),), warns=None),
        Case(
            "pictures-end-2s-early.mp4",
            1,
            plain(moments=[n / 25 for n in range(50)]),
            heard=(((1.0,), (1.0, 3.0)),),
            pictures=50,
            warns=None,
        ),
        Case("vfr.mp4", 1, plain(moments=moments), pictures=len(moments), small=True),
        Case("vfr.mkv", 1, plain(moments=moments), pictures=len(moments)),
        Case("vfr.ts", 1, plain(moments=moments), pictures=len(moments)),
        Case("vfr.flv", 1, plain(moments=moments), pictures=len(moments)),
        Case("vfr-held.webm", 1, plain(moments=held, codec="libvpx", sound="libopus"), pictures=len(held)),
        Case(
            "edit-cut-in-front.mp4",
            1,
            copied(before=("-ss", "0.72"), codec_options={"g": "50"}),
            heard=(both(0.28, 2.28),),
            pictures=None,
            command=True,
        ),
        Case(
            "edit-two-parts.mp4",
            1,
            lambda p: with_edits(
                with_edits(write(p, codec="mjpeg", sound="pcm_s16le", format="mov"), 0, parts), 1, parts
            ),
            heard=(both(0.52, 2.0),),
            pictures=75,
            warns=None,
            as_ffmpeg=True,
        ),
        Case(
            "edit-pictures-delayed.mp4",
            1,
            then(with_edits, 0, ((0.5, -1.0), (4.0, 0.0)), codec_options={"x264-params": "bframes=0"}),
            heard=(((1.0, 3.0), (0.5, 2.5)),),
        ),
        Case(
            "edit-sound-delayed.mp4",
            1,
            then(with_edits, 1, ((0.5, -1.0), (4.0, 0.0)), sound="pcm_s16le", format="mov"),
            heard=(((1.0, 3.0), (1.5, 3.5)),),
        ),
        Case(
            "edit-sound-trimmed.mp4",
            1,
            then(with_edits, 1, ((3.5, 0.5),), sound="pcm_s16le", format="mov"),
            heard=(((1.0, 3.0), (0.5, 2.5)),),
        ),
    ]


def others() -> list[Case]:
    """FLV, AVI, MP4 fragments, WMV, Ogg, GIF, concat."""
    fragments = {"options": {"movflags": "frag_keyframe+delay_moov+default_base_moof"}, "codec_options": {"g": "25"}}

    def fragmented(name: str, shift: Callable[[int, int], float], **more: Any) -> Case:
        return Case(name, 1, then(restamp_fragments, shift, **fragments), **{"warns": True, "as_ffmpeg": True, **more})

    def flv(name: str, clock: Callable[[int, float], float], **more: Any) -> Case:
        return Case(name, 1, then(restamp_flv, clock), **{"warns": True, **more})

    def table(path: Path, new: float, which: int, at: int) -> None:
        """One entry of a time-to-sample table of a video with variable frame rate."""
        data = bytearray(path.read_bytes())
        place = found(data, b"stts")[which] + 12 + 8 * at + 4
        struct.pack_into(">I", data, place, new and round(new * 90000))
        path.write_bytes(data)

    def stretched(path: Path) -> None:
        moments = [n / 25 for n in range(50)] + [2.1 + n / 25 for n in range(50)]
        write(path, moments=moments, events=(1.0, 3.1), seconds=4.1, codec_options={"x264-params": "bframes=0"})
        table(without_edits(path), 3600.0, 0, 1)

    ogg = ("-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis")

    def chained(path: Path) -> None:
        first = path.with_name(f"{path.stem}-part{path.suffix}")
        converted(*(ogg if path.suffix == ".ogv" else ("-vn", "-c:a", "libvorbis")))(first)
        join(path, [first, first])

    def concat(path: Path, *parts: dict[str, Any]) -> None:
        names = [part(path.with_suffix(".mp4"), n, **arguments) for n, arguments in enumerate(parts)]
        listed = path.with_suffix(".txt")
        listed.write_text("".join(f"file '{name}'\n" for name in names))
        ffmpeg("-f", "concat", "-safe", "0", "-i", listed, "-c", "copy", path)

    short = {"seconds": 2.0, "events": (1.0,)}
    three: Heard = both(1.0, 3.0, 5.0)
    delays = converted(
        "-vf",
        "settb=1/100,setpts=if(gte(N\\,5)\\,(N-5)*20+25\\,N*5)",
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "1/100",
        source={"fps": 5, "sound": None, "events": (1.0, 3.0)},
    )
    return [
        flv("flv-backward-2s.flv", after(2, -2), small=True),
        flv("flv-forward-1h.flv", after(2, 3600), heard=(PLAIN, both(1.0, 3603.0))),
        flv("flv-sound-forward-1h.flv", after(2, 3600, (8,)), heard=(PLAIN, ((1.0, 3.0), (1.0, 3603.0)))),
        flv(
            "flv-coarse-100ms-sound.flv",
            lambda track, t: int(t * 10) / 10 if track == 8 else t,
            warns=None,
            witness="aresample=async=1 corrects only from 0.1 s on",
        ),
        flv("flv-begins-at-5h.flv", lambda track, t: t + 18000, warns=False),
        Case("flv-joined.flv", 1, joined({}, {}), heard=(TWICE, PLAIN), pictures=None, warns=None, as_ffmpeg=True),
        fragmented("fragments-backward-2s.mp4", lambda track, n: -2.0 * (n >= 2)),
        fragmented("fragments-forward-1h.mp4", lambda track, n: 3600.0 * (n >= 2), heard=(PLAIN, both(1.0, 3603.0))),
        fragmented("fragments-begin-at-1h.mp4", lambda track, n: 3600.0, warns=False, as_ffmpeg=False),
        Case(
            "fragments-joined.mp4",
            1,
            joined(fragments, fragments),
            heard=(TWICE, PLAIN),
            pictures=200,  # FFmpeg's demuxer marks 25 as cut off by an edit list, and there is none
            warns=None,
            as_ffmpeg=True,
        ),
        Case(
            "mp4-one-picture-an-hour.mp4",
            1,
            stretched,
            heard=(((1.0, 3602.96), (1.0, 3.1)), both(1.0, 3.1)),
            warns=None,
            as_ffmpeg=True,
        ),
        Case("mp4-joined.mp4", 1, joined({}, {}), warns=None),
        Case("mkv-joined.mkv", 1, joined({}, {}), heard=(TWICE, PLAIN), pictures=None, warns=None, as_ffmpeg=True),
        Case(
            "wav-joined.wav",
            1,
            joined({"codec": None, "sound": "pcm_s16le"}, {"codec": None, "sound": "pcm_s16le"}),
            heard=(((), EVENTS), ((), TWICE[0])),
            pictures=0,
            warns=None,
            as_ffmpeg=True,
        ),
        # FFmpeg's demuxer stamps the headers of the second part as pictures before it: sound and pictures begin 0.12 s
        # late, together. The command ffmpeg shows no picture of the second part; a part has 92 that are not repeated.
        Case(
            "ogv-chained.ogv",
            1,
            chained,
            heard=(TWICE, both(1.0, 3.0, 5.12, 7.12)),
            pictures=184,
            warns=None,
            as_ffmpeg=True,
            command=True,
        ),
        Case("ogg-chained.ogg", 1, chained, heard=(((), TWICE[0]),), pictures=0, warns=None, command=True),
        Case(
            "opus-chained.ogg",
            1,
            joined({"codec": None, "sound": "libopus"}, {"codec": None, "sound": "libopus"}),
            heard=(((), TWICE[0]),),
            pictures=0,
            warns=None,
        ),
        Case(
            "flac-joined.flac",
            1,
            joined({"codec": None, "sound": "flac"}, {"codec": None, "sound": "flac"}),
            heard=(((), EVENTS), ((), TWICE[0])),
            pictures=0,
            warns=None,
            as_ffmpeg=True,
        ),
        Case(
            "concat-three.mkv",
            1,
            lambda p: concat(p, short, short, short),
            heard=(three,),
            pictures=150,
            warns=None,
            as_ffmpeg=True,
            command=True,
        ),
        Case(
            "concat-three.mp4",
            1,
            lambda p: concat(p, short, short, short),
            heard=(three,),
            pictures=150,
            warns=None,
            as_ffmpeg=True,
            command=True,
        ),
        Case(
            "concat-long-sound.mkv",
            1,
            lambda p: concat(p, {**short, "sound_span": (0.0, 2.5)}, short),
            heard=(both(1.0, 3.5),),
            pictures=100,
            warns=None,
            as_ffmpeg=True,
            command=True,
        ),
        Case(
            "wmv-both-jump-60s.wmv",
            1,
            converted(
                "-vf",
                "setpts=PTS+if(gte(T\\,2)\\,60/TB\\,0)",
                "-af",
                "asetpts=PTS+if(gte(T\\,2)\\,60/TB\\,0)",
                "-fps_mode",
                "passthrough",
                "-c:v",
                "wmv2",
                "-c:a",
                "wmav2",
            ),
            heard=(PLAIN, both(1.0, 63.0)),
            warns=True,
            command=True,
        ),
        Case(
            "mov-both-jump-60s.mov",
            1,
            plain(clock=lambda t: t + 60 * (t >= 2)),
            heard=(PLAIN, both(1.0, 63.0)),
            warns=True,
        ),
        Case(
            "mp4-both-jump-1h.mp4",
            1,
            plain(clock=lambda t: t + 3600 * (t >= 2)),
            heard=(PLAIN, both(1.0, 3603.0)),
            warns=True,
        ),
        Case(
            "gif-20ms.gif",
            1,
            converted("-r", "50", source={"fps": 50, "sound": None}),
            heard=((EVENTS, ()),),
            pictures=200,
            command=True,
        ),
        Case("gif-variable.gif", 1, delays, heard=(((0.25, 2.25), ()),), pictures=20, command=True, as_ffmpeg=True),
        Case(
            "gif-no-delay.gif", 1, no_delay, heard=(((5 * 0.1, 15 * 0.1), ()),), pictures=20, command=True, warns=None
        ),
        Case(
            "avi-sound-late.avi",
            1,
            plain(codec="mpeg4", sound="pcm_s16le", sound_span=(1.5, 4.0), codec_options={"bf": "0"}),
            heard=(late_sound(),),
            warns=None,
            as_ffmpeg=True,
        ),
        Case(
            "avi-mp3-vbr.avi",
            1,
            converted("-c:v", "mpeg4", "-c:a", "libmp3lame", "-q:a", "4"),
            command=True,
            as_ffmpeg=True,
        ),
        Case(
            "avi-held-pictures.avi",
            1,
            converted(
                "-vf", "select='not(between(n,38,61))'", "-fps_mode", "vfr", "-c:v", "mjpeg", "-c:a", "pcm_s16le"
            ),
            pictures=None,
            command=True,
            warns=None,
        ),
    ]


def late_sound() -> Heard:
    return ((1.0, 3.0), (3.0,))


def no_delay(path: Path) -> None:
    """Delays of 0, which players show as 0.1 s."""
    converted(source={"fps": 5, "sound": None})(path)
    data = bytearray(path.read_bytes())
    for at in found(data, b"\x21\xf9\x04"):
        data[at + 4 : at + 6] = b"\0\0"
    path.write_bytes(data)


def tracks() -> list[Case]:
    """Which of several tracks a player plays."""
    v, good, silent = {"codec": "h264"}, {"sound": "aac"}, {"sound": "aac", "events": ()}
    other = {"codec": "h264", "events": (2.0,)}

    def d(track: dict[str, Any], name: str) -> dict[str, Any]:
        return {**track, "disposition": av_disposition(name)}

    def one(name: str, *specs: dict[str, Any], small: bool = False, **more: Any) -> Case:
        return Case(name, 1, plain(tracks=specs), **{"warns": None, "small": small, **more})

    quiet: Heard = (EVENTS, ())
    return [
        one("default-sound-second.mkv", v, d(silent, ""), d(good, "default"), small=True),
        one("default-sound-second.mp4", v, d(silent, ""), d(good, "default")),
        one("default-sound-third.mkv", v, d(silent, ""), d(silent, ""), d(good, "default")),
        one("no-default-sound.mkv", v, d(good, ""), d(silent, "")),
        one("both-default-sounds.mkv", v, d(good, "default"), d(silent, "default")),
        one("visual-impaired-first.mkv", v, d(silent, "visual_impaired"), d(good, "default")),
        one("visual-impaired-first-unmarked.mkv", v, d(silent, "visual_impaired"), d(good, "")),
        one("commentary-first.mkv", v, d(silent, "comment"), d(good, "")),
        one("commentary-first.mp4", v, d(silent, "comment"), d(good, "default")),
        one("default-pictures-second.mkv", d(other, ""), d(v, "default"), good),
        one("default-pictures-second.mp4", d(other, ""), d(v, "default"), good),
        one(
            "attached-picture-second.mp4",
            v,
            d({"codec": "mjpeg", "events": (0.0,)}, "attached_pic"),
            good,
            witness="made with many pictures in the attached track",
            pictures=None,
        ),
        one("choose-sound-2.mkv", v, d(good, "default"), d(silent, ""), heard=(quiet,), read={"audio_track": 1}),
        one("choose-sound-1.mkv", v, d(silent, ""), d(good, "default"), heard=(quiet,), read={"audio_track": 0}),
        one(
            "choose-pictures-2.mp4",
            d(v, "default"),
            d(other, ""),
            good,
            heard=(((2.0,), EVENTS),),
            read={"video_track": 1},
        ),
        Case("choose-sound-that-is-not-there.mp4", 1, plain(), refused="track", read={"audio_track": 3}),
        Case(
            "cover-and-film.m4a",
            1,
            cover,
            heard=(((), EVENTS),),
            pictures=0,
            command=True,
            witness="ffmpeg maps the cover as pictures",
        ),
        Case(
            "cover.mp3",
            1,
            cover,
            heard=(((), EVENTS),),
            pictures=0,
            command=True,
            witness="ffmpeg maps the cover as pictures",
        ),
        Case("cover-first.mp4", 1, cover_first, command=True),
    ]


def av_disposition(name: str) -> Any:
    from av.stream import Disposition

    return Disposition(0) if not name else Disposition[name]


def cover(path: Path) -> None:
    sound = write(path.with_name(f"{path.stem}-sound.wav"), codec=None, sound="pcm_s16le")
    image = path.with_name(f"{path.stem}-cover.png")
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", 1, image)
    ffmpeg(
        "-i",
        sound,
        "-i",
        image,
        "-map",
        0,
        "-map",
        1,
        "-c:v",
        "mjpeg" if path.suffix == ".m4a" else "copy",
        "-disposition:v",
        "attached_pic",
        path,
    )


def cover_first(path: Path) -> None:
    film, image = write(path.with_name(f"{path.stem}-film.mp4")), path.with_name(f"{path.stem}-cover.png")
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", 1, image)
    ffmpeg("-i", image, "-i", film, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic", path)


# ---------------------------------------------------------------- kind 2


def long() -> list[Case]:
    hour = {"codec": None, "seconds": 3600.0, "events": (1.0, 3599.0), "rate": 8000}
    far: Heard = ((), (1.0, 3599.0))
    film = {"seconds": 1200.0, "fps": 1, "events": (600.0,), "sound": None, "size": (32, 32)}
    quarter = {"seconds": 900.0, "fps": 2, "events": (1.0, 898.0), "rate": 8000, "size": (32, 32)}
    return [
        Case("sound-1h.flac", 2, plain(**hour, sound="flac"), heard=(far,), pictures=0, seconds=3600.0),
        Case("sound-1h.mp3", 2, plain(**hour, sound="mp3"), heard=(far,), pictures=0, seconds=3600.0),
        Case("sound-1h.m4a", 2, plain(**hour, sound="aac"), heard=(far,), pictures=0, seconds=3600.0),
        Case(
            "pictures-20min-one-key.mp4",
            2,
            plain(**film, codec_options={"g": "100000", "x264-params": "bframes=0:keyint=infinite:scenecut=0"}),
            heard=(((600.0,), ()),),
            pictures=1200,
            seconds=1200.0,
        ),
        Case("film-15min.mkv", 2, plain(**quarter), heard=(both(1.0, 898.0),), pictures=1800, seconds=900.0),
        Case(
            "limit-too-small.mkv",
            2,
            plain(seconds=10.0),
            refused="timeout",
            read={"timeout": 0.001},
            small=True,
        ),
        Case("no-limit.mp4", 2, plain(), read={"timeout": float("inf")}, small=True),
    ]


# ---------------------------------------------------------------- kind 3


def damaged() -> list[Case]:
    first: Heard = ((1.0,), (1.0,))
    fast = {"options": {"movflags": "faststart"}}

    def short(name: str, **more: Any) -> Case:
        arguments = {
            key: more.pop(key) for key in ("codec", "sound", "options", "format", "codec_options") if key in more
        }
        return Case(
            name,
            3,
            then(cut, 0.62, **arguments),
            **{"heard": (first,), "pictures": None, "warns": True, "slack": 2, "as_ffmpeg": True, **more},
        )

    def hurt(name: str, *place: Any, **more: Any) -> Case:
        arguments = {
            key: more.pop(key) for key in ("codec", "sound", "options", "format", "codec_options") if key in more
        }
        given = {"heard": (PLAIN,), "pictures": None, "warns": True, "slack": 8, "as_ffmpeg": True, **more}
        return Case(name, 3, then(damage, *(place or (0.45, 0.55)), **arguments), **given)

    only = {"codec": None, "heard": (((), (1.0,)),), "pictures": 0}
    return [
        short("cut.mp4", **fast, small=True),
        short("cut.mkv", small=True),
        short("cut.ts", warns=None),
        short("cut.flv"),
        short("cut.avi", codec="mpeg4", sound="pcm_s16le", codec_options={"bf": "0"}),
        short("cut.mov", sound="pcm_s16le", **fast),
        short("cut.webm", codec="libvpx", sound="libopus", heard=(PLAIN, first)),
        short("cut-fragmented.mp4", options={"movflags": "frag_keyframe+delay_moov+default_base_moof"}, warns=None),
        short("cut.wav", sound="pcm_s16le", **only),
        short("cut.flac", sound="flac", **only),
        short("cut.mp3", sound="mp3", **only),
        short("cut.m4a", sound="aac", **fast, **only),
        Case(
            "cut.ogg",
            3,
            lambda p: cut(converted("-vn", "-c:a", "libvorbis", "-page_duration", "100000")(p) or p, 0.62),
            heard=(((), (1.0,)),),
            pictures=0,
            warns=None,
            command=True,
        ),
        Case(
            "cut.wmv",
            3,
            lambda p: cut(converted("-c:v", "wmv2", "-c:a", "wmav2")(p) or p, 0.62),
            heard=(first,),
            pictures=None,
            warns=True,
            slack=2,
            command=True,
        ),
        Case(
            "cut.gif",
            3,
            lambda p: cut(converted(source={"sound": None, "fps": 10})(p) or p, 0.62),
            heard=(((1.0,), ()),),
            pictures=None,
            warns=None,
            slack=1,
            command=True,
        ),
        Case("cut-index-lost.mp4", 3, then(cut, 0.9), refused="cut short|index", small=True),
        Case("cut-last-2s.mkv", 3, tail_lost, heard=(((1.0,), (1.0,)),), pictures=None, warns=True),
        Case("cut-tail-10-percent.mp4", 3, then(cut, 0.9, **fast), heard=(PLAIN,), pictures=None, slack=2, warns=True),
        Case("cut-tail-3-percent.mkv", 3, then(cut, 0.97), heard=(PLAIN,), pictures=None, slack=2, warns=None),
        hurt("zeros.mp4", small=True),
        hurt("zeros.mkv", small=True),
        hurt("zeros.ts"),
        hurt("zeros.flv"),
        hurt("zeros.avi", codec="mpeg4", sound="pcm_s16le", codec_options={"bf": "0"}),
        hurt("zeros.mpg", codec="mpeg2video", sound="mp2"),
        hurt("random.mp4", 0.45, 0.55, 1),
        hurt("random.mkv", 0.45, 0.55, 2),
        hurt("random.ts", 0.45, 0.55, 3),
        hurt("random.webm", 0.45, 0.55, 4, codec="libvpx", sound="libopus"),
        hurt("random-hevc.mp4", 0.45, 0.55, 5, codec="hevc"),
        hurt("zeros.m4a", codec=None, sound="aac", pictures=0, heard=(((), EVENTS),)),
        hurt("random.mp3", 0.45, 0.55, 6, codec=None, sound="mp3", pictures=0, heard=(((), EVENTS),)),
        hurt("random.flac", 0.45, 0.55, 7, codec=None, sound="flac", pictures=0, heard=(((), EVENTS),)),
        Case("lost-packets.ts", 3, then(without_packets, 40), as_ffmpeg=True, pictures=None, warns=True, slack=8),
        Case("empty.mp4", 3, lambda p: p.write_bytes(b""), refused="empty"),
        Case("text.mp4", 3, lambda p: p.write_text("this is no film\n" * 20), refused="not a media file|not media"),
    ]


def tail_lost(path: Path) -> None:
    restamp_mkv(write(path), lambda track, t: t, lambda track, t: t > 2.0)


# ---------------------------------------------------------------- kind 4


def rates() -> list[Case]:
    odd = (22254, 11127, 44099, 44101, 44118, 31469, 22051, 16001, 8001, 96001, 192000, 4000, 11025, 37800)
    made = [
        Case(
            f"rate-{rate}.{'mov' if rate % 2 else 'mkv'}",
            4,
            plain(codec="mjpeg", sound="pcm_s16le", rate=rate),
            read={"audio_rate": 16000},
            small=rate in (22254, 44099),
        )
        for rate in odd
    ]
    made += [
        Case(
            f"rate-{rate}.wav",
            4,
            plain(codec=None, sound="pcm_s16le", rate=rate),
            heard=(((), EVENTS),),
            pictures=0,
            read={"audio_rate": 48000},
        )
        for rate in (44099, 11127, 96001)
    ]
    made += [
        Case(f"rate-{rate}-aac.mp4", 4, plain(rate=rate), read={"audio_rate": 48000}) for rate in (7350, 12000, 96000)
    ]
    return made


def layouts() -> list[Case]:
    def one(sound: str, ext: str, layout: str, channel: int, **more: Any) -> Case:
        name = f"{layout.replace('(', '-').replace(')', '')}-{sound}-channel{channel}.{ext}"
        arguments = {"codec": None, "sound": sound, "layout": layout, "channel": channel, **more}
        return Case(
            name,
            4,
            plain(**arguments),
            heard=(((), EVENTS),),
            pictures=0,
            level=True,
            small=name == "5.1-pcm_s16le-channel2.wav",
        )

    s = [one("pcm_s16le", "wav", "5.1", n) for n in (0, 2, 4)]
    s += [
        one("pcm_s16le", "wav", layout, n)
        for layout, n in (
            ("stereo", 0),
            ("7.1", 2),
            ("7.1", 6),
            ("quad", 3),
            ("2.1", 0),
            ("5.1(side)", 2),
            ("5.1(side)", 4),
            ("5.0", 2),
            ("3.0", 2),
            ("6.1", 2),
        )
    ]
    s += [
        one("ac3", "ac3", layout, n) for layout, n in (("5.1(side)", 2), ("5.1(side)", 0), ("stereo", 1), ("mono", 0))
    ]
    s += [one("aac", "m4a", layout, n) for layout, n in (("5.1", 2), ("5.1", 0), ("7.1", 2), ("stereo", 0), ("5.1", 5))]
    s += [one("libopus", "mka", layout, n) for layout, n in (("5.1", 2), ("7.1", 2), ("quad", 0))]
    s += [one("flac", "flac", layout, n) for layout, n in (("5.1", 2), ("7.1", 2), ("quad", 1))]
    s += [one("pcm_f32le", "mka", "5.1", 2), one("eac3", "mka", "5.1(side)", 2)]
    return s


def formats() -> list[Case]:
    only = {"heard": (((), EVENTS),), "pictures": 0, "level": True}
    s = [
        Case(f"{codec}.{ext}", 4, plain(codec=None, sound=codec), **only)
        for codec, ext in (
            ("pcm_u8", "wav"),
            ("pcm_s24le", "wav"),
            ("pcm_s32le", "wav"),
            ("pcm_f32le", "wav"),
            ("pcm_f64le", "wav"),
            ("pcm_mulaw", "wav"),
            ("pcm_alaw", "wav"),
            ("pcm_s16be", "aiff"),
            ("pcm_s8", "aiff"),
            ("alac", "m4a"),
            ("adpcm_ms", "wav"),
            ("adpcm_ima_wav", "wav"),
        )
    ]
    moving = "-c:v", "libwebp", "-lossless", "1", "-loop", "0", "-vf", "fps=5"
    cenc = (
        "-encryption_scheme",
        "cenc-aes-ctr",
        "-encryption_key",
        "76a6c65c5ea762046bd749a2e632ccbb",
        "-encryption_kid",
        "a7e61c373e219033c21091fa607bf3b8",
    )
    return [
        *s,
        Case(
            "animated.webp",
            4,
            converted(*moving, source={"sound": None, "fps": 5}),
            heard=((EVENTS, ()),),
            pictures=20,
            command=True,
            witness="this ffmpeg cannot decode animated WebP",
            or_refused=False,
        ),
        Case(
            "animated-apng.png",
            4,
            converted("-f", "apng", "-plays", "0", source={"sound": None, "fps": 5}),
            heard=((EVENTS, ()),),
            pictures=20,
            command=True,
        ),
        Case(
            "animated-pillow.webp",
            4,
            pillow_webp,
            heard=((EVENTS, ()),),
            pictures=20,
            witness="this ffmpeg cannot decode animated WebP",
            small=True,
        ),
        Case("encrypted.mp4", 4, copied(*cenc), refused="encrypt", command=True, witness="ffmpeg decodes noise"),
        Case(
            "encrypted-sound-only.m4a",
            4,
            copied("-vn", *cenc, "-f", "mp4"),
            refused="encrypt",
            command=True,
            witness="ffmpeg decodes noise",
        ),
        Case(
            "no-samples.wav",
            4,
            plain(codec=None, sound="pcm_s16le", seconds=0.0),
            refused="no sample|no sound|holds no",
            small=True,
        ),
        Case(
            "no-samples.mp4",
            4,
            lambda p: p.write_bytes(
                box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", box(b"mvhd", b"\0" * 12 + b"\0\0\3\xe8" + b"\0" * 84))
            ),
            refused="neither pictures|holds no|no track|not a media file",
        ),
    ]


def pillow_webp(path: Path) -> None:
    from media_files import pictures
    from PIL import Image

    shown = [Image.fromarray(picture) for picture in pictures([n / 5 for n in range(20)], (64, 48), EVENTS)]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=200, lossless=True)


assert LENGTH < 1.0
