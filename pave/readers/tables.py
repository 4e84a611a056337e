"""Rows of tables: CSV, TSV, Parquet, and what `datasets.Dataset.save_to_disk` writes.

In: a file, or the folder of a saved data set. Out: `Record`s. Files of Parquet and Arrow are read in batches, by
pyarrow, which is an extra. Media stored in a table are `Packed`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pave.errors import DataError
from pave.files.atomic import reading, replacing
from pave.readers.records import Record, whole_object
from pave.text.shown import counted, quoted

SAVED = "state.json"  # names the files of a saved data set
SPLITS = "dataset_dict.json"  # of a saved data set with splits, a folder each
BATCH = 256  # rows of Parquet and Arrow that are read at once
DELIMITERS = {".tsv": "\t", ".tab": "\t"}


def csv_records(path: Path) -> Iterator[Record]:
    """Rows under a header, as texts; each with its first line."""
    with reading(path) as file:
        text = TextIOWrapper(file, "utf-8-sig", newline="")
        line = 0
        try:
            head = text.readline()
            text.seek(0)
            comma = DELIMITERS.get(path.suffix.lower()) or (";" if "," not in head and ";" in head else ",")
            rows = csv.reader(text, delimiter=comma, strict=True)
            names = next(rows, [])
            if len(set(names)) < len(names) or not all(names):
                raise DataError(f"{path}, line 1: the names of columns must differ, got {quoted(names)}; rename them")
            line = rows.line_num
            for cells in rows:
                begin, line = line + 1, rows.line_num
                if len(cells) == len(names):
                    yield Record(begin, dict(zip(names, cells, strict=True)))
                elif cells:
                    yield Record(begin, flaw=f"has {counted(len(cells), 'cell')} under {len(names)} names of columns")
        except csv.Error as error:
            raise DataError(f"{path}, line {line + 1}: not CSV ({error}); put texts with commas in quotes") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}, line {line + 1}: not UTF-8; save the table as UTF-8") from None
        finally:
            text.detach()  # else it would close the file


def parquet_records(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file."""
    arrow, parquet = _pyarrow(path), import_module("pyarrow.parquet")
    with reading(path) as file:
        try:
            yield from _rows(parquet.ParquetFile(file).iter_batches(BATCH))
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not Parquet ({error}); write or download it again") from None


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved data set."""
    return os.path.isfile(folder / SAVED) or os.path.isfile(folder / SPLITS)


def saved_records(folder: Path) -> Iterator[Record]:
    """Rows of a saved data set."""
    if os.path.isfile(folder / SPLITS):
        splits = sorted(each.name for each in folder.iterdir() if each.is_dir())
        raise DataError(f"{folder}: has the splits {', '.join(splits)}; give the folder of one: {folder / splits[0]}")
    named = whole_object(folder / SAVED, "the state of a saved data set").get("_data_files")
    files = [each.get("filename") if isinstance(each, dict) else None for each in named or []]
    if not files or not all(isinstance(name, str) and name == os.path.basename(name) for name in files):
        raise DataError(f"{folder / SAVED}: names no files of data, got {quoted(named)}; save the data set again")
    yield from _rows(batch for name in files for batch in _arrow_batches(folder / str(name)))


def _arrow_batches(path: Path) -> Iterator[Any]:
    arrow, streams = _pyarrow(path), import_module("pyarrow.ipc")
    with reading(path) as file:
        try:
            yield from streams.open_stream(file)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not Arrow ({error}); save the data set again") from None


def _pyarrow(path: Path) -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise DataError(f"{path}: reading it needs pyarrow: pip install 'pave[data]'") from None


def _rows(batches: Any) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield Record(number, plain_row(row), "row")


def rows_of(dataset: Any) -> Iterator[Record]:
    """Rows of an object that gives mappings, such as a `datasets.Dataset`."""
    for number, row in enumerate(dataset, 1):
        if isinstance(row, Mapping):
            yield Record(number, plain_row(row), "row")
        else:
            yield Record(number, unit="row", flaw=f"expected a mapping of columns, got {type(row).__name__}")


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which media are their paths, or `Packed`."""
    return {name: _medium(value) for name, value in row.items()}


def _medium(value: Any) -> Any:
    """Hugging Face's `Video`, `Image` and `Audio` are pairs of bytes and a path, either of which may be missing."""
    if isinstance(value, list):
        return [_medium(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"] if value["bytes"] is None else Stored(value["bytes"], str(value["path"] or ""))
    return value


@dataclass(frozen=True)
class Stored:
    """A media file inside a table. Rows that store the same bytes share a file."""

    data: bytes
    name: str

    def __str__(self) -> str:
        return f"{hashlib.sha256(self.data).hexdigest()[:20]}{os.path.splitext(self.name)[1][:8]}"

    def unpack(self, folder: Path) -> Path:
        path = folder / str(self)
        if not path.is_file() or path.stat().st_size != len(self.data):
            with replacing(path) as file:
                file.write(self.data)
        return path
