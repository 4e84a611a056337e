"""Media files that are long, cut, damaged, or of unusual rates, channels and formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from media_case import PLAIN, Case, Heard, both, converted, copied, plain, then
from media_files import (
    EVENTS,
    LENGTH,
    box,
    cut,
    damage,
    restamp_mkv,
    without_packets,
    write,
)


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
