"""What chats keep between questions: features of clips, and keys and values of the language model.

In: values by key, and their size. Out: the same, as long as all of them together stay below a limit of bytes; the least
recently used are dropped first. Knows nothing of clips and chats.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from pave.errors import UsageError
from pave.text.shown import Lines, counted

LIMIT = 2 << 30  # bytes: at 7B, five clips of 32 key frames with their keys and values in bfloat16


class Kept(Lines):
    """A cache of bounded size, for several threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()  # the least recently used first
        self._lock = threading.RLock()  # a chat may be dropped, and its keys with it, wherever Python collects garbage
        self._limit = limit

    @property
    def limit(self) -> int:
        """Bytes, at most. A lower one drops what is beyond it at once; 0 keeps nothing."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise UsageError(f"limit={limit!r} is no number of bytes; give a whole number, 0 or more")
        with self._lock:
            self._limit = limit
            self._shrink()

    @property
    def bytes(self) -> int:
        """Bytes that are held."""
        with self._lock:
            return sum(size for _, size in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Any:
        """The value, which counts as used now; None if there is none."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def take(self, key: Hashable) -> Any:
        """The value, which is no longer held; None if there is none."""
        with self._lock:
            return self._held.pop(key, (None, 0))[0]

    def put(self, key: Hashable, value: Any) -> None:
        """Hold a value, and drop others that are beyond the limit. One that is larger than the limit is not held."""
        size = bytes_of(value)
        with self._lock:
            self._held.pop(key, None)
            if size <= self._limit:
                self._held[key] = value, size
                self._shrink()

    def drop(self, *keys: Hashable) -> None:
        """Drop these values, if they are held."""
        for key in keys:
            self.take(key)

    def size(self, key: Hashable) -> int:
        """Bytes of a value; 0 if it is not held."""
        with self._lock:
            return self._held.get(key, (None, 0))[1]

    def clear(self) -> None:
        """Drop everything; chats read and compute again what they need."""
        with self._lock:
            self._held.clear()

    def lines(self) -> list[str]:
        return [f"{counted(len(self), 'item')} of chats, {self.bytes:,} of at most {self.limit:,} bytes"]

    def _shrink(self) -> None:
        while self._held and self.bytes > self._limit:
            self._held.popitem(last=False)


def bytes_of(value: Any) -> int:
    """Bytes of the tensors in a value: in mappings, sequences, dataclasses, caches and their layers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, each.name)) for each in fields(value))
    return sum(map(bytes_of, vars(value).values())) if type(value).__module__.startswith("transformers.cache") else 0
