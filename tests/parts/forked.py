"""Other processes for tests, as forks of this one: a fresh interpreter takes 8 s to import torch and transformers.

    with begin(tmp_path, ["pave", "encode", "logmel", media, out]) as process: ...

For what a process does, and how it ends. What depends on how one starts (imports, the environment, torchrun) needs a
fresh one.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

import torch

COMMANDS = {"pave": "pave.cli.main", "pave-train": "pave.cli.train"}


class Forked:
    """A child of this process; its stdout and stderr are files in `folder`."""

    def __init__(self, folder: Path, work: Callable[[], object], environment: Mapping[str, object]) -> None:
        self.returncode: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / name for name in ("stdout", "stderr")]
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = _run(work, self.outputs, environment)
            finally:
                os._exit(code)  # never back into the test

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit status, below 0 for a signal; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for its end: what it has written to stdout and stderr."""
        self.wait()
        out, err = (file.read_text("utf-8") for file in self.outputs)
        return out, err


def begin(folder: Path, work: Sequence[object] | Callable[[], object], **environment: object) -> Forked:
    """Begin a command, as its words, or any other work in a child process."""
    if not callable(work):
        name, *words = map(str, work)

        def command() -> None:
            sys.argv = [name, *words]
            import_module(COMMANDS[name]).main()

        work = command
    return Forked(folder, work, environment)


def _run(work: Callable[[], object], outputs: Sequence[Path], environment: Mapping[str, object]) -> int:
    """In the child: its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    torch.set_num_threads(1)  # a pool of OpenMP threads does not survive a fork: the next use of it would hang
    os.environ.update({name: str(value) for name, value in environment.items()})
    for number, (name, file) in enumerate(zip(("stdout", "stderr"), outputs, strict=True), 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        setattr(sys, name, TextIOWrapper(os.fdopen(number, "wb", 0), "utf-8", write_through=True))
    try:
        work()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
