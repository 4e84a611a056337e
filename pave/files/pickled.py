"""Files of torch.save, opened in a process of their own: the only place where PAVE meets a pickle.

In: such a file from outside. Out: the tensors it holds, by name. The child process loads with `weights_only=True`,
which builds tensors and calls nothing else. Around that it has limits of time and memory, nothing of its owner's
environment, and an audit hook that refuses the network and further processes to all Python code. It hands over
safetensors, which are checked like any file from outside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pave.errors import FileDamaged, FileError, raised_as
from pave.files import tensorfile
from pave.files.atomic import reading
from pave.files.process import limit, python

SECONDS = 300.0  # of the clock, to open a file; one of 320 MB takes about 3, one of 4.8 GB 8
MEMORY = 2 << 30  # bytes, beside three times those of the file: itself, its tensors, and one that is copied
REWRITE = "from pave.files.pickled import rewrite; rewrite()"
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # what an interpreter may need to start
FENCED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.startfile")
UNWRITTEN = 3  # exit code of the child where the fault lies with the disk and not with the file
REMEDY = "download it again; a file that cannot be opened safely is never opened otherwise"


def read(path: Path, inside: str = "") -> dict[str, Tensor]:
    """The tensors of a file that torch.save has written; whatever else it holds or does makes it FileDamaged. One that
    stands alone is called "". Those without `inside` in their name stay in the child process: a file may be larger than
    what is wanted of it."""
    return _handed_over(path, inside, "")[0]


def read_part(path: Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that such a file holds under the name `part`, and what lies beside them: plain values as they are, of
    everything else its kind. All tensors and nothing, where it has no such part."""
    tensors, told = _handed_over(path, "", part)
    return tensors, json.loads(told["beside"])


def _handed_over(path: Path, inside: str, part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The parent's side."""
    with reading(path):  # what cannot be read at all is not damaged
        pass
    with TemporaryDirectory(prefix="pave-") as folder:
        words = str(path.resolve()), str(Path(folder) / "out"), str(MEMORY), str(SECONDS), inside, part
        kept = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
        options: dict[str, Any] = {"cwd": folder, "env": {**kept, "OMP_NUM_THREADS": "1"}, "timeout": SECONDS}
        try:
            done = subprocess.run(python(REWRITE, *words), stdin=subprocess.DEVNULL, capture_output=True, **options)
        except subprocess.TimeoutExpired:
            raise FileDamaged(path, f"is not open after {SECONDS:g} s", REMEDY) from None
        if done.returncode:
            said = (done.stdout or done.stderr).decode("utf-8", "replace").split("\n")
            cause = "".join(said[-2:]).strip() or f"ends the process that opens it (exit {done.returncode})"
            if done.returncode == UNWRITTEN:
                raise FileError(path, cause, f"free space in {Path(folder).parent}, or set TMPDIR to another folder")
            raise FileDamaged(path, cause, REMEDY)
        with raised_as(FileDamaged, path, REMEDY):
            return tensorfile.read(Path(folder) / "out")


def rewrite() -> None:
    """The child's side: the file argv[1] as safetensors, in argv[2]; or a line that says why not, and an exit code."""
    source, target, memory, seconds, inside, part = sys.argv[1:]
    size = os.path.getsize(source)
    _confine(int(memory) + 3 * size, int(float(seconds)) + 1)
    beside: dict[Any, Any] = {}
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
        found: Any = {"": found} if isinstance(found, Tensor) else found
        if part and isinstance(found, dict) and part in found:
            found, beside = found.pop(part), found
        told = {"beside": json.dumps(beside, skipkeys=True, default=lambda value: type(value).__name__)}
        if isinstance(found, dict):
            found = {name: value for name, value in found.items() if inside in str(name)}
        flaw = _flaw(found, size)
    except Exception as error:
        found, told, flaw = {}, {}, _cause(error)
    if flaw:
        sys.stdout.buffer.write(flaw.encode("utf-8", "replace"))
        raise SystemExit(1)
    try:
        tensorfile.write(Path(target), found, told)
    except FileError as error:
        sys.stdout.buffer.write(f"is sound, but its tensors {error.cause}".encode("utf-8", "replace"))
        raise SystemExit(UNWRITTEN) from None


def _confine(memory: int, seconds: int) -> None:
    """From here on: so many bytes and seconds of a core, where the system has such limits; no network, no processes."""
    limit("RLIMIT_DATA", memory)
    limit("RLIMIT_CPU", seconds)

    def refuse(event: str, args: object) -> None:
        if event.startswith(FENCED):
            raise PermissionError(f"{event} is forbidden here")

    sys.addaudithook(refuse)


def _flaw(found: Any, size: int) -> str:
    """Why this is no mapping of names to plain tensors that a file of `size` bytes can hold; empty when it is one."""
    if not isinstance(found, dict):
        return f"holds a {type(found).__name__}, not tensors by name"
    total = 0
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return f"{name!r} is a {type(tensor).__name__}, not a tensor under a name"
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in tensorfile.CODES
        if not plain:
            return f"{name!r} is a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}, which is not read"
        total += tensor.numel() * tensor.element_size()
    # Twice: a network may use one tensor in several places.
    return f"tells of {total:,} bytes of tensors, but has {size:,} in all" if total > 2 * size else ""


def _cause(error: Exception) -> str:
    called = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, UnpicklingError) and called:
        return f"asks for {called[1]} when it is opened, which is no part of a tensor: it may do harm"
    lines = str(error).splitlines() or [""]
    return f"is cut short, or no file of torch.save ({type(error).__name__}: {lines[0][:120]})"
