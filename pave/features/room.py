"""How much disk the features of clips take, and so what is kept of their pictures.

In: a base, the number of clips, and a folder. Out: a `Room`: whether features or pictures are kept, and why, in words.
Knows nothing of side channels, whose tokens are small and always kept.

y x pixels
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pave.base import Host
from pave.errors import DataError
from pave.media.clip import Clip
from pave.text.shown import counted

Mode = Literal["auto", "keep", "none"]
SHARE = 0.9  # of the free bytes of a disk that features may take
GB = 1e9
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Room:
    """What is kept, and why."""

    features: bool  # or else pictures
    why: str


def room(host: Host, mode: Mode, budget: float | None, folder: Path, clips: int, missing: int) -> Room:
    """What to keep in a folder of so many clips, of which some are missing there. `budget`: GB for all of them.

    DataError if features are to be kept, and do not fit."""
    each = bytes_of_features(host)
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free
    small, pictures = missing * each <= SHARE * free, clips * bytes_of_pictures(host)
    fits = small and (budget is None or clips * each <= budget * GB)
    if mode == "keep" and not fits:
        remedy = "set data.cache to none or auto, or make room"
        raise DataError(f"{folder}: data.cache is keep, but {_need(clips, each)}; {_has(free, budget)}; {remedy}")
    if fits and mode != "none":
        return Room(True, f"data.cache: keep; {_need(clips, each)}, {_has(free, budget)}")
    cause = "" if mode == "none" else f"{_need(clips, each)}, {_has(free, budget)}; so "
    most = f"at most {_size(pictures)}" + ("" if pictures <= SHARE * free else ", which may be more than is free")
    told = f"the pictures are kept instead, without loss ({most}), and the vision tower runs in every step"
    return Room(False, f"data.cache: none; {cause}{told}")


def bytes_of_features(host: Host) -> int:
    """Of the vision tower's features of one clip: those of one black step, times the steps."""
    black = Clip(torch.zeros(host.pair, 3, *host.size, dtype=torch.uint8))
    seen = host.encode([host.pixels(black)])
    parts = [part for part in (seen.vision, seen.tokens, seen.deep) if part is not None]
    return sum(part.nbytes for part in parts) * math.ceil(host.frames / host.pair)


def bytes_of_pictures(host: Host) -> int:
    """Of the key frames of one clip, at most: of four films, the pictures took 17 to 46 % of it."""
    return host.frames * 3 * host.size[0] * host.size[1]


def _need(clips: int, each: int) -> str:
    return f"features of {counted(clips, 'clip')} take {_size(clips * each)} ({_size(each)} each)"


def _has(free: int, budget: float | None) -> str:
    return f"{_size(free)} are free" + ("" if budget is None else f", data.budget is {_size(budget * GB)}")


def _size(count: float) -> str:
    """Bytes in three digits, such as "59.4 MB"."""
    power = max(0, min(int(math.log10(max(count, 1)) // 3), len(UNITS) - 1))
    return f"{count / 1000**power:.3g} {UNITS[power]}"
