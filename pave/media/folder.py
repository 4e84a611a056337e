"""A folder of pictures as a clip: a film's frames, or the posed images of a scan. Its key frames are its own pictures.

In: a `Request` for a folder. Out: the parts of a clip, as `decode` gives them for a file. A picture is on screen for
one second, in the order of the numbers in their names. Of a scan in ScanNet's layout the pictures are those in color/
whose pose is known, and key frame i is view i of pave/media/rgbd.py. Imports only numpy and Pillow, as decoding does.

t pictures, y x pixels
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pave.files.atomic import opened
from pave.media.container import refuse
from pave.media.key_frames import MAX_BYTES, Request, check_window

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LARGEST = 1 << 26  # pixels of one picture: larger ones are damaged or decompression bombs
MOST = 100_000  # pictures in a folder; ScanNet's longest scan has some 20,000
POSE = 1 << 16  # bytes read from a file with a pose
SECONDS = 2.0  # of a processor that a slow one needs for a large picture


def parts(request: Request) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """What is requested of a folder, or a MediaError."""
    check_window(request)
    place = request.path
    if tracks := [name for name in ("audio_track", "video_track") if getattr(request, name) is not None]:
        raise refuse(place, f"is a folder of pictures, which has no {tracks[0]}", "leave it out")
    scan = is_scan(place)
    pictures = [each for each in pictures_in(Path(place)) if not scan or _is_posed(Path(place), each)]
    if not pictures:
        raise refuse(place, "has no picture with a known pose", "export the poses again")
    chosen, times, shown = _chosen(len(pictures), request)
    numbers = sorted(set(chosen))
    yield {"work": SECONDS * len(numbers)}, None
    yield {"plan": [numbers.index(each) for each in chosen], "times": times}, None
    size: tuple[int, int] | None = None
    for number, each in enumerate(numbers):
        picture = _pixels(pictures[each], turned=not scan)
        if picture.nbytes * len(numbers) > MAX_BYTES:
            cause = f"{len(numbers)} pictures as large as {pictures[each].name} exceed {MAX_BYTES:,} bytes"
            raise refuse(place, cause, "request fewer, or smaller ones")
        if (size := size or picture.shape[:2]) != picture.shape[:2]:
            sizes = " and ".join(f"{each[1]}x{each[0]}" for each in (size, picture.shape))
            raise refuse(place, f"its pictures are {sizes}", "make them one size")
        yield {"picture": number}, picture
    count = len(pictures)
    facts: dict[str, Any] = {"pictures": count, "expected": count, "seconds": float(count), "gap": 1.0}
    facts |= {"first": float(shown.start), "last": float(shown.stop - 1)}
    facts |= {"audio": "a folder of pictures has no sound" if request.audio else "not requested"}
    yield {"facts": facts | {"decoder": f"Pillow {Image.__version__}", "warnings": []}}, None  # type: ignore[attr-defined]


def is_scan(place: str) -> bool:
    """Whether a folder has ScanNet's layout."""
    return all(os.path.isdir(os.path.join(place, part)) for part in ("color", "depth", "pose"))


def evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of a count, equally spaced, the first and the last included."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)] if most > 1 else [0]


def _chosen(count: int, request: Request) -> tuple[list[int], list[float], range]:
    """The pictures of a request, their times, and those in its span."""
    if request.at is not None:
        places = [min(floor(second + 1e-6), count - 1) for second in request.at]
        return places, [float(second) for second in request.at], range(count)
    first = max(0, -floor(-(request.start or 0.0)))  # the first that begins within the span
    span = range(first, min(count, count if request.end is None else -floor(-request.end)))
    if not span:
        raise refuse(request.path, f"has {count} pictures, a second each, and none in the span", "request another span")
    if request.fps is not None:
        times = [span.start + step / request.fps for step in range(floor((len(span) - 1) * request.fps + 1e-6) + 1)]
        return [min(floor(second + 1e-6), span[-1]) for second in times], times, span
    places = [span[place] for place in evenly(len(span), len(span) if request.frames is None else request.frames)]
    places = [] if request.frames == 0 else places
    return places, [float(place) for place in places], span


def pictures_in(folder: Path) -> Sequence[Path]:
    """The pictures in a folder, or in its color/, by the numbers in their names."""
    colours = folder / "color"
    place = colours if colours.is_dir() else folder
    try:
        with os.scandir(place) as entries:
            found = [Path(each.path) for _, each in zip(range(MOST + 1), entries, strict=False)]
    except OSError as error:
        raise refuse(str(place), f"cannot be read ({error.strerror})", "fix its permissions") from None
    if len(found) > MOST:
        raise refuse(str(place), f"has more than {MOST:,} files", "give a folder of one clip")
    pictures = [each for each in found if each.suffix.lower() in ENDINGS]
    if not pictures:
        raise refuse(str(folder), "is a folder without pictures", f"pass a file, or a folder of {', '.join(ENDINGS)}")
    return sorted(pictures, key=_in_order)


def _in_order(picture: Path) -> list[tuple[int, str]]:
    """A key by which 2.jpg comes before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", picture.name)]


def _is_posed(folder: Path, picture: Path) -> bool:
    """Whether the pose of a view is finite; ScanNet marks lost tracking by infinities."""
    pose = folder / "pose" / f"{picture.stem}.txt"
    try:
        with opened(pose) as file:
            return bool(np.isfinite([float(word) for word in file.read(POSE).split()]).all())
    except (OSError, ValueError) as error:
        raise refuse(str(pose), f"cannot be read ({error})", "it must hold 16 numbers") from None


def _pixels(path: Path, turned: bool) -> np.ndarray:
    """A picture (y x 3); `turned`: by its EXIF orientation. Poses refer to the stored pixels."""
    try:
        with opened(path) as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height}, more than {LARGEST:,} pixels")
            upright = ImageOps.exif_transpose(image) if turned else image
            return np.array(upright.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise refuse(str(path), f"cannot be read ({error})", "give a PNG, JPEG or WebP file") from None
