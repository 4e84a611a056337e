"""One media file -> arrays on one clock.

In: a `Request` (which file, which pictures, sound or not). Out: parts, in the order in which they are decoded:
pictures, their times, pieces of sound, the facts for the report; `gathered` makes a `Decoded` of them. Knows nothing of
torch, models or processes, so that a worker starts fast.

Clock: the first picture's time stamp is 0 s; sound is placed on the same clock by its own time stamps. A file without
pictures starts at its first sample. Only data that decodes counts. Three passes over the file (survey, pictures, sound)
hold one picture and one second of sound in memory.

Legend: t pictures, y x pixels, c channels, n samples. A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from einops import rearrange

from pave.media import animation
from pave.media.container import Survey, check_file, decoder, heard, opened, refuse, stamped, walk
from pave.media.key_frames import Picks, Request, check_window, needed, pick
from pave.media.sound import Sound, joined
from pave.media.stamps import UNKNOWN

ORIENTATION = 0x0112  # tag of EXIF 2.32
MOST_HELD = 50e6  # pixels of frames that Python has not freed: in PyAV, a frame and its side data refer to each other
MAX_RATE = 1 << 20  # Hz: above all real sound; resampling from damaged rates takes the caller's memory
SLOWEST = 20e6  # pixels that a core decodes per second, at the least

# What a part is, and its array: "plan": for each requested instant the number of its picture, and "times" (what came
# before is void); "picture": its number (y x c); "sound": the place of its first sample (c n); "facts" at the end.
Part = tuple[dict[str, Any], np.ndarray | None]


@dataclass
class Decoded:
    """Arrays of one clip, and the facts for its report."""

    frames: np.ndarray | None = None  # uint8 (t y x 3)
    times: np.ndarray | None = None  # float64 (t,)
    audio: np.ndarray | None = None  # float32 (c n)
    rate: int | None = None
    audio_start: float = 0.0
    size: tuple[int, int] | None = None  # y x of the file's pictures
    facts: dict[str, Any] = field(default_factory=dict)


def decode(request: Request) -> Iterator[Part]:
    """Read what is requested, or raise a MediaError that says what is wrong with the file."""
    if os.path.isdir(request.path):
        from pave.media import folder  # Pillow is rarely needed; keeps the worker's start fast

        yield from folder.parts(request)
        return
    check_window(request)
    check_file(request.path)
    survey = survey_of(request.path, request.video_track, request.audio_track)
    if survey.encrypted:
        raise refuse(request.path, "is encrypted", "decrypt it first")
    yield {"work": work_of(request, survey)}, None
    facts: dict[str, Any] = {}
    origin = yield from pictures(request, survey, facts)
    if request.audio:
        yield from sound_of(request, survey, origin, facts)
    else:
        facts["audio"] = "not requested"
    if origin is None and "rate" not in facts:
        raise refuse(request.path, *why_nothing(request, survey))
    yield {"facts": facts | {"decoder": decoder(), "warnings": [*survey.cut_short, *survey.warnings]}}, None


def survey_of(path: str, video_track: int | None = None, audio_track: int | None = None) -> Survey:
    """What a file holds."""
    return animation.survey_of(path) if animation.animated(path) else walk(path, video_track, audio_track)


def work_of(request: Request, survey: Survey) -> float:
    """Seconds of one core that a slow decoder may need for a file."""
    height, width = survey.video.size if survey.video else (0, 0)
    return survey.reached + len(survey.packets) * height * width / SLOWEST


def why_nothing(request: Request, survey: Survey) -> tuple[str, str]:
    """Cause and remedy for a file of which nothing was read."""
    if not survey.packets and not survey.sounds:
        return "has a header, but holds no picture and no sample of sound", "record or download it again"
    if survey.video is None and not request.audio:
        return "holds sound only, but pictures were requested", "give a video"
    return "nothing in it decodes", "the file is damaged: download or record it again"


def gathered(parts: Iterable[Part], scale: Callable[[np.ndarray], np.ndarray] | None = None) -> Decoded:
    """The arrays of all parts; `scale` is applied to each picture (y x 3) as it comes."""
    result, order, films, sounds = Decoded(), [], {}, []
    for values, array in parts:
        if "plan" in values:
            order, films = values["plan"], {}
            result.times = np.array(values["times"], np.float64) if order else None
        elif "picture" in values and array is not None:
            result.size = array.shape[:2]
            films[values["picture"]] = scale(array) if scale else array
        elif "sound" in values:
            sounds.append((values["sound"], array))
        elif "facts" in values:
            result.facts = values["facts"]
    if order:
        result.frames = np.empty((len(order), *films[order[0]].shape), np.uint8)
        last = {number: place for place, number in enumerate(order)}
        for place, number in enumerate(order):
            result.frames[place] = films[number] if last[number] > place else films.pop(number)
    rate, begin = result.facts.pop("rate", None), result.facts.pop("begin", 0.0)
    if sounds:
        result.rate, result.audio_start = rate, begin + sounds[0][0] / rate
        result.audio = joined(sounds)
    return result


# ---------------------------------------------------------------- pictures


class Shown(NamedTuple):
    """A decoded picture."""

    stamp: int
    entry: bool  # it refers to no other picture
    flawed: bool  # the decoder marks it as corrupt
    pixels: Callable[[], np.ndarray]  # (y x 3)


@dataclass
class Reading:
    """The stamps of the pictures read, and how many of these have errors."""

    stamps: set[int] = field(default_factory=set)
    flawed: int = 0


def pictures(request: Request, survey: Survey, facts: dict[str, Any]) -> Generator[Part, None, Fraction | None]:
    """The requested pictures. Returns the first stamp in seconds, None if no picture decodes."""
    if survey.video is None:
        return None
    path, track, packets = request.path, survey.video, survey.packets
    stamps = sorted({p.stamp for p in packets if p.shown})
    expected = max(survey.frames, len(packets)) - survey.cut
    picks, read = None, Reading()
    if stamps and stamps[0] > UNKNOWN:
        picks = pick(stamps, request, track)
        wanted = {*picks.stamps, stamps[0]}  # the first picture sets the clock, so it must decode too
        read = yield from collect(path, survey, picks, stamps[0], *needed(packets, wanted))
    if picks is None or not read.stamps >= {*picks.stamps, stamps[0]}:
        # Stamps are missing, or packets do not decode as announced: decode everything to find the usable pictures.
        stamps = sorted({each.stamp for each in shown(path, survey)})
        if len(stamps) < len(packets) - survey.cut:
            survey.warnings.append(f"damaged: {len(stamps)} of {len(packets) - survey.cut} coded pictures decode")
        if not stamps:
            yield {"plan": [], "times": []}, None
            return None
        picks = pick(stamps, request, track)
        read = yield from collect(path, survey, picks, stamps[0])
        if not read.stamps >= {*picks.stamps}:
            raise refuse(path, "decodes differently each time", "the file is damaged: re-encode it")
    if read.flawed:
        survey.warnings.append(f"damaged: {read.flawed} of the {len(read.stamps)} pictures read have errors")
    seconds = float((stamps[-1] - stamps[0]) * track.base + track.gap)
    first, last = (float((stamp - stamps[0]) * track.base) for stamp in picks.span)
    facts |= {"pictures": len(stamps), "expected": expected, "seconds": seconds}
    facts |= {"first": first, "last": last, "gap": float(track.gap)}
    return stamps[0] * track.base


def collect(
    path: str, survey: Survey, picks: Picks, first: int, feed: list[bool] | None = None, entries: Collection[int] = ()
) -> Generator[Part, None, Reading]:
    """The picked pictures, and whether the file's first one decodes; ends early where a picture cannot be trusted."""
    assert survey.video is not None
    number = {stamp: k for k, stamp in enumerate(sorted(set(picks.stamps)))}
    times = [float((target - first) * survey.video.base) for target in picks.targets]
    yield {"plan": [number[stamp] for stamp in picks.stamps], "times": times}, None
    wanted, missing, read = {*number, first}, set(entries), Reading()
    for each in shown(path, survey, feed):
        if each.entry:
            missing.discard(each.stamp)
        if each.stamp not in wanted or each.stamp in read.stamps:
            continue
        if missing and min(missing) <= each.stamp:
            # H.264 with gradual refresh: the entry point refers to earlier pictures, so all must be decoded.
            break
        if first not in (each.stamp, *read.stamps):
            break
        read.stamps.add(each.stamp)
        read.flawed += each.flawed
        picture = each.pixels()  # also of the first, unless it is picked: it sets the size of all
        if each.stamp in number:
            yield {"picture": number[each.stamp]}, picture
        if len(read.stamps) == len(wanted):
            break
    return read


def shown(path: str, survey: Survey, feed: list[bool] | None = None) -> Iterator[Shown]:
    """The pictures that decode, in order, all of the size of the first one whose pixels are read."""
    assert survey.video is not None
    if survey.kind == animation.KIND:
        for stamp, picture in animation.pictures_of(path, survey.packets):
            yield Shown(stamp, True, False, partial(np.asarray, picture))
        return
    size, scaler = {}, VideoReformatter()  # one for all pictures: its setup costs more than a small picture
    held = 0

    def pixels(frame: Any) -> np.ndarray:
        nonlocal held
        held += frame.width * frame.height
        if held > MOST_HELD:
            gc.collect()
            held = 0
        size.update({} if size else {"width": frame.width, "height": frame.height})
        return upright(scaler.reformat(frame, format="rgb24", **size).to_ndarray(), frame, path)

    with opened(path) as container:
        for stamp, frame in stamped(container, survey.video, survey.stamps, feed):
            intra = frame.pict_type == PictureType.I
            yield Shown(stamp, intra, bool(frame.is_corrupt), partial(pixels, frame))


def one_by_one(parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """The pictures (y x 3) at the requested instants, in order; those not yet due are held."""
    order, last, films, due = [], {}, {}, 0
    for values, array in parts:
        if "plan" in values:
            order, films = values["plan"], {}
            last = {number: place for place, number in enumerate(order)}
        elif "picture" in values:
            films[values["picture"]] = array
        while due < len(order) and order[due] in films:
            number, due = order[due], due + 1
            yield films[number] if last[number] >= due else films.pop(number)


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


def sound_of(
    request: Request, survey: Survey, origin: Fraction | None, facts: dict[str, Any]
) -> Generator[Part, None, None]:
    """The first sound track that decodes, on a clock that starts at `origin` seconds."""
    for number in survey.heard:
        with opened(request.path) as container:
            context = container.streams[survey.audio[number]].codec_context
            name, pieces, failed = context.name if context else "unknown codec", 0, []
            sound = Sound(request, origin, counted=survey.counted)
            rate = context.sample_rate if context else 0
            if context is not None and rate <= MAX_RATE:
                for place, wave in sound.read(heard(container, survey.audio[number], survey.shifts, failed)):
                    pieces += 1
                    yield {"sound": place}, wave
        if not sound.rate:
            why = f"claims {rate} samples a second" if rate > MAX_RATE else "does not decode"
            survey.warnings.append(f"sound track {number} ({name}) {why}")
            continue
        survey.warnings += [f"damaged: {len(failed)} of the coded pieces of sound do not decode"] if failed else []
        survey.warnings += sound.warnings
        if not pieces and origin is None:
            raise refuse(
                request.path, f"has no sound in the span: it lasts {sound.seconds:.2f} s", "request another span"
            )
        if len(survey.audio) > 1 and request.audio_track is None:
            survey.warnings.append(f"{len(survey.audio)} sound tracks: audio_track={number} is used")
        facts |= {"rate": sound.rate, "begin": sound.begin}
        channels = "mono" if sound.channels == 1 else f"{sound.channels} channels"
        told = f"{name}, {sound.rate} Hz, {channels}, {sound.seconds:.2f} s"
        facts["audio"] = told if pieces else "no sound in the requested span"
        facts.setdefault("seconds", sound.seconds)
        return
    facts["audio"] = "no sound track decodes" if survey.audio else "no audio track"
