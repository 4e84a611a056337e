"""Canonical safetensors files: equal content gives equal bytes, and every file is checked when it is read.

In: tensors and metadata. Out: a file, written atomically; or its tensors and metadata, once the header is checked
against the bytes after it. Knows nothing of what the tensors are for.

Layout: 8 bytes of header length, a JSON header (keys sorted, padded with spaces to 8 bytes; safetensors' own writer
orders metadata at random), tensors by falling item size, then by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pave.errors import FileDamaged, FileError
from pave.files.atomic import reading, replacing
from pave.files.json_text import AGAIN, canonical, parse_json

MAX_HEADER, MAX_BYTES = 16 << 20, 4 << 30  # bytes; a patch of a 7B base has a header of 0.1 MB and some 20 MB in all
SIDES = 16  # of a tensor
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SMALL = 32 << 10  # bytes; smaller files are read rather than mapped: a process may map some 65,000 files in all
CODES = {dtype: code for code, dtype in DTYPES.items()}
SAFE = "give it as safetensors; pickles are not opened here"
# Common wrong files, by their first bytes: cause and remedy.
IMPOSTORS = {
    b"version https://git-lfs": (
        "is a Git LFS pointer, not the file itself",
        "run `git lfs pull`, or download it again",
    ),
    b"<": ("is a web page, not the file itself", "download the file itself, not the page that shows it"),
    b"PK\x03\x04": ("is a zip or a PyTorch pickle, not safetensors", SAFE),
    b"\x80": ("is a pickle, not safetensors", SAFE),
}


class NotMapped(FileError):
    """The system maps no more files into the memory of this process."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file atomically; if anything fails, the old one stays."""
    with replacing(path) as file:
        _write(file, tensors, metadata)


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    file.write(_head(tensors, metadata))
    for name in _order(tensors):
        file.write(raw(tensors[name]))


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that `write` would write; the tensors may be on the meta device."""
    return len(_head(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in _order(tensors):
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": CODES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read(path: Path, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. `mapped`: a file that is not small is memory-mapped, so the system loads pages on
    access and may drop them again. If it is cut short meanwhile, an access kills the process."""
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(path, file, size)
        metadata, begin = header.pop("__metadata__", {}), file.tell()
        if mapped and size > SMALL and os.fsencode(path).decode("utf-8", "ignore") == str(path):  # torch's names
            data = _mapped(path, size)
        else:
            data, begin = _bytes(path, file, size - begin), 0
    return {name: _tensor(entry, data[begin:]) for name, entry in header.items()}, metadata


def read_some(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the file has; no other one is read."""
    with reading(path) as file:
        header = _header(path, file, os.fstat(file.fileno()).st_size)
        header.pop("__metadata__", None)
        begin, found = file.tell(), {}
        for name in header.keys() & set(names):
            first, last = header[name]["data_offsets"]
            file.seek(begin + first)
            own = header[name] | {"data_offsets": [0, last - first]}
            found[name] = _tensor(own, _bytes(path, file, last - first))
    return found


def places(path: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """The first byte in the file of every tensor, and its number of bytes; and the metadata. No tensor is read."""
    with reading(path) as file:
        header = _header(path, file, os.fstat(file.fileno()).st_size)
        metadata, begin = header.pop("__metadata__", {}), file.tell()
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (begin + first, last - first) for name, (first, last) in spans.items()}, metadata


def _mapped(path: Path, size: int) -> Tensor:
    try:
        return torch.from_file(str(path), size=size, dtype=torch.uint8)  # a private mapping; keeps no file open
    except RuntimeError as error:
        remedy = (
            "raise the limits of mapped files (`sysctl vm.max_map_count`) and of memory, or use fewer files at once"
        )
        raise NotMapped(path, f"cannot be mapped into memory ({' '.join(str(error).split())})", remedy) from None


def _bytes(path: Path, file: BinaryIO, count: int) -> Tensor:
    """The next bytes of a file."""
    data = torch.empty(count, dtype=torch.uint8)
    if count and file.readinto(data.numpy().data) != count:  # pyright: ignore[reportAttributeAccessIssue]
        raise FileDamaged(path, "was cut short while it was read", AGAIN)
    return data


def write_sealed(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write the file with a sha256 of all of its content in the metadata."""
    write(path, tensors, {**facts, "sha256": digest(facts, tensors)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `write_sealed`; FileDamaged unless every bit is as it was written."""
    return _unsealed(path, *read(path))


def _unsealed(
    path: Path, tensors: dict[str, Tensor], facts: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if facts.pop("sha256", "") != digest(facts, tensors):
        raise FileDamaged(path, "is damaged: its content does not match its sha256", AGAIN)
    return tensors, facts


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> Tensor:
    """The bytes that `write_sealed` would write, as a tensor: a file inside a file."""
    inner = BytesIO()
    _write(inner, tensors, {**facts, "sha256": digest(facts, tensors)})
    return torch.frombuffer(inner.getbuffer(), dtype=torch.uint8)


def read_inner(path: Path, begin: int, size: int, *, known: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What was `sealed`, from these bytes of a file; FileDamaged as in `read_sealed`. known: its sha256 has been
    checked before, so that only the structure is."""
    with reading(path) as file:
        file.seek(begin)
        data = _bytes(path, file, size)
    inner = BytesIO(raw(data[: 8 + min(int.from_bytes(raw(data[:8]), "little"), MAX_HEADER)]))  # without a copy of all
    header = _header(path, inner, size)
    facts, data = header.pop("__metadata__", {}), data[inner.tell() :]
    tensors = {name: _tensor(entry, data) for name, entry in header.items()}
    if known:
        facts.pop("sha256", None)
        return tensors, facts
    return _unsealed(path, tensors, facts)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata only; tensors are not read."""
    with reading(path) as file:
        return _header(path, file, os.fstat(file.fileno()).st_size).get("__metadata__", {})


def digest(facts: str | Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over a text, or texts by name, and every tensor's name, dtype, shape and bytes."""
    sha256 = hashlib.sha256((facts if isinstance(facts, str) else canonical(facts)).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, CODES[tensor.dtype], list(tensor.shape)]).encode())
        sha256.update(raw(tensor))
    return sha256.hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; little-endian, like every platform of torch."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    """The header of a file of `size` bytes, checked against the bytes after it."""
    head = file.read(64)
    for mark, (cause, remedy) in IMPOSTORS.items() if head[8:9] != b"{" else ():
        if head.lstrip().startswith(mark):
            raise FileDamaged(path, cause, remedy)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or size > MAX_BYTES or length > min(MAX_HEADER, size - 8):
        cause = f"is not a safetensors file: {size:,} bytes, its first 8 announce a header of {length:,}"
        raise FileDamaged(path, cause, AGAIN)
    file.seek(8)
    header = parse_json(path, file.read(length), "header")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileDamaged(path, "__metadata__ is not a mapping of strings", AGAIN)
    cause = _offsets({name: entry for name, entry in header.items() if name != "__metadata__"}, size - 8 - length)
    if cause:
        raise FileDamaged(path, cause, AGAIN)
    return header


def _offsets(entries: Mapping[str, Any], total: int) -> str:
    """What is wrong with the tensors' offsets, or ""; they must fill the data without gaps and overlaps."""
    spans = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            return f"{name!r} is not described by dtype, shape and data_offsets"
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            return f"{name!r} has the unknown dtype {entry['dtype']!r}"
        numbers = [entry["shape"], entry["data_offsets"]]
        if not all(isinstance(each, list) and all(type(n) is int and 0 <= n < 2**63 for n in each) for each in numbers):
            return f"{name!r} has a shape or offsets that are not integers of 63 bits"
        if len(entry["shape"]) > SIDES:
            return f"{name!r} has {len(entry['shape']):,} sides, a tensor has at most {SIDES}"
        if len(entry["data_offsets"]) != 2:
            return f"{name!r} has {len(entry['data_offsets'])} offsets"
        begin, end = entry["data_offsets"]
        need = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        if end - begin != need:
            return f"{name!r} of shape {entry['shape']} needs {need} bytes, its offsets hold {end - begin}"
        spans.append((begin, end))
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            return f"tensors {'overlap' if begin < place else 'leave a gap'} at byte {begin}"
        place = end
    if place != total:
        return f"is cut short or too long: {total:,} bytes of tensors, the header announces {place:,}"
    return ""


def _tensor(entry: Mapping[str, Any], data: Tensor) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype, flat = DTYPES[entry["dtype"]], data[begin:end]
    # A dtype view needs an aligned offset. Files of other writers may have none: copy.
    aligned = flat.storage_offset() % dtype.itemsize == 0
    return (flat if aligned else flat.clone()).view(dtype).reshape(entry["shape"])
