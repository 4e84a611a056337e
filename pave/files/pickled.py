"""Files of torch.save, opened in a child process: the only place where PAVE reads a pickle.

In: such a file from outside. Out: its tensors, by name. The child process loads with `weights_only=True`, which builds
tensors and calls nothing else. In addition it has limits of time and memory, an almost empty environment, and an audit
hook that denies network access and subprocesses to all Python code. It returns its result as safetensors, which are
checked like any file from outside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from pave.errors import FileDamaged, FileError, raised_as
from pave.files import tensorfile
from pave.files.atomic import reading
from pave.files.locks import scratch
from pave.files.process import limit, python

SECONDS = 300.0  # wall-clock limit to open a file; one of 320 MB takes about 3 s, one of 4.8 GB 8 s
MEMORY = 2 << 30  # bytes, on top of three times the file's: the file, its tensors, and a copy
REWRITE = "from pave.files.pickled import rewrite; rewrite()"
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # what an interpreter may need to start
FENCED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.startfile")
UNWRITTEN = 3  # exit code of the child if the disk is at fault, not the file
HARM = "would call {} when opened, which no tensor needs: it may do harm"
REMEDY = "download it again; PAVE never opens such a file in an unsafe way"


def read(path: Path, inside: str = "") -> dict[str, Tensor]:
    """The tensors of a file written by torch.save; any other content makes it FileDamaged. A single tensor has the name
    "". Tensors without `inside` in their name are not returned: a file may be much larger than the part that is needed.
    """
    return _converted(path, inside, "")[0]


def read_part(path: Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors under the key `part`, and the values beside it: plain values unchanged, of others the type name.
    Without such a key: all tensors, and no values."""
    tensors, metadata = _converted(path, "", part)
    return tensors, json.loads(metadata["beside"])


def _converted(path: Path, inside: str, part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Run by the parent process: tensors and metadata of the file, converted by a child."""
    with reading(path):  # a file that cannot be read is not damaged: this raises FileError first
        pass
    with scratch() as folder:
        arguments = str(path.resolve()), str(folder / "out"), str(MEMORY), str(SECONDS), inside, part
        inherited = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
        options: dict[str, Any] = {"cwd": folder, "env": {**inherited, "OMP_NUM_THREADS": "1"}, "timeout": SECONDS}
        try:
            done = subprocess.run(python(REWRITE, *arguments), stdin=subprocess.DEVNULL, capture_output=True, **options)
        except subprocess.TimeoutExpired:
            raise FileDamaged(path, f"could not be opened within {SECONDS:g} s", REMEDY) from None
        if done.returncode:
            output = (done.stdout or done.stderr).decode("utf-8", "replace").split("\n")
            cause = "".join(output[-2:]).strip() or f"crashed the process that opened it (exit {done.returncode})"
            if done.returncode == UNWRITTEN:
                raise FileError(path, cause, f"free space in {folder.parent}, or set TMPDIR to another folder")
            raise FileDamaged(path, cause, REMEDY)
        with raised_as(FileDamaged, path, REMEDY):
            return tensorfile.read(folder / "out")


def rewrite() -> None:
    """Run by the child process: convert the file argv[1] to safetensors in argv[2], or print the cause and exit."""
    source, target, memory, seconds, inside, part = sys.argv[1:]
    size = os.path.getsize(source)
    _confine(int(memory) + 3 * size, int(float(seconds)) + 1)
    beside: dict[Any, Any] = {}
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
        content: Any = {"": loaded} if isinstance(loaded, Tensor) else loaded
        if part and isinstance(content, dict) and part in content:
            content, beside = content.pop(part), content
        metadata = {"beside": json.dumps(beside, skipkeys=True, default=lambda value: type(value).__name__)}
        if isinstance(content, dict):
            content = {name: value for name, value in content.items() if inside in str(name)}
        flaw = _flaw(content, size)
    except Exception as error:
        content, metadata, flaw = {}, {}, _cause(error)
    if flaw:
        sys.stdout.buffer.write(flaw.encode("utf-8", "replace"))
        raise SystemExit(1)
    try:
        tensorfile.write(Path(target), content, metadata)
    except FileError as error:
        sys.stdout.buffer.write(f"is intact, but its tensors {error.cause}".encode("utf-8", "replace"))
        raise SystemExit(UNWRITTEN) from None


def _confine(memory: int, seconds: int) -> None:
    """Limit the bytes and CPU seconds of this process, where the system can; deny network and subprocesses."""
    limit("RLIMIT_DATA", memory)
    limit("RLIMIT_CPU", seconds)

    def refuse(event: str, args: object) -> None:
        if event.startswith(FENCED):
            raise PermissionError(f"{event} is forbidden here")

    sys.addaudithook(refuse)


def _flaw(content: Any, size: int) -> str:
    """Why this is not a mapping of names to plain tensors that fits a file of `size` bytes; empty if it is one."""
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}, not tensors by name"
    total = 0
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return f"{name!r} is a {type(tensor).__name__}, not a tensor with a name"
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in tensorfile.CODES
        if not plain:
            return f"{name!r} is a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}, which is not supported"
        total += tensor.numel() * tensor.element_size()
    # Twice: a network may share one tensor between several names.
    return f"declares {total:,} bytes of tensors, but has only {size:,} in all" if total > 2 * size else ""


def _cause(error: Exception) -> str:
    call = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, UnpicklingError) and call:
        return HARM.format(call[1])
    lines = str(error).splitlines() or [""]
    return f"is cut short, or not a file of torch.save ({type(error).__name__}: {lines[0][:120]})"
