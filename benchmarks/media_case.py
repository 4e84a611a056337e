"""One media file of the benchmark: how it is made, and what a player would show. See media_cases.py.

In: how to make a file. Out: a `Case`. Knows nothing of PAVE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from media_files import (
    EVENTS,
    ffmpeg,
    join,
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
