"""Hostile media files: small on disk, made to cost memory or time without bound.

In: the name of a case. Out: its file. Knows nothing of PAVE. Whoever reads one must end within the limit of time that
it was given, with pictures and sound or with an error in words, and its decoder within 1.5 GB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from media_case import after, part, then
from media_files import box, element, join, restamp_flv, restamp_fragments, restamp_mkv, shifted, write
from PIL import Image

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
MATROSKA = element(0x1A45DFA3, element(0x4282, b"matroska"))
Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Hostile:
    name: str
    make: Callable[[Path], Any]
    read: dict[str, Any] = field(default_factory=dict)
    command: bool = False  # needs the command ffmpeg
    small: bool = False


def hostile() -> list[Hostile]:
    return [*jumps(), *large_pictures(), *sounds(), *many(), *nested(), *tables(), *numbers(), *amplified()]


def rebuilt(data: bytes, changes: dict[bytes, Change]) -> bytes:
    """An MP4's boxes, with other contents for these kinds."""
    out, place = b"", 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + size]
        if kind in PARENTS:
            body = rebuilt(body, changes)
        if kind in changes:
            body = changes[kind](body)
        out += box(kind, body)
        place += max(size, 8)
    return out


def changed(changes: dict[bytes, Change], **arguments: Any) -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        given = {"seconds": 1.0, "events": (0.4,), **arguments}
        path.write_bytes(rebuilt(write(path, **given).read_bytes(), changes))

    return make


def packed(kind: str, *values: int) -> bytes:
    return struct.pack(">" + kind, *values)


def put(at: int, kind: str, *values: int) -> Change:
    """Overwrite numbers at this place of a box."""
    new = packed(kind, *values)
    return lambda body: body[:at] + new + body[at + len(new) :]


# ---------------------------------------------------------------- clocks


def jumps() -> list[Hostile]:
    def one(name: str, by: float, tracks: tuple[int, ...] | None, small: bool = False) -> Hostile:
        return Hostile(name, then(restamp_mkv, after(2, by, tracks), size=(32, 32), codec="mjpeg"), small=small)

    random = Random(0)
    hours = 3600.0
    return [
        one("sound-jumps-6h.mkv", 6 * hours, (2,), small=True),
        one("sound-jumps-60h.mkv", 60 * hours, (2,)),
        one("sound-jumps-a-year.mkv", 8760 * hours, (2,)),
        one("pictures-jump-6h.mkv", 6 * hours, (1,)),
        one("both-jump-6h.mkv", 6 * hours, None),
        Hostile("every-sound-packet-jumps-10min.mkv", then(restamp_mkv, lambda k, t: t * 25_000 if k == 2 else t)),
        Hostile("stamps-at-random.mkv", then(restamp_mkv, lambda k, t: random.uniform(0, 1e6))),
        Hostile("stamps-at-2-to-62.mkv", then(restamp_mkv, lambda k, t: t + 2.0**62 / 1e3)),
        Hostile("sound-stamp-at-2-to-62.mkv", then(restamp_mkv, lambda k, t: t + 2.0**62 / 1e3 * (k == 2 and t > 2))),
        Hostile("stamp-at-2-to-64.mkv", then(restamp_mkv, lambda k, t: t if t < 2 else 1.8e16)),
        Hostile("flv-jumps-24-days.flv", then(restamp_flv, lambda k, t: t if t < 2 else 2_100_000.0)),
        Hostile("fragment-at-2-to-62.mp4", far_fragment),
        Hostile("sound-6h-later.ts", lambda p: write(p, sound_clock=shifted(6 * hours))),
        Hostile(
            "six-hours-of-silence.m4a", lambda p: write(p, codec=None, clock=lambda t: t if t < 2 else t + 6 * hours)
        ),
    ]


def far_fragment(path: Path) -> None:
    write(path, options={"movflags": "frag_keyframe+delay_moov+default_base_moof"})
    restamp_fragments(path, lambda track, n: 2.0**62 / 48000 if n >= 2 else 0.0)


# ---------------------------------------------------------------- pictures


def png(width: int, height: int, bits: int, colour: int, per_pixel: int) -> bytes:
    """A black PNG, compressed without holding its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return packed("I", len(body)) + kind + body + packed("I", zlib.crc32(kind + body))

    press, row = zlib.compressobj(1), bytes(1 + (width * bits * per_pixel + 7) // 8)
    body = b"".join(press.compress(row) for _ in range(height)) + press.flush()
    head = packed("IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def image(kind: str, size: tuple[int, int], frames: int = 1, mode: str = "L", **options: Any) -> bytes:
    one = Image.new(mode, size)
    more = []
    for number in range(1, frames):
        other = one.copy()
        other.putpixel((number % size[0], number // size[0] % size[1]), 255 if mode == "L" else (255, 0, 0))
        more.append(other)
    out = BytesIO()
    one.save(out, kind, **({"save_all": True, "append_images": more, "duration": 40} if more else {}), **options)
    return out.getvalue()


def in_mkv(
    codec: bytes, packet: bytes, count: int, size: tuple[int, int], private: bytes = b"", more: bytes = b""
) -> bytes:
    """A Matroska file that repeats one coded picture."""
    video = element(0xE0, element(0xB0, packed("I", size[0])) + element(0xBA, packed("I", size[1])))
    entry = element(0xD7, b"\1") + element(0x73C5, b"\1") + element(0x83, b"\1") + element(0x86, codec) + video
    entry += (element(0x63A2, private) if private else b"") + more
    clusters = b"".join(
        element(0x1F43B675, element(0xE7, packed("Q", n * 40)) + element(0xA3, b"\x81\0\0\x80" + packet))
        for n in range(count)
    )
    info = element(0x1549A966, element(0x2AD7B1, packed("I", 1_000_000)))
    return MATROSKA + element(0x18538067, info + element(0x1654AE6B, element(0xAE, entry)) + clusters)


def large_pictures() -> list[Hostile]:
    flat = {"sound": None, "events": (), "fps": 25}

    def bytes_of(name: str, make: Callable[[], bytes], **more: Any) -> Hostile:
        return Hostile(name, lambda path: path.write_bytes(make()), **more)

    def sizes(path: Path) -> None:
        join(path, [part(path, n, seconds=0.4, size=(64, 64) if n % 2 else (4096, 4096), **flat) for n in range(4)])

    compressed = element(0x6D80, element(0x6240, element(0x5034, element(0x4254, b"\0"))))

    return [
        Hostile("3000x3000.mp4", lambda p: write(p, seconds=2.0, size=(3000, 3000), **flat)),
        Hostile(
            "3000x3000-every-picture.mp4", lambda p: write(p, seconds=2.0, size=(3000, 3000), **flat), {"frames": None}
        ),
        Hostile("8192x8192.mp4", lambda p: write(p, seconds=0.2, size=(8192, 8192), **flat)),
        Hostile(
            "8192x8192-vp9.webm",
            lambda p: write(
                p,
                seconds=0.08,
                size=(8192, 8192),
                codec="libvpx-vp9",
                codec_options={"cpu-used": "8", "deadline": "realtime"},
                **flat,
            ),
        ),
        Hostile("16384x64.mp4", lambda p: write(p, seconds=2.0, size=(16384, 64), **flat)),
        Hostile("sizes-change.ts", sizes),
        bytes_of("16384x16384-1-bit.png", lambda: png(16384, 16384, 1, 0, 1)),
        bytes_of("16384x16384-8-bit.png", lambda: png(16384, 16384, 8, 0, 1)),
        bytes_of("9000x9000-rgba-16-bit.png", lambda: png(9000, 9000, 16, 6, 4)),
        bytes_of("8000x8000-rgb.png", lambda: png(8000, 8000, 8, 2, 3), small=True),
        bytes_of("100000x100.png", lambda: png(100_000, 100, 1, 0, 1)),
        bytes_of("16384x16384.jpg", lambda: image("JPEG", (16384, 16384))),
        bytes_of("16384x16384.gif", lambda: image("GIF", (16384, 16384))),
        bytes_of("4096x4096-200-pictures.gif", lambda: image("GIF", (4096, 4096), 40)),
        bytes_of("65535x65535.gif", lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"),
        bytes_of(
            "16383x16383.webp", lambda: image("WEBP", (16383, 16383), mode="RGB", lossless=True, quality=0, method=0)
        ),
        bytes_of(
            "2048x2048-60-pictures.webp", lambda: image("WEBP", (2048, 2048), 60, mode="RGB", lossless=True, method=0)
        ),
        bytes_of(
            "3000x3000-every-picture.webp",
            lambda: image("WEBP", (3000, 3000), 30, mode="RGB", lossless=True, method=0),
            read={"frames": None},
        ),
        bytes_of("16384x16384.tif", lambda: image("TIFF", (16384, 16384), compression="tiff_deflate")),
        bytes_of("16384x16384-three.mkv", lambda: in_mkv(b"V_MJPEG", image("JPEG", (16384, 16384)), 3, (16384, 16384))),
        bytes_of(
            "header-16384x16384-but-small.mkv", lambda: in_mkv(b"V_MJPEG", image("JPEG", (64, 64)), 30, (16384, 16384))
        ),
        bytes_of(
            "header-small-but-12000x12000.mkv", lambda: in_mkv(b"V_MJPEG", image("JPEG", (12000, 12000)), 3, (64, 64))
        ),
        bytes_of(
            "zlib-block-of-600MB.mkv",
            lambda: in_mkv(b"V_MJPEG", zlib.compress(bytes(600 << 20), 1), 2, (64, 64), more=compressed),
        ),
        bytes_of("truncated-16384.ppm", lambda: b"P6 16384 16384 255\n" + bytes(1000)),
        bytes_of(
            "header-30000x30000.bmp",
            lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
        ),
        bytes_of("header-16384x16384.y4m", lambda: b"YUV4MPEG2 W16384 H16384 F25:1 C444p16\nFRAME\n" + bytes(1000)),
        Hostile("cover-16000x16000.mp3", large_cover, command=True),
    ]


def large_cover(path: Path) -> None:
    from media_files import ffmpeg

    sound, cover = path.with_suffix(".wav"), path.with_suffix(".png")
    write(sound, codec=None, sound="pcm_s16le")
    cover.write_bytes(png(16000, 16000, 1, 0, 1))  # this command refuses 16384x16384
    ffmpeg("-i", sound, "-i", cover, "-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic", path)


# ---------------------------------------------------------------- sound


def wav(channels: int, rate: int, bits: int, data: bytes, tag: int = 1) -> bytes:
    block = max(channels * bits // 8, 1) & 0xFFFF
    head = struct.pack("<HHIIHH", tag, channels, rate & 0xFFFFFFFF, rate * block & 0xFFFFFFFF, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def sounds() -> list[Hostile]:
    def one(name: str, *values: Any, **more: Any) -> Hostile:
        return Hostile(name, lambda path: path.write_bytes(wav(*values)), **more)

    some = bytes(100_000)
    return [
        one("rate-1.wav", 1, 1, 16, some, small=True),
        one("rate-1-to-16000.wav", 1, 1, 16, some[:20_000], read={"audio_rate": 16000}),
        one("rate-0.wav", 1, 0, 16, some),
        one("rate-2-to-31.wav", 1, 2**31 - 1, 16, some, read={"audio_rate": 16000}),
        one("rate-2-to-32.wav", 1, 2**32 - 1, 16, some),
        one("rate-prime.wav", 1, 2147483629, 16, some, read={"audio_rate": 48000}),
        one("64-channels.wav", 64, 48000, 16, bytes(12_800_000)),
        one("255-channels.wav", 255, 48000, 16, bytes(5_100_000)),
        one("65535-channels.wav", 65535, 48000, 16, bytes(5_000_000)),
        one("0-channels.wav", 0, 48000, 16, some),
        one("1-bit.wav", 1, 48000, 1, some),
        one("64-bit.wav", 1, 48000, 64, some, 3),
        one("not-finite.wav", 1, 48000, 32, struct.pack("<f", float("nan")) * 10_000, 3),
        one("data-says-4GB.wav", 1, 48000, 16, b""),
        Hostile("u8-of-60MB.wav", lambda p: p.write_bytes(wav(1, 8000, 8, bytes(60_000_000)))),
        Hostile("sound-4h.flac", lambda p: write(p, codec=None, sound="flac", rate=8000, seconds=14400.0, events=())),
        Hostile(
            "zeros-after-one-frame.mp3",
            lambda p: write(p, codec=None, sound="mp3") and join(p, [p, zeros(p, 20 << 20)]),
        ),
        Hostile(
            "id3-of-256MB.mp3",
            lambda p: p.write_bytes(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + write(p, codec=None, sound="mp3").read_bytes()),
        ),
    ]


def zeros(path: Path, size: int) -> Path:
    other = path.with_name(path.name + ".zeros")
    other.write_bytes(bytes(size))
    return other


# ---------------------------------------------------------------- many and deep


def many() -> list[Hostile]:
    def traks(body: bytes) -> bytes:
        place, out = 0, b""
        while place + 8 <= len(body):
            size = int.from_bytes(body[place : place + 4], "big")
            out += body[place : place + size] * (3000 if body[place + 4 : place + 8] == b"trak" else 1)
            place += size
        return out

    def tracks(path: Path) -> None:
        entries = b"".join(
            element(0xAE, element(0xD7, packed("H", n)) + element(0x83, b"\2") + element(0x86, b"A_PCM/INT/LIT"))
            for n in range(1, 8000)
        )
        path.write_bytes(
            MATROSKA + element(0x18538067, element(0x1654AE6B, entries) + element(0x1F43B675, element(0xE7, b"\0")))
        )

    def chain(path: Path) -> None:
        link = write(path.with_name("link.ogg"), codec=None, sound="libopus", seconds=0.1, events=()).read_bytes()
        path.write_bytes(link * 5000)

    def programs(path: Path) -> None:
        data = write(path).read_bytes()
        path.write_bytes(b"".join(data[:564] for _ in range(20_000)) + data)

    return [
        Hostile("6000-tracks.mp4", changed({b"moov": traks})),
        Hostile("8000-tracks.mkv", tracks, small=True),
        Hostile("5000-chained-links.ogg", chain),
        Hostile("20000-programme-tables.ts", programs),
        Hostile(
            "null-packets-20MB.ts",
            lambda p: p.write_bytes(write(p).read_bytes() + (b"G\x1f\xff\x10" + b"\xff" * 184) * 110_000),
        ),
        Hostile(
            "20000-chapters.mp4",
            changed(
                {b"moov": lambda body: body + box(b"udta", box(b"chpl", b"\1\0\0\0\0\0\0\0\xff" + bytes(9) * 20_000))}
            ),
        ),
        Hostile(
            "metadata-20MB.mp4",
            changed(
                {
                    b"moov": lambda body: (
                        body + box(b"udta", *[box(b"\xa9nam", packed("HH", 1000, 0) + b"x" * 1000)] * 20_000)
                    )
                }
            ),
        ),
    ]


def nested() -> list[Hostile]:
    def deep_ebml(path: Path) -> None:
        body = b""
        for _ in range(8000):
            body = element(0xB6, body)
        path.write_bytes(MATROSKA + element(0x18538067, element(0x1043A770, element(0x45B9, body))))

    def deep_boxes(path: Path) -> None:
        sizes = range(8, 8 * 20_000, 8)
        path.write_bytes(
            box(b"ftyp", b"isom\0\0\2\0isom") + b"".join(packed("I", size) + b"moov" for size in reversed(sizes))
        )

    def claims(path: Path) -> None:
        path.write_bytes(
            box(b"ftyp", b"isom\0\0\2\0isom") + packed("I", 1) + b"moov" + packed("Q", 2**63 - 1) + bytes(1000)
        )

    return [
        Hostile("8000-deep.mkv", deep_ebml),
        Hostile("20000-deep.mp4", deep_boxes),
        Hostile("box-of-2-to-63.mp4", claims),
        Hostile(
            "void-of-2-to-55.mkv",
            lambda p: p.write_bytes(
                MATROSKA
                + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff\xec\x01\x7f\xff\xff\xff\xff\xff\xff"
                + bytes(100)
            ),
        ),
        Hostile(
            "codec-private-of-200MB.mkv",
            lambda p: p.write_bytes(in_mkv(b"V_MPEG4/ISO/AVC", b"\0" * 100, 3, (64, 64), bytes(200 << 20))),
        ),
    ]


def tables() -> list[Hostile]:
    """MP4 tables that promise more than the file holds."""
    million = 1_000_000

    def edits(body: bytes) -> bytes:
        return body + box(b"edts", box(b"elst", packed("II", 0, million), packed("IiHH", 40, 0, 1, 0) * million))

    raw = {"options": None, "sound": None, "codec_options": {"x264-params": "bframes=0"}}
    empty = {
        b"stsz": lambda _: packed("III", 0, 0, million) + bytes(4 * million),
        b"stts": lambda _: packed("IIII", 0, 1, million, 512),
        b"stsc": lambda _: packed("IIIII", 0, 1, 1, million, 1),
        b"stss": lambda _: packed("II", 0, 0),
        b"ctts": lambda _: packed("II", 0, 0),
        b"edts": lambda _: b"",
    }
    return [
        Hostile("million-empty-samples.mp4", changed(empty, **raw)),
        Hostile("million-edits.mp4", changed({b"trak": edits, b"edts": lambda _: b""}, **raw)),
        Hostile(
            "stsz-of-4-billion.mp4", changed({b"stsz": lambda _: packed("III", 0, 1, 2**32 - 1)}, **raw), small=True
        ),
        Hostile("stts-of-4-billion.mp4", changed({b"stts": lambda _: packed("IIII", 0, 1, 2**32 - 1, 512)}, **raw)),
        Hostile(
            "stts-of-4-billion-long.mp4", changed({b"stts": lambda _: packed("IIII", 0, 1, 2**32 - 1, 2**31)}, **raw)
        ),
        Hostile("stco-of-4-billion.mp4", changed({b"stco": lambda _: packed("II", 0, 2**32 - 1)}, **raw)),
        Hostile("stsc-of-4-billion.mp4", changed({b"stsc": lambda _: packed("IIIII", 0, 1, 1, 2**32 - 1, 1)}, **raw)),
        Hostile("stsd-of-2-billion.mp4", changed({b"stsd": put(4, "I", 2**31 - 1)}, **raw)),
        Hostile(
            "ctts-of-million.mp4",
            changed({b"ctts": lambda _: packed("II", 0, million) + packed("II", 1, 2**31) * million}),
        ),
    ]


def numbers() -> list[Hostile]:
    def header(key: int, body: bytes) -> Callable[[Path], Any]:
        """Another number in the segment's info."""

        def make(path: Path) -> None:
            whole = in_mkv(b"V_MJPEG", image("JPEG", (64, 64)), 50, (64, 64))
            old = element(0x2AD7B1, packed("I", 1_000_000))
            new = element(key, body) if key == 0x2AD7B1 else old + element(key, body)
            path.write_bytes(whole.replace(element(0x1549A966, old), element(0x1549A966, new)))

        return make

    return [
        Hostile("time-scale-0.mp4", changed({b"mdhd": put(12, "I", 0)}), small=True),
        Hostile("time-scale-1.mp4", changed({b"mdhd": put(12, "I", 1)})),
        Hostile("time-scale-2-to-32.mp4", changed({b"mdhd": put(12, "I", 2**32 - 1)})),
        Hostile("film-scale-0.mp4", changed({b"mvhd": put(12, "I", 0)})),
        Hostile("length-2-to-32.mp4", changed({b"mvhd": put(16, "I", 2**32 - 1)})),
        Hostile("time-scale-0.mkv", header(0x2AD7B1, b"\0")),
        Hostile("time-scale-2-to-60.mkv", header(0x2AD7B1, packed("Q", 2**60))),
        Hostile("length-not-a-number.mkv", header(0x4489, struct.pack(">d", float("nan")))),
        Hostile("length-infinite.mkv", header(0x4489, struct.pack(">d", float("inf")))),
        Hostile("length-1e308.mkv", header(0x4489, struct.pack(">d", 1e308))),
    ]


def amplified() -> list[Hostile]:
    """Many pictures from few bytes."""

    def same_sample(path: Path) -> None:
        """100,000 samples at the same place."""
        count, picture = 100_000, image("JPEG", (1920, 1080))
        one = write(path, codec="mjpeg", sound=None, seconds=0.04, size=(1920, 1080), events=()).read_bytes()
        place = one.index(b"mdat") + 4
        changes: dict[bytes, Change] = {
            b"stsz": lambda _: packed("III", 0, len(picture), count),
            b"stts": lambda _: packed("IIII", 0, 1, count, 512),
            b"stsc": lambda _: packed("IIIII", 0, 1, 1, 1, 1),
            b"stco": lambda _: packed("II", 0, count) + packed("I", place) * count,
            b"stss": lambda _: packed("II", 0, 0),
            b"edts": lambda _: b"",
        }
        path.write_bytes(rebuilt(one, changes))

    def laced(path: Path) -> None:
        """Blocks of 256 frames each."""
        block = b"\x81\0\0\x84" + b"\xff" + bytes(256)
        track = element(0xD7, b"\1") + element(0x83, b"\2") + element(0x86, b"A_PCM/INT/LIT")
        track += element(0xE1, element(0xB5, struct.pack(">f", 8000.0)) + element(0x6264, b"\x08"))
        clusters = element(0x1F43B675, element(0xE7, b"\0") + element(0xA3, block) * 20_000)
        path.write_bytes(MATROSKA + element(0x18538067, element(0x1654AE6B, element(0xAE, track)) + clusters))

    def empty_gif(path: Path) -> None:
        head = b"GIF89a" + struct.pack("<HH", 4000, 4000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
        one = b"!\xf9\4\0\2\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0"
        path.write_bytes(head + one * 100_000 + b";")

    return [
        Hostile("one-picture-100000-times.mp4", same_sample),
        Hostile("one-picture-100000-times-all.mp4", same_sample, {"frames": None}),
        Hostile("laced.mkv", laced),
        Hostile("100000-pictures-of-4000x4000.gif", empty_gif),
        Hostile("100000-pictures-of-4000x4000-all.gif", empty_gif, {"frames": None}),
        Hostile(
            "50000-pictures.mkv",
            lambda p: p.write_bytes(in_mkv(b"V_MJPEG", image("JPEG", (640, 480)), 20_000, (640, 480))),
        ),
    ]
