"""Arrays in `.npy` files from outside: numbers only, and never more memory than the file has bytes.

In: a file. Out: its array; anything else is FileDamaged. The header is judged against the bytes after it before memory
is allocated; numpy's own reader believes it. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import math
import os
from ast import literal_eval
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pave.errors import FileDamaged
from pave.files.atomic import reading

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes, as numpy itself allows
MAX_BYTES = 4 << 30  # of an array: an hour of a hundred channels at 1 kHz takes 1.4 GB
NUMBERS = "save it as plain numbers, with np.save(path, array.astype('float32'))"
OTHERS = {
    b"PK": ("is a zip (.npz), which may hold several arrays", "save the one array with np.save"),
    b"\x80": ("is a pickle, which may run code and is never opened", NUMBERS),
}


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, in the byte order of this machine."""
    with reading(path) as file:
        dtype, shape, fortran = _header(path, file)
        need, have = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if need != have:
            cause = f"announces {dtype} {shape}, {need:,} bytes, but {have:,} bytes follow"
            raise FileDamaged(path, cause, "it was cut short or damaged: save it again")
        if need > MAX_BYTES:
            raise FileDamaged(path, f"has {need:,} bytes, the most is {MAX_BYTES:,}", "save parts of it")
        flat = np.empty(math.prod(shape), dtype)
        if need and file.readinto(flat.view(np.uint8).data) != need:
            raise FileDamaged(path, "was cut short while it was read", "save it again")
    array = flat.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(path: Path, file: BinaryIO) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Type, shape, and whether the first index runs fastest (NEP 1)."""
    head = file.read(len(MAGIC) + 2)
    for mark, (cause, remedy) in OTHERS.items():
        if head.startswith(mark):
            raise FileDamaged(path, cause, remedy)
    if len(head) < 8 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        raise FileDamaged(path, "does not begin as a .npy file does", NUMBERS)
    length = int.from_bytes(file.read(2 if head[6] == 1 else 4), "little")
    if length > MAX_HEADER:
        raise FileDamaged(path, f"announces a header of {length:,} bytes, the most is {MAX_HEADER:,}", NUMBERS)
    try:
        text = file.read(length).decode("utf-8" if head[6] == 3 else "latin1")
        header: Any = literal_eval(text)
        dtype, shape, fortran = header.pop("descr"), header.pop("shape"), header.pop("fortran_order")
    except (SyntaxError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise FileDamaged(path, f"has a broken header ({type(error).__name__})", "save it again") from None
    counts = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if header or not counts or type(fortran) is not bool:
        raise FileDamaged(path, f"has a broken header (shape {str(shape)[:60]})", "save it again")
    return _numbers(path, dtype), shape, fortran


def _numbers(path: Path, described: Any) -> np.dtype:
    """The type of the values, which must be plain numbers."""
    try:
        dtype = np.dtype(described) if isinstance(described, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in "biufc" or dtype.itemsize > np.dtype(np.complex128).itemsize:
        what = "Python objects" if str(described) in ("|O", "O") else f"values of type {str(described)[:60]}"
        raise FileDamaged(path, f"holds {what}, not plain numbers", NUMBERS)
    return dtype
