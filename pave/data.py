"""Questions about clips, as all readers give them.

In: what a reader (pave/readers) understood of a data file. Out: `Example`s. Knows nothing of models and of the formats
of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pave.errors import DataError, UsageError

TRACKS = ("audio_track", "video_track")


Files = str | None | tuple[str | None, ...]  # of one signal: a file or folder, several (None: missing), or none


def whole(path: Path) -> Path:
    """The file of a signal, without the part that `infos.json#scene` names."""
    return path if os.path.exists(path) else Path(str(path).partition("#")[0])


@dataclass(frozen=True)
class Source:
    """The files of one clip: its video, and further signals by name; and which tracks and seconds of it are read."""

    video: Path
    signals: tuple[tuple[str, Files], ...] = ()
    audio_track: int | None = None  # from 0; None: the file's default one
    video_track: int | None = None
    start: float | None = None  # seconds on the file's clock; None: of all of it
    end: float | None = None

    def __str__(self) -> str:
        return str(self.video)

    @property
    def tracks(self) -> dict[str, Any]:
        """The chosen tracks and seconds, as options of `Clip.read`."""
        return {name: each for name in (*TRACKS, "start", "end") if (each := getattr(self, name)) is not None}

    def options(self, hears: bool) -> dict[str, Any]:
        """Options of `Clip.read`; `hears`: whether an encoder reads sound."""
        return {"audio": hears and "audio" not in dict(self.signals), **self.tracks}

    def beside(self, hears: bool) -> dict[str, Files]:
        """The further signals that are needed; `hears` as in `options`."""
        return {name: files for name, files in self.signals if hears or name != "audio"}

    @property
    def files(self) -> list[Path]:
        """All of them, without missing ones."""
        named = [each if isinstance(each, tuple) else (each,) for _, each in self.signals]
        return [self.video, *(whole(Path(file)) for files in named for file in files if file is not None)]


@dataclass(frozen=True)
class Example:
    """One question about one clip. `facts` holds the other keys of its line (channel, kind, optimum, ...)."""

    source: Source
    question: str
    answer: str
    line: int
    facts: dict[str, Any] = field(default_factory=dict)
    unit: str = "line"  # what `line` counts: lines of a file, items of a list, rows of a table
    weight: float = 1.0  # how often its clip comes in an epoch
    history: tuple[tuple[str, str], ...] = ()  # questions and answers before it, in its dialogue
    choices: tuple[str, ...] = ()  # options A, B, ... of a question that is answered by a letter
    subtitles: Path | None = None  # file that fills the slot of the question's prompt

    @property
    def video(self) -> Path:
        return self.source.video

    @property
    def place(self) -> str:
        """Where in its file it is."""
        return f"{self.unit} {self.line}"


Refuse = Callable[[str, str], object]  # raises UsageError for a text that a base does not take; with the text's name


def flaw_of(example: Example, refuse: Refuse) -> str:
    """What `refuse` finds wrong with the texts of an example; empty if nothing."""
    try:
        for asked, answered in (*example.history, (example.question, example.answer)):
            refuse(asked, "question")
            refuse(answered, "answer")
    except UsageError as error:
        return str(error)
    return ""


def refuse_texts(file: str | Path, examples: Iterable[Example], refuse: Refuse) -> None:
    """DataError, with its place, for the first question or answer that `refuse` does not take."""
    for example in examples:
        if flaw := flaw_of(example, refuse):
            raise DataError(f"{file}, {example.place}: {flaw}")
