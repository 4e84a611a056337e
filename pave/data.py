"""Questions about clips: JSONL in, token rows out.

In: JSONL in LLaVA's format (`id`, `video`, `conversations`), one or more turns per line; `signals` names further files:
{"imu": "imu/1.npy", "views": ["left.mp4", "right.mp4"], "depth": "scans/1"}; `audio` there replaces the video's own
sound (null: without sound); `audio_track` and `video_track` choose tracks of the video. Out: `Example`s, and token rows
in which all questions about one clip share its prefix. Knows nothing of models.

b clips, l tokens of a row
"""

from __future__ import annotations

import os
import shlex
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pave.errors import DataError, UsageError, raised_as
from pave.files.atomic import reading
from pave.text.shown import counted, quoted
from pave.text.values import json_value

LONGEST = 4 << 20  # bytes of a line: reading one takes up to thirty times as much memory
CHANNEL = 100  # characters of the name of a group of questions
IGNORE = -100  # the label that cross-entropy skips (torch's default `ignore_index`)
TAGS = ("<video>", "<image>")
TRACKS = ("audio_track", "video_track")


Files = str | None | tuple[str | None, ...]  # of one signal: a file or folder, several (None: missing), or none


def whole(path: Path) -> Path:
    """The file of a signal, without the part that `infos.json#scene` names."""
    return path if os.path.exists(path) else Path(str(path).partition("#")[0])


@dataclass(frozen=True)
class Source:
    """The files of one clip: its video, and further signals by name; and which tracks of the video are read."""

    video: Path
    signals: tuple[tuple[str, Files], ...] = ()
    audio_track: int | None = None  # from 0; None: the file's default one
    video_track: int | None = None

    def __str__(self) -> str:
        return str(self.video)

    @property
    def tracks(self) -> dict[str, int]:
        """The chosen tracks, as options of `Clip.read`."""
        return {name: number for name in TRACKS if (number := getattr(self, name)) is not None}

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

    @property
    def video(self) -> Path:
        return self.source.video


def read_jsonl(path: str | Path) -> list[Example]:
    """All questions of a JSONL file; its paths are relative to its folder. A broken line: DataError with its number."""
    path = Path(path)
    refuse_no_file(path)
    examples: list[Example] = []
    with raised_as(DataError), reading(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            if not examples and line.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
                command = f"jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(str(path.with_suffix('.lines.jsonl')))}"
                raise DataError(f"{path}: is a JSON list; write one line per object: {command}")
            if len(line) > LONGEST:
                raise DataError(f"{path}, line {number}: has over {LONGEST:,} bytes; split it into several lines")
            if line.strip():
                examples.extend(_examples(path, number, line))
    if not examples:
        raise DataError(f"{path}: contains no question; write one JSON object per line")
    return examples


def refuse_texts(file: str | Path, examples: Iterable[Example], refuse: Callable[[str, str], object]) -> None:
    """DataError, with its line, for the first question or answer that `refuse` (a text, its name) does not take."""
    for example in examples:
        try:
            refuse(example.question, "question")
            refuse(example.answer, "answer")
        except UsageError as error:
            raise DataError(f"{file}, line {example.line}: {error}") from None


def refuse_no_file(path: Path) -> None:
    """Refuse a missing file or a folder."""
    if os.path.isdir(path) or not os.path.exists(path):  # unlike Path's, they take names too long for a file system
        cause = "is a folder" if os.path.isdir(path) else "no such file"
        raise DataError(f"{path}: {cause}; give a JSONL file whose lines have id, video and conversations")


def _examples(path: Path, number: int, raw: bytes) -> Iterator[Example]:
    def broken(cause: str) -> DataError:
        return DataError(f"{path}, line {number}: {cause}; fix or delete the line")

    try:
        line = json_value(raw.removeprefix(BOM_UTF8))  # some editors write a byte order mark
    except ValueError as error:
        raise broken(str(error)) from None
    if not isinstance(line, dict):
        raise broken(f"expected a JSON object, got {type(line).__name__}")
    video, turns = line.get("video"), line.get("conversations")
    if not isinstance(video, str) or not video:
        raise broken(f"needs 'video', the path of a media file; has the keys {quoted(sorted(line))}")
    if not _nameable(video):
        raise broken(f"'video' is {quoted(video)}, which is not a valid file name")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        actual = counted(len(turns), "turn") if isinstance(turns, list) else type(turns).__name__
        raise broken(f"needs 'conversations', a list of alternating questions and answers, has {actual}")
    signals = line.get("signals", {})
    if not isinstance(signals, dict):
        raise broken(f"'signals' must map names to paths, got {type(signals).__name__}")
    for name, named in signals.items():
        for file in named if isinstance(named, list) else [named]:
            if file is not None and not (isinstance(file, str) and file and _nameable(file)):
                raise broken(f"signal {quoted(name)} must be a path, a list of paths, or null, got {quoted(named)}")
        if name == "audio" and isinstance(named, list):
            raise broken(f"signal 'audio' must be one path, or null, got {quoted(named)}")
    tracks = [line.get(name) for name in TRACKS]
    for name, track in zip(TRACKS, tracks, strict=True):
        if track is not None and (type(track) is not int or track < 0):
            raise broken(f"{name!r} must be a whole number, counted from 0, got {quoted(track)}")
    if "audio" in signals and tracks[0] is not None:
        raise broken("'audio_track' chooses a sound of the video, and the signal 'audio' replaces it; give one of them")
    beside = tuple((name, _beside(path.parent, each)) for name, each in signals.items())
    source = Source(path.parent / video, beside, *tracks)
    facts = {key: value for key, value in line.items() if key not in ("video", "signals", "conversations", *TRACKS)}
    channel = str(facts.get("channel", ""))
    if len(channel) > CHANNEL or not channel.isprintable():
        cause = f"'channel' names a group of figures: at most {CHANNEL} printable characters"
        raise broken(f"{cause}, got {quoted(channel)}")
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        for turn, speaker in ((asked, "human"), (answered, "gpt")):
            if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
                raise broken(f"expected a turn {{'from': {speaker!r}, 'value': text}}, got {quoted(turn)}")
        question = asked["value"]
        for tag in TAGS:
            question = question.replace(tag, "")
        if not question.strip() or not answered["value"].strip():
            raise broken("question and answer must not be empty")
        yield Example(source, question.strip(), answered["value"].strip(), number, facts)


def _beside(folder: Path, named: Any) -> Files:
    """Paths of a line, relative to the folder of its file."""
    if isinstance(named, list):
        return tuple(None if each is None else str(folder / each) for each in named)
    return None if named is None else str(folder / named)


def _nameable(path: str) -> bool:
    """Whether an operating system can have a file of this name."""
    try:
        name = os.fsencode(path)
        return b"\0" not in name and len(name) < 4096 and max(map(len, name.split(b"/"))) < 256
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True)
class Row:
    """One clip's tokens: a prefix, then turns that each attend to the prefix and themselves."""

    ids: Tensor  # int64 (l)
    positions: Tensor  # int64 (l): every turn continues where the prefix ends
    turns: Tensor  # int64 (l): 0 for the prefix, then 1, 2, ...
    labels: Tensor  # int64 (l): IGNORE except for the answers


def pack(prefix: Sequence[int], turns: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Row:
    """Pack turns (question ids, answer ids) after one prefix.

    The visual tokens are by far the longest part of a row; packing computes them once for all questions of a clip. With
    the mask of `collate` every answer attends to exactly the tokens that it would have in a separate row.
    """
    ids, positions, owners, labels = list(prefix), list(range(len(prefix))), [0] * len(prefix), [IGNORE] * len(prefix)
    for owner, (question, answer) in enumerate(turns, 1):
        ids += [*question, *answer]
        positions += range(len(prefix), len(prefix) + len(question) + len(answer))
        owners += [owner] * (len(question) + len(answer))
        labels += [IGNORE] * len(question) + list(answer)
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
