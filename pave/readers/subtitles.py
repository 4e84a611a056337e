"""Subtitles of a film: what is spoken at its key frames.

In: an SRT file, and times in seconds. Out: the texts that are on screen then. Knows nothing of pictures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pave.errors import DataError, raised_as
from pave.files.atomic import reading
from pave.readers.wording import SUBTITLES

LARGEST = 16 << 20  # bytes of a file; those of a long film have some 200,000
TIME = r"(\d{1,3}):(\d\d):(\d\d)[,.](\d{1,3})"
SPAN = re.compile(rf"^\s*{TIME}\s*-->\s*{TIME}")
TAG = re.compile(r"<[^<>]*>")  # Video-MME's have <font color="white" size=".72c">
NONE = "No subtitles available"  # as lmms-eval says it


class Cue(NamedTuple):
    """One text and when it is on screen, in seconds."""

    start: float
    end: float
    text: str


def cues(file: Path) -> list[Cue]:
    """All texts of a file. DataError if it has none."""
    with raised_as(DataError), reading(file) as opened:
        text = opened.read(LARGEST).decode("utf-8-sig", "replace")
    found: list[Cue] = []
    for block in re.split(r"\r?\n[ \t]*\r?\n", text):
        lines = block.splitlines()
        place = next((i for i, line in enumerate(lines) if SPAN.match(line)), None)
        if place is not None and (span := SPAN.match(lines[place])):
            times = [_seconds(*map(int, span.groups()[part : part + 4])) for part in (0, 4)]
            spoken = " ".join(" ".join(TAG.sub("", line) for line in lines[place + 1 :]).split())
            found += [Cue(times[0], times[1], spoken)] if spoken else []
    if not found:
        raise DataError(f"{file}: has no subtitles in SubRip's layout; download it again, or remove it")
    return found


def _seconds(hours: int, minutes: int, seconds: int, thousandths: int) -> float:
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


def filled(prompt: str, file: Path, times: Iterable[float]) -> str:
    """A prompt with the subtitles that are on screen at some of the times, each once."""
    known, shown = list(times), NONE
    if os.path.exists(file):
        shown = "\n".join(cue.text for cue in cues(file) if any(cue.start <= second < cue.end for second in known))
    return prompt.replace(SUBTITLES, shown, 1)
