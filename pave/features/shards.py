"""Records of many clips in few files: shards of some hundred clips, and one index that says where each clip is.

In: tensors and facts of a clip, by key. Out: what is known of all clips at once, and the tensors of one when they are
asked for: its bytes are read, nothing is memory-mapped, and its sha256 is checked when it is first read. Knows nothing
of models and media.

Layout of a folder: `*.safetensors`, each with one uint8 tensor a clip, which is a sealed safetensors file itself
(pave/files/tensorfile.py), and in the metadata what is known of its clips; and `index`, with one line a shard: a
sha256, and in JSON the size of the shard and, of each of its clips, the place of its bytes and what is known. The
shards alone hold everything: the index saves opening them, and a shard that it lacks, since a process was killed in
between, is opened. So no lock is needed: several processes may fill a folder, and whenever one is killed, the rest is
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pave.errors import DataError, FileError, raised_as
from pave.features.files import ROOM
from pave.files import json_text, tensorfile
from pave.files.atomic import append, reading

FORMAT = "1"
# A shard is written when it has so many clips or bytes, or is so old: that is what a killed process loses.
CLIPS, BYTES, SECONDS = 256, 256 << 20, 60.0


class Entry(NamedTuple):
    """Where the record of a clip is, and what is known of it without reading it."""

    shard: str  # name of the file
    begin: int
    size: int  # bytes
    known: Mapping[str, Any]  # JSON values


class Shards:
    """The records in a folder, and those that are about to be written there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / "index"
        self.entries: dict[str, Entry] = {}
        self.others = 0  # safetensors files of earlier versions, which are not used
        self._new: dict[str, tuple[Tensor, Mapping[str, Any]]] = {}  # sealed records
        self._bytes, self._since = 0, 0.0  # of the new ones: all of them, and when the first one came
        self._late: list[bytes] = []  # lines that the index lacks
        self._checked: set[str] = set()  # keys of records whose sha256 was right

    @classmethod
    def of(cls, folder: Path) -> Shards:
        """All that is in a folder."""
        shards = cls(folder)
        shards.refresh()
        return shards

    def refresh(self) -> None:
        """Find all records in the folder."""
        self.entries, self.others = {}, 0
        left = self._files()
        for line in self._lines():
            if left.get(line["shard"]) == line["size"]:
                del left[line["shard"]]
                self._enter(line)
        for name in sorted(left):
            with suppress(FileError):  # if it is damaged, its clips are encoded again
                self._late += self._open(name)

    def add(self, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str], known: Mapping[str, Any]) -> None:
        """Add a record, which `entries` has after the next `flush`. DataError if a full shard cannot be written."""
        self._since = self._since if self._new else time.monotonic()
        self._new[key] = tensorfile.sealed(tensors, facts), known
        self._bytes += self._new[key][0].nbytes
        if len(self._new) >= CLIPS or self._bytes >= BYTES or time.monotonic() - self._since >= SECONDS:
            self.flush()

    @contextmanager
    def filling(self) -> Iterator[None]:
        """What is added in the block is in the folder after it, also if an error or Ctrl-C ends it."""
        try:
            yield
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what has been added. DataError if that fails; it is lost then."""
        with suppress(FileError):  # others may only read this folder
            self._append(self._late)
        self._late = []
        new, self._new, self._bytes = self._new, {}, 0
        if not new:
            return
        self._checked -= new.keys()
        records = {key: record for key, (record, _) in new.items()}
        facts = {"pave.cache": FORMAT, "clips": json.dumps({key: known for key, (_, known) in new.items()})}
        name = f"{tensorfile.digest(facts, records)[:32]}.safetensors"
        with raised_as(DataError, remedy=ROOM):
            tensorfile.write(self.folder / name, records, facts | {"sha256": tensorfile.digest(facts, {})})
            self._append(self._open(name))

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and facts of a record; FileError if it is damaged, or no longer there."""
        if key not in self.entries:
            raise FileError(self.index, "no longer has the clip", json_text.AGAIN)
        shard, begin, size, _ = self.entries[key]
        record = tensorfile.read_inner(self.folder / shard, begin, size, known=key in self._checked)
        self._checked.add(key)
        return record

    def _files(self) -> dict[str, int]:
        """The safetensors files of the folder, with their sizes."""
        try:
            with os.scandir(self.folder) as files:
                return {file.name: file.stat().st_size for file in files if file.name.endswith(".safetensors")}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FileError(self.folder, f"cannot be read ({error.strerror or error})", "use another folder") from None

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The whole lines of the index: one may be cut, or mixed with another process's."""
        with suppress(FileError), reading(self.index) as file:
            for line in file:
                digest, _, text = line.rstrip(b"\n").partition(b" ")
                if digest == _digest(text):
                    yield json.loads(text)

    def _open(self, name: str) -> list[bytes]:
        """Enter the clips of a shard that the index lacks; its line there, if it is a shard."""
        places, facts = tensorfile.places(self.folder / name)
        digest = facts.pop("sha256", "")
        if facts.get("pave.cache") != FORMAT or digest != tensorfile.digest(facts, {}):
            self.others += 1
            return []
        known = json.loads(facts["clips"])
        clips = {key: (*place, known[key]) for key, place in places.items()}
        line = {"shard": name, "size": os.path.getsize(self.folder / name), "clips": clips}
        self._enter(line)
        text = json.dumps(line, separators=(",", ":")).encode()
        return [b"%b %b\n" % (_digest(text), text)]

    def _append(self, lines: Sequence[bytes]) -> None:
        if lines:
            append(self.index, b"".join(lines))

    def _enter(self, line: Mapping[str, Any]) -> None:
        clips = line["clips"].items()
        self.entries |= {key: Entry(line["shard"], begin, size, known) for key, (begin, size, known) in clips}


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:32].encode()
