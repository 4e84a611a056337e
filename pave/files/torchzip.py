"""The outline of a file of torch.save, read without running its pickle: names, shapes, and where the numbers are.

In: the bytes of `data.pkl`, the pickle inside the file, which is a zip. Out: for each tensor its dtype, shape and place
in a record of the zip, so that the records of a part can be fetched alone. The pickle's instructions are listed by
pickletools and followed for dicts, tuples, texts and numbers only: nothing is imported and nothing is called, and a
file that asks for anything else than tensors is FileDamaged. Knows nothing of networks.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pave.errors import FileDamaged
from pave.files.pickled import HARM, REMEDY

STEPS, VALUES = 2_000_000, 2**40  # most instructions of a pickle, and numbers of a tensor
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor in the file: a view of a record."""

    record: str  # name below `data/`
    dtype: torch.dtype
    offset: int  # in numbers, from the start of the record
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, record: bytes | bytearray) -> Tensor:
        """The tensor, copied from its record."""
        if self.end > len(record) or len(record) % self.dtype.itemsize:
            raise ValueError(f"record {self.record} has {len(record):,} bytes, its tensor needs {self.end:,}")
        empty = torch.empty(0, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(record), dtype=self.dtype) if record else empty
        return flat.as_strided(self.shape, self.stride, self.offset).clone()

    @property
    def end(self) -> int:
        """Bytes of the record up to the tensor's last number."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.offset + (last + 1 if math.prod(self.shape) else 0)) * self.dtype.itemsize


@dataclass(frozen=True)
class _Name:
    """A name that the pickle would import."""

    path: str


def outline(pickle: bytes, source: str | Path) -> dict[str, Entry]:
    """The tensors of a state dict by name; other values in it are left out. source: what errors name."""
    try:
        found = _followed(pickle)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        cause = f"is not a plain state dict of torch.save ({type(error).__name__}: {str(error)[:120]})"
        raise FileDamaged(source, cause, REMEDY) from None
    if not isinstance(found, dict):
        raise FileDamaged(source, f"holds a {type(found).__name__}, not tensors by name", REMEDY)
    return {name: each for name, each in found.items() if isinstance(name, str) and isinstance(each, Entry)}


def _followed(pickle: bytes) -> Any:
    """What the pickle would build, in plain values and `Entry`s."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        begin = marks.pop()
        taken = stack[begin:]
        del stack[begin:]
        return taken

    for step, (code, value, _) in enumerate(pickletools.genops(pickle)):
        if step > STEPS:
            raise ValueError(f"more than {STEPS:,} instructions")
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "GLOBAL":
                stack.append(_Name(str(value)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module} {name}"))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if value is None else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(value or 0)])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(code.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND" | "APPENDS":
                taken = [stack.pop()] if code.name == "APPEND" else since_mark()
                stack[-1].extend(taken)
            case "SETITEM" | "SETITEMS":
                taken = [stack.pop(-2), stack.pop()] if code.name == "SETITEM" else since_mark()
                stack[-1].update(zip(taken[::2], taken[1::2], strict=True))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_built(stack.pop(), arguments))
            case "BUILD":  # the attribute _metadata of a state dict
                stack.pop()
            case "STOP":
                (result,) = stack
                return result
            case other:
                raise ValueError(f"the instruction {other}, which no state dict needs")
    raise ValueError("it does not end")


def _storage(identity: Any) -> tuple[str, torch.dtype]:
    kind, storage, record, _, _ = identity
    if kind != "storage" or not isinstance(record, str):
        raise ValueError("a reference to something else than a storage")
    module, _, name = storage.path.partition(" ")
    if module not in ("torch", "torch.storage") or name not in STORAGES:
        raise ValueError(f"numbers of {storage.path}, which are not supported")
    return record, STORAGES[name]


def _built(call: _Name, arguments: Any) -> Any:
    """The value that a call would return, for the three calls of a state dict."""
    match call.path:
        case "collections OrderedDict":
            return dict(*arguments)
        case "torch._utils _rebuild_parameter":
            return arguments[0]
        case "torch._utils _rebuild_tensor_v2":
            (record, dtype), offset, shape, stride = arguments[:4]
            counts = (offset, *shape, *stride)
            plain = all(type(count) is int and 0 <= count < VALUES for count in counts) and len(shape) == len(stride)
            if not plain or math.prod(shape) > VALUES:
                raise ValueError("a tensor whose shape, strides or offset are no counts")
            return Entry(record, dtype, offset, tuple(shape), tuple(stride))
    raise ValueError(HARM.format(call.path.replace(" ", ".")))


def part_of(entries: Mapping[str, Entry], inside: str) -> Iterator[tuple[str, list[str]]]:
    """Records that hold tensors with `inside` in their name, and those tensors' names."""
    records: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if inside in name:
            records.setdefault(entry.record, []).append(name)
    yield from records.items()
