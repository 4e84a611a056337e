"""Media files whose stamps repeat, run backward, jump, drift or have holes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from media_case import PLAIN, TWICE, Case, Heard, after, both, converted, joined, plain, then
from media_files import (
    ffmpeg,
    join,
    restamp_mkv,
    restamp_ts,
    shifted,
    write,
)


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
