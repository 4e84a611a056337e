"""What was paid for or took long, in a file of JSON lines: nothing is asked twice, even after a kill.

In: a file, and values by their keys. Out: the value of a key. Each is added by one write; a last line that a kill has
cut is dropped when the file is opened. Only keys and places are in memory. Knows nothing of what the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from pave.errors import FileDamaged, FileError
from pave.files import json_text
from pave.files.atomic import append, cut, reading


class Kept:
    """Values by key in a file, or in memory if there is none. Threads may add and look up at the same time."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.lock, self.end = file, Lock(), 0
        self.places: dict[str, tuple[int, int]] = {}  # of each line: first byte and length
        self.values: dict[str, Mapping[str, Any]] = {}  # where there is no file
        if file is not None and file.exists():
            self._open(file)

    def __contains__(self, key: str) -> bool:
        return key in self.places or key in self.values

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The value of a key; None if there is none."""
        if self.file is None or key not in self.places:
            return self.values.get(key)
        begin, length = self.places[key]
        with reading(self.file) as opened:
            opened.seek(begin)
            return json_text.parse_json(self.file, opened.read(length), "line")

    def all(self) -> Iterator[Mapping[str, Any]]:
        """All values, in the order in which they were added."""
        if self.file is None or not self.places:
            yield from self.values.values()
            return
        with reading(self.file) as opened:
            yield from (json_text.parse_json(self.file, line, "line") for line in opened)

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a value under a new key."""
        if self.file is None:
            self.values[key] = value
            return
        line = json.dumps({"key": key, **value}).encode() + b"\n"
        with self.lock:
            try:
                append(self.file, line)
            except FileError:
                cut(self.file, self.end)  # part of the line may be there, and the next would not begin a line
                raise
            self.places[key] = self.end, len(line)
            self.end += len(line)

    def _open(self, file: Path) -> None:
        with reading(file) as opened:
            for line in opened:
                if not line.endswith(b"\n"):
                    break
                key = json_text.parse_json(file, line, "line").get("key")
                if not isinstance(key, str):
                    raise FileDamaged(file, "a line has no key", "delete the line")
                self.places[key] = self.end, len(line)
                self.end += len(line)
        cut(file, self.end)
