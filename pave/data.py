"""Questions about clips, and token rows in which all questions about one clip share its prefix.

In: what a reader (pave/readers) understood of a data file. Out: `Example`s, and token rows. Knows nothing of models and
of the formats of files.

b clips, l tokens of a row
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pave.errors import DataError, UsageError

IGNORE = -100  # the label that cross-entropy skips (torch's default `ignore_index`)
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


class Turn(NamedTuple):
    """A question and its answer as ids."""

    prompt: Sequence[int]  # after the video, or behind the end of the answer before
    answer: Sequence[int]  # with the end of the turn
    follows: bool = False  # whether it goes on in the dialogue of the turn before, and attends to that


@dataclass(frozen=True)
class Row:
    """One clip's tokens: a prefix, then dialogues of one or more turns, which attend to the prefix and themselves."""

    ids: Tensor  # int64 (l)
    positions: Tensor  # int64 (l): every dialogue continues where the prefix ends
    turns: Tensor  # int64 (l): 0 for the prefix, then 1, 2, ... for each dialogue
    labels: Tensor  # int64 (l): IGNORE except for the answers


def pack(prefix: Sequence[int], turns: Sequence[Turn | tuple[Sequence[int], Sequence[int]]]) -> Row:
    """Pack turns after one prefix; a mere pair of a turn's ids begins a dialogue.

    The visual tokens are by far the longest part of a row; packing computes them once for all questions of a clip. With
    the mask of `collate` every answer attends to exactly the tokens that it would have in a separate row.
    """
    ids, positions, owners, labels = list(prefix), list(range(len(prefix))), [0] * len(prefix), [IGNORE] * len(prefix)
    owner, position = 0, len(prefix)
    for prompt, answer, follows in (turn if isinstance(turn, Turn) else Turn(*turn) for turn in turns):
        owner, position = (owner, position) if follows else (owner + 1, len(prefix))
        length = len(prompt) + len(answer)
        ids += [*prompt, *answer]
        positions += range(position, position + length)
        owners += [owner] * length
        labels += [IGNORE] * len(prompt) + list(answer)
        position += length
    return Row(*(torch.tensor(values, dtype=torch.int64) for values in (ids, positions, owners, labels)))


def collate(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """Rows, left-padded: input_ids, position_ids, labels (b l) and a boolean attention_mask (b 1 l l)."""
    length = max(len(row.ids) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        out = torch.full((len(rows), length), value, dtype=torch.int64)
        for i, row in enumerate(rows):
            values = getattr(row, name)
            out[i, length - len(values) :] = values
        return out

    turns = padded("turns", -1)
    real = turns >= 0
    before = torch.ones(length, length, dtype=torch.bool).tril()
    same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
    mask = before & same & real[:, None, :]
    mask |= torch.eye(length, dtype=torch.bool)  # padding attends to itself, so that no softmax is empty (NaN)
    return {
        "input_ids": padded("ids", pad),
        "position_ids": padded("positions", 0),
        "labels": padded("labels", IGNORE),
        "attention_mask": mask[:, None],
    }
