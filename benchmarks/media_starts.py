"""Media files whose tracks begin apart, or of which one has to be chosen."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from media_case import Case, Heard, both, converted, copied, plain, then
from media_files import (
    EVENTS,
    ffmpeg,
    found,
    with_edits,
    write,
)


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
