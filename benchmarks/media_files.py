"""Small media files with flashes and tones at known times: clean ones, and those that other tools leave behind.

    write(Path("a.mp4"), events=(1.0, 3.0))                       # a clean clip; white and 1 kHz at 1 s and 3 s
    restamp_mkv(path, lambda track, t: t if t < 2 else t - 2)     # its stamps run backward at 2 s

In: how a file is made. Out: the file. Made by PyAV, its bytes changed afterwards where no muxer would write them; only
`ffmpeg` calls the command of that name. Knows nothing of PAVE.

A clock maps the seconds at which something was recorded to the stamp that the file gives it.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

Clock = Callable[[float], float]
TrackClock = Callable[[int, float], float]
SECONDS, FPS, RATE, EVENTS, LENGTH = 4.0, 25, 48000, (1.0, 3.0), 0.2
PIXELS = {"mjpeg": "yuvj420p", "png": "rgb24", "gif": "pal8", "ffv1": "yuv420p", "rawvideo": "yuv420p"}
TICKS = 90000


def same(seconds: float) -> float:
    return seconds


def pictures(moments: Sequence[float], size: tuple[int, int], events: Sequence[float]) -> Iterator[np.ndarray]:
    """Pictures (y x 3) at these seconds: white for 0.2 s from each event on, else dark with a moving bar."""
    width, height = size
    for number, moment in enumerate(moments):
        if any(event - 1e-6 <= moment < event + LENGTH - 1e-6 for event in events):
            yield np.full((height, width, 3), 255, np.uint8)
        else:
            picture = np.full((height, width, 3), 60, np.uint8)
            picture[:, number * 3 % width :][:, : width // 4] = (150, 90, 40)
            yield picture


def tone(moments: np.ndarray, events: Sequence[float], level: float = 0.5, pitch: float = 1000.0) -> np.ndarray:
    """Faint noise with a 1 kHz tone of 0.2 s from each event on, at these seconds. The noise spreads the bytes of a
    coded file over its whole length, so that damage hits what it says."""
    wave = np.random.default_rng(0).uniform(-0.005, 0.005, len(moments)).astype(np.float32)
    for event in events:
        there = (moments >= event - 1e-9) & (moments < event + LENGTH - 1e-9)
        wave[there] = level * np.sin(2 * np.pi * pitch * (moments[there] - event))
    return wave


def write(
    path: Path,
    *,
    seconds: float = SECONDS,
    fps: float = FPS,
    events: Sequence[float] = EVENTS,
    size: tuple[int, int] = (64, 48),
    codec: str | None = "h264",
    sound: str | None = "aac",
    rate: int = RATE,
    layout: str = "mono",
    channel: int | None = None,
    sample: str | None = None,
    moments: Sequence[float] | None = None,
    clock: Clock = same,
    sound_clock: Clock | None = None,
    sound_span: tuple[float, float] | None = None,
    ratio: float = 1.0,
    block: int | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    tracks: Sequence[dict[str, Any]] = (),
) -> Path:
    """One file. `moments`: seconds of the pictures. `ratio`: a second of sound samples is stamped as this many.
    `sound_span`: seconds that the sound covers. `channel`: the only one with a tone. `block`: samples in a packet of
    PCM. `tracks`: each with a codec or sound, and the events and disposition that differ."""
    queue: list[tuple[float, int, Any]] = []
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        streams = []
        specs = [{"codec": codec}, {"sound": sound}] if not tracks else list(tracks)
        for spec in specs:
            if spec.get("codec"):
                streams.append((add_pictures(container, spec["codec"], fps, size, codec_options), spec))
            elif spec.get("sound"):
                stream = container.add_stream(spec["sound"], rate=rate)
                stream.layout = layout
                if sample:
                    stream.format = sample
                streams.append((stream, spec))
        for stream, spec in streams:
            if "disposition" in spec:
                stream.disposition = spec["disposition"]
        container.start_encoding()
        for stream, spec in streams:
            happen = spec.get("events", events)
            if stream.type == "video":
                shown = [n / fps for n in range(round(seconds * fps))] if moments is None else moments
                made = encoded_pictures(stream, shown, pictures(shown, size, happen))
                queue += [(order, stream.index, stamped(packet, clock, Fraction(1, TICKS))) for order, packet in made]
            else:
                span = sound_span or (0.0, seconds)
                made = encoded_sound(stream, span, ratio, happen, channel, block)
                on = sound_clock or clock
                queue += [(order, stream.index, stamped(packet, on, Fraction(1, rate))) for order, packet in made]
        for _, _, packet in sorted(queue, key=lambda item: item[:2]):
            container.mux_one(packet)
    return path


def add_pictures(container: Any, codec: Any, fps: float, size: tuple[int, int], options: dict[str, str] | None) -> Any:
    usual = {"g": "25", "bf": "2"} if codec in ("h264", "hevc", "mpeg4", "mpeg2video") else {}
    if codec == "hevc":
        usual["x265-params"] = "log-level=none:pools=1:frame-threads=1"
    if codec in ("h264", "libx264"):
        usual |= {"preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0:threads=1"}
    stream = container.add_stream(
        codec, rate=Fraction(fps).limit_denominator(1001), options={**usual, **(options or {})}
    )
    stream.width, stream.height = size
    stream.pix_fmt = PIXELS.get(codec, "yuv420p")
    if codec == "h264" or codec.startswith(("libvpx", "ffv1")):
        stream.codec_context.time_base = Fraction(1, TICKS)
    stream.codec_context.thread_count = 1
    return stream


def encoded_pictures(stream: Any, moments: Sequence[float], shown: Iterator[np.ndarray]) -> list[tuple[float, Any]]:
    base = stream.codec_context.time_base or Fraction(1, TICKS)
    packets = []
    for moment, picture in zip(moments, shown, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(moment / base), base
        packets += stream.encode(frame)
    packets += stream.encode()
    return [
        (float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base), packet) for packet in packets
    ]


def encoded_sound(
    stream: Any,
    span: tuple[float, float],
    ratio: float,
    events: Sequence[float],
    channel: int | None,
    block: int | None,
) -> list[tuple[float, Any]]:
    """Packets with regular stamps times `ratio`; a tone is where its stamp says."""
    rate, size = stream.rate, stream.codec_context.frame_size or block or 1024
    channels, packets = stream.layout.nb_channels, []
    total = round((span[1] - span[0]) / ratio * rate)
    wave = tone(span[0] + np.arange(total) / rate * ratio, events)
    waves = np.zeros((channels, total), np.float32)
    waves[slice(None) if channel is None else channel] = wave
    resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
    for offset in range(0, total, size):
        piece = np.ascontiguousarray(waves[:, offset : offset + size].T).reshape(
            1, -1
        )  # planar: PyAV 18 fails on 8 channels
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), offset
        for ready in resampler.resample(frame):
            packets += stream.encode(ready)
    packets += stream.encode()
    for packet in packets:
        packet.time_base, before = Fraction(1, rate), packet.time_base or Fraction(1, rate)
        packet.pts = round(
            packet.pts * before * rate * Fraction(ratio).limit_denominator(10**6) + Fraction(span[0]) * rate
        )
        packet.dts = packet.pts
        packet.duration = round(packet.duration * ratio) if packet.duration else 0
    return [(float(packet.pts * packet.time_base), packet) for packet in packets]


def stamped(packet: Any, clock: Clock, base: Fraction) -> Any:
    """The packet with its stamps on this clock. A clock that jumps at some second is asked for both stamps at the
    presentation stamp, so that the order of decoding stays."""
    if clock is same:
        return packet
    shown = float(packet.pts * packet.time_base)
    shift = clock(shown) - shown
    decoded = shown if packet.dts is None else float(packet.dts * packet.time_base)
    duration = None if packet.duration is None else float(packet.duration * packet.time_base)
    packet.time_base = base
    packet.pts, packet.dts = round((shown + shift) / base), round((decoded + shift) / base)
    packet.duration = round((duration or 0) / base)
    return packet


def ffmpeg(*arguments: object) -> None:
    """Run the command; it must succeed."""
    command = ["ffmpeg", "-v", "error", "-y", "-nostdin", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-400:]}")


def join(path: Path, parts: Sequence[Path]) -> Path:
    """`cat parts > path`"""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def shifted(seconds: float) -> Clock:
    return lambda moment: moment + seconds


# ---------------------------------------------------------------- bytes of containers


def elements(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """EBML elements as (id, first byte of the body, end)."""
    while begin < end - 1:
        width = 9 - data[begin].bit_length()
        key = int.from_bytes(data[begin : begin + width], "big")
        begin += width
        width = 9 - data[begin].bit_length()
        size = int.from_bytes(data[begin : begin + width], "big") & ((1 << 7 * width) - 1)
        begin += width
        stop = end if size == (1 << 7 * width) - 1 else begin + size
        yield key, begin, stop
        begin = stop


def element(key: int, body: bytes) -> bytes:
    return key.to_bytes((key.bit_length() + 7) // 8, "big") + (len(body) | 1 << 56).to_bytes(8, "big") + body


SEGMENT, CLUSTER, TIMESTAMP, SIMPLE, GROUP, BLOCK = 0x18538067, 0x1F43B675, 0xE7, 0xA3, 0xA0, 0xA1
STALE = (0x114D9B74, 0x1C53BB6B, 0xEC)  # seek head, cues, void: positions that no longer hold


def restamp_mkv(path: Path, clock: TrackClock, drop: Callable[[int, float], bool] = lambda track, t: False) -> Path:
    """Each block in its own cluster, at the milliseconds that the clock gives; tracks are numbered from 1."""
    data = path.read_bytes()
    out, tail = b"", b""
    for key, begin, end in elements(data, 0, len(data)):
        if key != SEGMENT:
            out += element(key, data[begin:end])
            continue
        for inner, first, last in elements(data, begin, end):
            if inner != CLUSTER:
                tail += b"" if inner in STALE else element(inner, data[first:last])
                continue
            now = 0
            for kind, one, two in elements(data, first, last):
                body = data[one:two]
                if kind == TIMESTAMP:
                    now = int.from_bytes(body, "big")
                elif kind in (SIMPLE, GROUP):
                    at = 0 if kind == SIMPLE else next(b for k, b, _ in elements(body, 0, len(body)) if k == BLOCK)
                    track, (stamp,) = body[at] & 0x7F, struct.unpack(">h", body[at + 1 : at + 3])
                    if not drop(track, (now + stamp) / 1000):
                        new = max(round(clock(track, (now + stamp) / 1000) * 1000), 0)
                        block = element(kind, body[: at + 1] + b"\0\0" + body[at + 3 :])
                        tail += element(CLUSTER, element(TIMESTAMP, new.to_bytes(8, "big")) + block)
    path.write_bytes(out + element(SEGMENT, tail))
    return path


def restamp_flv(path: Path, clock: TrackClock) -> Path:
    """Tags at the milliseconds that the clock gives; track 8 is sound, 9 is pictures."""
    data, place = bytearray(path.read_bytes()), 13
    while place + 11 <= len(data):
        kind, size = data[place], int.from_bytes(data[place + 1 : place + 4], "big")
        stamp = int.from_bytes(data[place + 4 : place + 7], "big") | data[place + 7] << 24
        if kind in (8, 9):
            new = max(round(clock(kind, stamp / 1000) * 1000), 0)
            data[place + 4 : place + 7], data[place + 7] = (new & 0xFFFFFF).to_bytes(3, "big"), new >> 24 & 0xFF
        place += 11 + size + 4
    path.write_bytes(data)
    return path


def restamp_ts(path: Path, clock: Callable[[int, float], float | None]) -> Path:
    """Stamps of the PES headers; tracks are 0xE0 (pictures) and 0xC0 or 0xBD (sound). None removes the
    stamps. PCRs stay."""
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 188):
        if not data[place + 1] & 0x40:
            continue
        body = place + 4 + (1 + data[place + 4] if data[place + 3] & 0x20 else 0)
        if data[body : body + 3] != b"\0\0\1" or data[body + 3] not in (0xE0, 0xC0, 0xBD):
            continue
        flags, fields = data[body + 7] >> 6, body + 9
        shift = None
        for number in range({2: 1, 3: 2}.get(flags, 0)):
            at = fields + 5 * number
            stamp = (data[at] >> 1 & 7) << 30 | data[at + 1] << 22 | data[at + 2] >> 1 << 15
            stamp |= data[at + 3] << 7 | data[at + 4] >> 1
            if number == 0:
                wanted = clock(data[body + 3], stamp / TICKS)
                if wanted is None:
                    data[body + 7] &= 0x3F
                    data[fields : fields + 10 * (flags == 3) + 5 * (flags == 2)] = b"\xff" * (10 if flags == 3 else 5)
                    break
                shift = round(wanted * TICKS) - stamp
            new = (stamp + (shift or 0)) & (1 << 33) - 1
            data[at] = data[at] & 0xF1 | (new >> 30) << 1
            data[at + 1], data[at + 2] = new >> 22 & 0xFF, (new >> 15 & 0x7F) << 1 | 1
            data[at + 3], data[at + 4] = new >> 7 & 0xFF, (new & 0x7F) << 1 | 1
    path.write_bytes(data)
    return path


def restamp_fragments(path: Path, shift: Callable[[int, int], float]) -> Path:
    """Base times of the fragments (tfdt) moved by shift(track, number of its fragment) seconds; tracks from 1. The
    base of each track is taken from its mdhd."""
    data = bytearray(path.read_bytes())
    bases = [int.from_bytes(data[at + 16 : at + 20], "big") for at in found(data, b"mdhd")]
    seen: dict[int, int] = {}
    for at in found(data, b"tfhd"):
        track = int.from_bytes(data[at + 8 : at + 12], "big")
        time = data.index(b"tfdt", at)
        wide = 8 if data[time + 4] else 4
        value = int.from_bytes(data[time + 8 : time + 8 + wide], "big")
        value += round(shift(track, seen.get(track, 0)) * bases[track - 1])
        data[time + 8 : time + 8 + wide] = max(value, 0).to_bytes(wide, "big")
        seen[track] = seen.get(track, 0) + 1
    path.write_bytes(data)
    return path


def without_edits(path: Path) -> Path:
    """An MP4 whose edit lists are skipped."""
    path.write_bytes(path.read_bytes().replace(b"edts", b"free"))
    return path


def found(data: bytes | bytearray, word: bytes) -> list[int]:
    places, at = [], data.find(word)
    while at >= 0:
        places.append(at)
        at = data.find(word, at + 1)
    return places


def box(kind: bytes, *body: bytes) -> bytes:
    content = b"".join(body)
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_edits(path: Path, track: int, edits: Sequence[tuple[float, float]]) -> Path:
    """Another edit list for one track (from 0): (seconds, first second of the media or -1 for none) each. The index
    must be at the end of the file. A track without edit list gets one."""
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    index = bytearray(data[moov:])
    scale = int.from_bytes(index[index.index(b"mvhd") + 16 :][:4], "big")
    trak = found(index, b"trak")[track] - 4
    base_at = index.index(b"mdhd", trak)
    base = int.from_bytes(index[base_at + 16 : base_at + 20], "big")
    entries = b"".join(
        struct.pack(">IiHH", round(length * scale), -1 if at < 0 else round(at * base), 1, 0) for length, at in edits
    )
    new = box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)), entries))
    size = int.from_bytes(index[trak : trak + 4], "big")
    content, out = bytes(index[trak + 8 : trak + size]), b""
    while content:
        length = int.from_bytes(content[:4], "big")
        if content[4:8] != b"edts":
            out += content[:length]
        if content[4:8] == b"tkhd":
            out += new
        content = content[length:]
    changed = bytes(index[8:trak]) + box(b"trak", out) + bytes(index[trak + size :])
    path.write_bytes(data[:moov] + box(b"moov", changed))
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """The first part of the file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def damage(path: Path, first: float = 0.45, last: float = 0.55, seed: int | None = None) -> Path:
    """Zeros, or random bytes, in the middle of the file."""
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * first), int(len(data) * last)
    filler = bytes(high - low) if seed is None else np.random.default_rng(seed).bytes(high - low)
    data[low:high] = filler
    path.write_bytes(data)
    return path


def without_packets(path: Path, every: int) -> Path:
    """A transport stream that lost every n-th packet after the first hundred."""
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    path.write_bytes(b"".join(p for n, p in enumerate(packets) if n < 100 or n % every))
    return path
