"""Media files in FLV, AVI, fragments of MP4, WMV, Ogg and GIF, and lists of files, with clocks of their own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from media_case import PLAIN, TWICE, Case, Heard, after, both, converted, joined, part, plain, then
from media_files import (
    EVENTS,
    ffmpeg,
    found,
    join,
    restamp_flv,
    restamp_fragments,
    without_edits,
    write,
)
from media_starts import late_sound, no_delay


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
