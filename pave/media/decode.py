"""One media file -> arrays on one clock.

In: a `Request` (which file, which pictures, sound or not). Out: `Decoded`: pictures, their times, sound, and the facts
for the report. Knows nothing of torch, models or processes, so that a worker starts fast.

Clock: the first picture's time stamp is 0 s; sound is placed on the same clock by its own time stamps. A file without
pictures starts at its first sample. Only data that decodes counts. Three passes over the file (survey, pictures, sound)
hold only the requested pictures in memory.

Legend: t pictures, y x pixels, c channels, n samples. A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from einops import rearrange

from pave.media.container import (
    UNKNOWN,
    Survey,
    Track,
    check_file,
    decoded,
    decoder,
    opened,
    refuse,
    stamped,
    walk,
)
from pave.media.key_frames import MAX_BYTES, Request, check_window, needed, pick

GAP_SECONDS = 0.05  # a longer gap in the sound is filled with silence, so that later sound stays on the clock
ORIENTATION = 0x0112  # tag of EXIF 2.32
SHORT = 0.9  # decoded below this share of the announced length: the report warns that the file is cut short


@dataclass
class Decoded:
    """Arrays of one clip, and the facts for its report."""

    frames: np.ndarray | None = None  # uint8 (t y x 3)
    times: np.ndarray | None = None  # float64 (t,)
    audio: np.ndarray | None = None  # float32 (c n)
    rate: int | None = None
    audio_start: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def decode(request: Request) -> Decoded:
    """Read what is requested, or raise a MediaError that says what is wrong with the file."""
    check_window(request)
    check_file(request.path)
    survey = walk(request.path)
    result = Decoded()
    origin = read_pictures(request, survey, survey.video, result) if survey.video else None
    if request.audio:
        read_sound(request, survey, origin, result)
    else:
        result.facts["audio"] = "not requested"
    if origin is None and result.audio is None:
        if survey.video is None and not request.audio:
            raise refuse(request.path, "holds sound only, but pictures were requested", "give a video")
        raise refuse(request.path, "nothing in it decodes", "the file is damaged: download or record it again")
    if survey.promised and survey.reached < SHORT * survey.promised:
        survey.warnings.insert(
            0, f"cut short: {survey.reached:.2f} s of the announced {survey.promised:.2f} s are present"
        )
    result.facts |= {"decoder": decoder(), "warnings": survey.warnings}
    return result


# ---------------------------------------------------------------- pictures


def read_pictures(request: Request, survey: Survey, track: Track, result: Decoded) -> Fraction | None:
    """Fill in pictures and their times. Returns the first stamp in seconds, None if no picture decodes."""
    path, packets = request.path, survey.packets
    stamps = sorted({p.stamp for p in packets if p.shown})
    expected = max(survey.frames, len(packets)) - survey.cut
    picks, pictures, flawed = None, {}, 0
    if stamps and stamps[0] > UNKNOWN:
        picks = pick(stamps, request, track)
        wanted = {*picks.stamps, stamps[0]}  # the first picture sets the clock, so it must decode too
        pictures, flawed = collect(path, track, wanted, *needed(packets, wanted))
    if picks is None or not pictures.keys() >= {*picks.stamps, stamps[0]}:
        # Stamps are missing, or packets do not decode as announced: decode everything to find the usable pictures.
        with opened(path) as container:
            stamps = sorted({stamp for stamp, _ in stamped(container, track)})
        if len(stamps) < len(packets) - survey.cut:
            survey.warnings.append(f"damaged: {len(stamps)} of {len(packets) - survey.cut} coded pictures decode")
        if not stamps:
            return None
        picks = pick(stamps, request, track)
        pictures, flawed = collect(path, track, {*picks.stamps, stamps[0]})
    if flawed:
        survey.warnings.append(f"damaged: {flawed} of the {len(pictures)} pictures read have errors")
    if picks.stamps:
        result.frames = np.stack([pictures[s] for s in picks.stamps])
        result.times = np.array([float((t - stamps[0]) * track.base) for t in picks.targets])
    seconds = float((stamps[-1] - stamps[0]) * track.base + track.gap)
    first, last = (float((stamp - stamps[0]) * track.base) for stamp in picks.span)
    result.facts |= {"pictures": len(stamps), "expected": expected, "seconds": seconds}
    result.facts |= {"first": first, "last": last, "gap": float(track.gap)}
    return stamps[0] * track.base


def collect(
    path: str, track: Track, wanted: set[int], feed: list[bool] | None = None, entries: Collection[int] = ()
) -> tuple[dict[int, np.ndarray], int]:
    """The wanted pictures (y x 3) by stamp, and how many of them the decoder marks as corrupt.

    All are resized to the size of the first one.
    """
    pictures: dict[int, np.ndarray] = {}
    flawed = 0
    missing = set(entries)
    size, scaler = {}, VideoReformatter()  # one for all pictures: its setup costs more than a small picture
    with opened(path) as container:
        for stamp, frame in stamped(container, track, feed):
            if frame.pict_type == PictureType.I:
                missing.discard(stamp)
            if stamp in wanted and stamp not in pictures:
                flawed += frame.is_corrupt
                size = size or {"width": frame.width, "height": frame.height}
                pictures[stamp] = upright(scaler.reformat(frame, format="rgb24", **size).to_ndarray(), frame, path)
                if len(pictures) == len(wanted):
                    break
    # H.264 with gradual refresh marks entry points that refer to earlier pictures: then everything must be decoded.
    return ({}, 0) if missing else (pictures, flawed)


def upright(picture: np.ndarray, frame: Any, path: str) -> np.ndarray:
    """Rotate and mirror a picture (y x 3) by the display matrix of its file, which PyAV does not apply."""
    try:
        data = frame.side_data
    except ValueError:  # PyAV 18 raises on EXIF side data, and its `rotation` does not include mirroring
        return exif_turned(picture, path, round(frame.rotation / 90))
    if "DISPLAYMATRIX" not in data:
        return picture
    # libavutil/display.h: nine int32, row-major; x' = a x + c y, y' = b x + d y, with y pointing down.
    a, b, _, c, d = np.frombuffer(bytes(data["DISPLAYMATRIX"]), np.int32)[:5].astype(float)
    across, down = a, d
    if abs(b) > abs(a):
        picture, across, down = rearrange(picture, "y x c -> x y c"), c, b
    picture = picture[:, ::-1] if across < 0 else picture
    return picture[::-1] if down < 0 else picture


def exif_turned(picture: np.ndarray, path: str, quarters: int) -> np.ndarray:
    """A photograph rotated and mirrored by its EXIF orientation; where Pillow cannot read the file, rotated by
    `quarters`, counter-clockwise."""
    from PIL import Image, ImageOps  # rarely needed; keeps the worker's start fast

    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
    except OSError:
        return np.rot90(picture, quarters)
    photo = Image.fromarray(picture)  # keep FFmpeg's pixels: those that Pillow decodes differ in the last bits
    photo.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(photo))


# ---------------------------------------------------------------- sound


def read_sound(request: Request, survey: Survey, origin: Fraction | None, result: Decoded) -> None:
    """Fill in the first sound track that decodes, on a clock that starts at `origin` seconds."""
    for number, index in enumerate(survey.audio):
        with opened(request.path) as container:
            stream = container.streams[index]
            context = stream.codec_context
            name = context.name if context else "unknown codec"
            sound = Sound(request, origin)
            if context is not None:
                for frame in decoded(container, stream):
                    if not sound.add(frame):
                        break
        if sound.rate is None:
            survey.warnings.append(f"sound track {number + 1} ({name}) does not decode")
            continue
        survey.warnings += sound.warnings
        if len(survey.audio) > 1:
            survey.warnings.append(f"{len(survey.audio)} sound tracks: number {number + 1} is used")
        sound.finish(result)
        if result.audio is not None:
            channels = "mono" if sound.channels == 1 else f"{sound.channels} channels"
            result.facts["audio"] = f"{name}, {sound.rate} Hz, {channels}, {sound.seconds:.2f} s"
        else:
            result.facts["audio"] = "no sound in the requested span"
        result.facts.setdefault("seconds", sound.seconds)
        return
    result.facts["audio"] = "no sound track decodes" if survey.audio else "no audio track"


class Sound:
    """Pieces of one sound track, each placed by its stamp."""

    def __init__(self, request: Request, origin: Fraction | None) -> None:
        self.request, self.origin = request, origin
        self.rate: int | None = None
        self.channels, self.tick = 0, 0.0
        self.first: int | None = None  # stamp of the first frame
        self.begin = 0.0  # seconds of the first sample on the clip's clock
        self.place = 0  # samples so far, counted from `begin`
        self.pieces: list[tuple[int, np.ndarray]] = []
        self.warnings: list[str] = []

    @property
    def seconds(self) -> float:
        """Length of the track read so far."""
        return self.place / (self.rate or 1)

    def add(self, frame: Any) -> bool:
        """Add one decoded frame; False if the rest of the track is not needed or cannot be used."""
        wave = waveform(frame)
        channels = len(wave)
        if self.request.mono:
            wave = wave.mean(0, keepdims=True)
        if self.rate is None:
            self.rate, self.channels, self.tick = frame.sample_rate, channels, float(frame.time_base)
            self.first = frame.pts
            if self.origin is not None and frame.pts is not None:
                self.begin = float(frame.pts * frame.time_base - self.origin)
        if frame.sample_rate != self.rate or (channels != self.channels and not self.request.mono):
            self.warnings.append(f"the sound changes its rate or channels at {self.seconds:.2f} s: the rest is ignored")
            return False
        if frame.pts is not None and self.first is not None:
            ahead = (frame.pts - self.first) * self.tick - self.seconds
            if ahead > GAP_SECONDS:
                self.warnings.append(f"{ahead:.2f} s of sound are missing at {self.begin + self.seconds:.2f} s")
                self.place += round(ahead * frame.sample_rate)
        self.store(wave)
        return self.request.end is None or self.begin + self.seconds < self.request.end

    def store(self, wave: np.ndarray) -> None:
        """Store the part of a piece (c n) that is in the requested span."""
        rate = self.rate or 1
        first = 0 if self.request.start is None else round((self.request.start - self.begin) * rate)
        last = inf if self.request.end is None else round((self.request.end - self.begin) * rate)
        low, high = max(first - self.place, 0), min(last - self.place, wave.shape[1])
        if low < high:
            piece = wave[:, low : int(high)]
            self.pieces.append((self.place + low, piece))
            span = self.place + int(high) - self.pieces[0][0]
            if span * len(wave) * 4 > MAX_BYTES:
                cause = f"{span / rate:.0f} s of sound need more than {MAX_BYTES >> 30} GiB"
                raise refuse(self.request.path, cause, "request a shorter span (start, end)")
        self.place += wave.shape[1]

    def finish(self, result: Decoded) -> None:
        """Join the pieces; gaps are silence."""
        if not self.pieces or self.rate is None:
            return
        start, (last, tail) = self.pieces[0][0], self.pieces[-1]
        sound = np.zeros((len(tail), last + tail.shape[1] - start), np.float32)
        for place, piece in self.pieces:
            sound[:, place - start : place - start + piece.shape[1]] = piece
        if not np.isfinite(sound).all():
            self.warnings.append("samples that are not finite were set to 0")
            np.nan_to_num(sound, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        result.audio, result.rate = np.clip(sound, -1, 1, out=sound), self.rate
        result.audio_start = self.begin + start / self.rate


def waveform(frame: Any) -> np.ndarray:
    """Samples (c n) of one decoded frame as float32, full scale = 1."""
    wave = frame.to_ndarray()
    if frame.format.is_packed:
        wave = rearrange(wave, "1 (n c) -> c n", c=frame.layout.nb_channels)
    if wave.dtype == np.uint8:
        return (wave.astype(np.float32) - 128) / 128
    # Full scale is the most negative integer, so that no sample leaves [-1, 1].
    scale = 1 if wave.dtype.kind == "f" else -float(np.iinfo(wave.dtype).min)
    return (wave / scale).astype(np.float32)
