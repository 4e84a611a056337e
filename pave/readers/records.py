"""Records of a data file: what its lines, items, rows or samples hold, with the place of each.

In: a file of JSON (a line per record, one list, or one object that holds a list or names its records), or what the
readers of tables and shards open. Out: `Record`s. A record that cannot be read holds the cause instead, so that others
can be read. Everything is read in pieces, except an object, which has a bound. Knows nothing of questions.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pave.errors import DataError
from pave.files.atomic import reading
from pave.text.shown import counted, quoted
from pave.text.values import json_first, json_value

LONGEST = 4 << 20  # bytes of a record: reading one takes up to thirty times as much memory
DOCUMENT = 256 << 20  # bytes of a file that is one object; the largest published one, of SQA3D, has some 12 MB
PIECE = 1 << 18  # characters of a list that are read at once
HOLDERS = ("dialogs", "questions", "annotations", "data")  # keys under which published objects hold their records
SPACE = " \t\r\n"


@runtime_checkable
class Packed(Protocol):
    """A media file that is not on the disk yet: inside a shard or a table."""

    def unpack(self, folder: Path) -> Path:
        """Its path in a folder, where it is written unless it is there."""
        ...


@dataclass(frozen=True)
class Record:
    """One entry of a file."""

    number: int
    value: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "line"
    name: str = ""  # its key in an object of records
    flaw: str = ""  # why it could not be read; empty: it could

    @property
    def place(self) -> str:
        """Where in its file it is."""
        return f"{self.unit} {self.number}"


def json_records(path: Path) -> Iterator[Record]:
    """The records of a JSON file in any of its three forms. Which one it has is seen at its beginning."""
    with reading(path) as file:
        lines = (line.removeprefix(BOM_UTF8).strip() for line in iter(lambda: file.readline(LONGEST + 1), b""))
        filled = filter(None, lines)
        first = next(filled, b"")
        second = next(filled, b"") if first == b"{" else b""
        file.seek(0)
        if first.startswith(b"["):
            yield from _items(path, file)
        elif _begins_document(path, first, second):
            yield from _document(path, file)
        else:
            yield from _lines(path, file)


def _lines(path: Path, file: BufferedReader) -> Iterator[Record]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
        if len(line) > LONGEST:
            raise DataError(f"{path}, line {number}: has over {LONGEST:,} bytes; split it into several lines")
        if line.strip():
            try:
                # Some editors write a byte order mark.
                yield as_record(json_value(line.removeprefix(BOM_UTF8).rstrip()), number, "line")
            except ValueError as error:
                yield Record(number, flaw=str(error))


def as_record(value: Any, number: int, unit: str, name: str = "") -> Record:
    """A value as a record, if it is an object."""
    if isinstance(value, dict):
        return Record(number, value, unit, name)
    return Record(number, unit=unit, name=name, flaw=f"expected a JSON object, got {type(value).__name__}")


# ---------------------------------------------------------------- a list


def _items(path: Path, file: BufferedReader) -> Iterator[Record]:
    """The items of a list, one by one."""
    text, number = _Text(path, TextIOWrapper(file, "utf-8-sig")), 0
    try:
        text.past("[")
        while text.next() != "]":
            number += 1
            try:
                value = text.value()
            except ValueError as error:
                yield Record(number, unit="item", flaw=f"{error}; what follows it was not read")
                return
            yield as_record(value, number, "item")
            if text.next() != "]":
                text.past(",")
        text.past("]")
        if text.next():
            raise DataError(f"{path}, line {text.line}: something follows the list; remove it")
    finally:
        text.file.detach()  # else it would close the file


class _Text:
    """A text that is read in pieces, at a place in it."""

    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self.path, self.file = path, file
        self.ahead, self.at, self.line, self.ended = "", 0, 1, False

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        self.line += self.ahead.count("\n", 0, self.at)
        try:
            piece = self.file.read(max(PIECE, len(self.ahead) - self.at))  # so that a long value is not tried too often
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: is not UTF-8 behind line {self.line}; save it as UTF-8") from None
        self.ahead, self.at, self.ended = self.ahead[self.at :] + piece, 0, not piece
        return bool(piece)

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            left = self.ahead[self.at : self.at + 1]
            if left and left not in SPACE:
                return left
            if left:
                self.at += 1
            elif not self.more():
                return ""

    def past(self, character: str) -> None:
        """Go past one expected character."""
        if (found := self.next()) != character:
            line = self.line + self.ahead.count("\n", 0, self.at)
            cause = f"{found!r} where {character!r} is expected" if found else f"it ends without {character!r}"
            raise DataError(f"{self.path}, line {line}: is no JSON list ({cause}); download or write it again")
        self.at += 1

    def value(self) -> Any:
        """Go past one value. ValueError if it is broken or longer than LONGEST; its place is counted from the value's
        beginning."""
        while True:
            try:
                value, end = json_first(self.ahead, self.at)
                if end - self.at <= LONGEST and (end < len(self.ahead) or self.ended):  # a number may go on behind it
                    self.at = end
                    return value
            except ValueError:
                if self.ended or len(self.ahead) - self.at > LONGEST:
                    self.ahead, self.at = self.ahead[self.at :], 0
                    json_first(self.ahead, 0)
            if len(self.ahead) - self.at > LONGEST:
                raise ValueError(f"has over {LONGEST:,} characters")
            self.more()


# ---------------------------------------------------------------- an object


def _begins_document(path: Path, first: bytes, second: bytes) -> bool:
    """Whether a file is one object, by its first lines: they begin one, or the first holds all of it."""
    if not first.startswith(b"{"):
        return False
    if first == b"{":
        return not second.startswith(b"{")  # else a broken line and the next one
    try:
        value = json_value(first)
    except ValueError:
        return path.suffix.lower() == ".json"  # of several lines, or broken
    return isinstance(value, dict) and _held(value) is not None


def _document(path: Path, file: BufferedReader) -> Iterator[Record]:
    if (size := os.fstat(file.fileno()).st_size) > DOCUMENT:
        raise DataError(f"{path}: is one JSON object of {size:,} bytes, at most {DOCUMENT:,} are read; write lines")
    try:
        value = json_value(file.read().removeprefix(BOM_UTF8))
    except ValueError as error:
        raise DataError(f"{path}: {error}; download or write it again") from None
    found = _held(value)
    if found is None:
        yield as_record(value, 1, "object")
    else:
        yield from found


def _held(value: dict[str, Any]) -> list[Record] | None:
    """The records in an object: of its only list, if that has one of the known names, or its values, if all are
    objects. None if it is a record itself."""
    lists = [key for key, each in value.items() if isinstance(each, list)]
    if len(lists) == 1 and lists[0] in HOLDERS:
        (key,) = lists
        return [as_record(each, number, f"{key}, item") for number, each in enumerate(value[key], 1)]
    if value and all(isinstance(each, dict) for each in value.values()):
        return [Record(number, each, "entry", name) for number, (name, each) in enumerate(value.items(), 1)]
    return None


def whole_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file beside the data, which errors call `what`."""
    with reading(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > DOCUMENT:
            raise DataError(f"{path}: {what} has {size:,} bytes, at most {DOCUMENT:,} are read; give another file")
        try:
            value = json_value(file.read().removeprefix(BOM_UTF8))
        except ValueError as error:
            raise DataError(f"{path}: {what}: {error}; download or write it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: {what} must be a JSON object, got {quoted(type(value).__name__)}; give another file")
    return value


def empty(path: Path, records: int) -> DataError:
    """The error for a file without a question."""
    held = f", in {counted(records, 'record')}" if records else ""
    return DataError(f"{path}: contains no question{held}; write one JSON object per line")
