"""Samples in tar files, as webdataset writes them: files next to each other whose names begin alike.

In: a shard, plain or compressed. Out: one `Record` per sample: what its `.json` or `.txt` says, and its packed media.
Nothing is extracted by the names in a shard: media are copied to files whose names are checked here, when a question
is about them.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from pave.errors import DataError
from pave.files.atomic import reading, replacing
from pave.readers.records import LONGEST, Record
from pave.text.shown import quoted
from pave.text.values import json_value

ENDINGS = (".tar", ".tar.gz", ".tgz")
VIDEO = ("mp4", "mkv", "webm", "avi", "mov", "jpg", "jpeg", "png", "webp")
SOUND = ("wav", "flac", "mp3", "m4a", "ogg", "opus")
TEXT = "txt"  # what a caption is in, by webdataset's custom


@dataclass(frozen=True)
class Member:
    """A media file inside a shard, which is open."""

    shard: tarfile.TarFile
    info: tarfile.TarInfo

    def __str__(self) -> str:
        return self.info.name.removeprefix("./")

    def unpack(self, folder: Path) -> Path:
        path = folder / str(self)
        if not path.is_file() or path.stat().st_size != self.info.size:
            with replacing(path) as file:
                shutil.copyfileobj(_content(self.shard, self.info), file)
        return path


def tar_records(path: Path) -> Iterator[Record]:
    """The samples of a shard, in order."""
    with reading(path) as file:
        try:
            with tarfile.open(fileobj=file) as shard:
                files = (info for info in shard if not info.isdir())
                for number, (key, members) in enumerate(groupby(files, lambda info: _split(info.name)[0]), 1):
                    yield _sample(shard, number, key, list(members))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{path}: not a whole tar file ({error}); write or download it again") from None


def _split(name: str) -> tuple[str, str]:
    """The key of a sample, and the ending: in the last part of a name, what is before and behind the first dot."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _sample(shard: tarfile.TarFile, number: int, key: str, members: list[tarfile.TarInfo]) -> Record:
    value: dict[str, Any] = {"__key__": key}
    media: dict[str, Any] = {}
    for info in members:
        ending = _split(info.name)[1]
        if not info.isreg() or _leads_out(info.name):
            return Record(number, unit="sample", flaw=f"{quoted(info.name)} is no plain file inside the shard")
        if ending in VIDEO:
            media["video"] = Member(shard, info)
        elif ending in SOUND:
            media["audio"] = Member(shard, info)
        elif ending in ("json", TEXT):
            if info.size > LONGEST:
                return Record(number, unit="sample", flaw=f"{quoted(info.name)} has over {LONGEST:,} bytes")
            text = _content(shard, info).read()
            try:
                own = json_value(text) if ending == "json" else {"answer": text.decode("utf-8").strip()}
            except ValueError as error:
                return Record(number, unit="sample", flaw=f"{quoted(info.name)}: {error}")
            if not isinstance(own, dict):
                return Record(number, unit="sample", flaw=f"{quoted(info.name)} holds no JSON object")
            value |= own
        else:
            value[ending] = info.name
    return Record(number, value | media, "sample")


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or os.path.isabs(name)


def _content(shard: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    content = shard.extractfile(info)
    assert content is not None  # of a plain file
    return content  # type: ignore[return-value]
