"""Hashes that take seconds to compute, remembered on disk by what identifies the hashed tensors.

In: tensors in memory, and the files that they were read from. Out: a key, and the hash that was remembered for it. If
the file of hashes cannot be read or written, nothing is remembered. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pave.errors import FileError
from pave.files.atomic import write_text
from pave.files.json_text import read_json
from pave.files.tensorfile import raw

LEAST = 1 << 28  # bytes of tensors: fewer are hashed in a fraction of a second
RUNS, RUN = 16, 256  # runs of values of a tensor that a key holds, and values of a run
MOST = 200  # keys, the latest


def key_of(tensors: Iterable[tuple[str, Tensor]], files: Sequence[Path]) -> str:
    """What identifies tensors: some values of each in memory, and path, size and time of change of the files that they
    were read from. Empty if they are few, or if a file is gone."""
    sha256, size = hashlib.sha256(), 0
    for name, tensor in tensors:
        size += tensor.nbytes
        flat = tensor.detach().reshape(-1)
        last = max(0, len(flat) - RUN)
        some = torch.cat([flat[last * run // (RUNS - 1) :][:RUN] for run in range(RUNS)])
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(raw(some))
    try:
        facts = [(os.path.realpath(file), os.stat(file)) for file in files]
    except OSError:
        return ""
    sha256.update(json.dumps([(path, facts.st_size, facts.st_mtime_ns) for path, facts in facts]).encode())
    return sha256.hexdigest() if files and size >= LEAST else ""


def recall(key: str) -> str | None:
    """The hash that was remembered for a key, if any."""
    found = _known().get(key) if key else None
    return found if isinstance(found, str) else None


def remember(key: str, value: str) -> None:
    """Remember a hash; the oldest ones are forgotten."""
    if key:
        known = {**_known(), key: value}
        with suppress(FileError):
            write_text(_file(), json.dumps(dict([*known.items()][-MOST:]), indent=1) + "\n")


def _known() -> dict[str, object]:
    with suppress(FileError):
        return read_json(_file())
    return {}


def _file() -> Path:
    return Path(os.environ.get("PAVE_HOME") or Path.home() / ".config" / "pave") / "hashes.json"
