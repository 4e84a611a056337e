"""Work with a wall-clock limit, in worker processes: code that hangs can only be stopped by killing its process.

In: a request and seconds. Out: a reply with arrays, or `Stopped` after the limit. A worker runs the `serve()` of a
module (pave/media/decoding.py, pave/features/worker.py), serves many requests (starting one costs about 0.3 s), dies
with its owner, and is replaced when killed; a `Pool` holds the idle ones. The processes are plain subprocesses, not
multiprocessing: a user's script needs no `if __name__ == "__main__"`. Knows nothing of what they compute.

Wire format: one line of JSON each way; a reply has parts, and the arrays of each follow as raw bytes. No pickle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from pave.errors import MediaError, PaveError

START_SECONDS = 300.0  # a busy machine may take long to start an interpreter; not part of a request's limit
SERVE = "import importlib, sys; importlib.import_module(sys.argv[1]).serve()"
Reply = tuple[dict[str, Any], dict[str, np.ndarray]]
T = TypeVar("T")


class Stopped(Exception):
    """The worker ended before it replied."""


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs code in a new process, with these arguments as `sys.argv[1:]`. It imports from exactly the
    same paths as its owner: -I ignores the working directory and PYTHON* variables."""
    path = json.dumps([entry or os.getcwd() for entry in sys.path])
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); {code}"
    return [sys.executable, "-I", "-c", code, path, *arguments]


class Worker:
    """One process that runs `serve()` of a module, used by one thread at a time."""

    def __init__(self, module: str, **environment: str) -> None:
        command, pipe = python(SERVE, module), subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, **environment})
        self.owner = os.getpid()
        # The first request of a pool, if any, and its reply.
        self.request: dict[str, Any] | None = None
        self.answer: dict[str, Any] = {}
        self.late = False
        weakref.finalize(self, end, self.process, self.owner)
        try:
            self.call({}, START_SECONDS)
        except Stopped as error:
            raise MediaError(f"the worker process of {module} did not start ({error}); run `pave doctor`") from None

    @property
    def alive(self) -> bool:
        """Whether this process may use the worker; a forked child must not use its parent's pipes."""
        return self.owner == os.getpid() and self.process.poll() is None

    def call(self, request: dict[str, Any], seconds: float) -> Reply:
        """Send one request and wait for its reply, the last part of it; Stopped if the process dies or is killed after
        `seconds`."""
        return [({}, {}), *self.parts(request, seconds)][-1]

    def parts(self, request: dict[str, Any], seconds: float) -> Iterator[Reply]:
        """The parts of a reply, as they come. `seconds` limits the time that this waits, not what the caller does
        between two parts; a part {"within": seconds} is not yielded, but sets the limit anew. A reply that is not read
        to its end ends the process."""
        over = False
        try:
            self.within(seconds, self.send, request | {"seconds": seconds})
            while not over:
                begun = time.monotonic()
                values, arrays = self.within(seconds, self.receive)
                over, seconds = values.pop("over"), max(seconds - (time.monotonic() - begun), 0.0)
                if "within" in values:
                    seconds = values["within"]
                elif values or not over:
                    yield values, arrays
        except (OSError, EOFError, ValueError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # its own exit status tells more than SIGKILL
            raise Stopped("killed" if self.late else f"exit status {self.process.returncode}") from None
        finally:  # also after Ctrl-C: the rest of a half-read reply would be taken for the next one
            if not over or self.late:
                self.kill()
        if self.late:  # the reply arrived just as the limit expired
            raise Stopped("killed")

    def within(self, seconds: float, work: Callable[..., T], *arguments: Any) -> T:
        """The result of some work; the process is killed if it takes longer."""
        if seconds > threading.TIMEOUT_MAX:
            return work(*arguments)
        timer = threading.Timer(seconds, self.expire)
        timer.daemon = True
        begun = time.monotonic()
        timer.start()
        try:
            return work(*arguments)
        finally:
            timer.cancel()
            timer.join()
            if not self.late and time.monotonic() - begun > seconds:  # a busy machine let the work end before the timer
                self.expire()

    def send(self, request: dict[str, Any]) -> None:
        """Write a request."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Reply:
        """Read one part of a reply, and its arrays."""
        outlet = self.process.stdout
        assert outlet
        line = outlet.readline()
        if not line:
            raise EOFError
        values, arrays = json.loads(line), {}
        for name, (dtype, shape) in values.pop("arrays", {}).items():
            arrays[name] = np.empty(shape, dtype)
            fill(outlet, arrays[name])
        return values, arrays

    def expire(self) -> None:
        """Called by the timer when the limit has expired."""
        self.late = True
        self.process.kill()

    def kill(self) -> None:
        """Kill the process and wait for it, so that no zombie and no open pipe is left."""
        end(self.process, self.owner)


class Pool:
    """Idle workers of one module. The first request of a worker sets it up; `lend` ends idle ones with another setup. A
    lent worker that is not given back ends, too."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._idle: deque[Worker] = deque()  # append and pop are atomic: no lock that a fork could copy when locked

    def lend(self, request: dict[str, Any] | None = None, seconds: float = 0, **environment: str) -> Worker:
        """An idle worker whose first request was this one, or a new one that has replied to it within these seconds;
        Stopped otherwise."""
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if worker.request == request and worker.alive:
                return worker
        worker = Worker(self.module, **environment)
        if request is not None:
            worker.request, worker.answer = request, worker.call(request, seconds)[0]
        return worker

    def give_back(self, worker: Worker) -> None:
        self._idle.append(worker)

    def clear(self) -> None:
        """End all idle workers."""
        self._idle.clear()


def fill(pipe: Any, array: np.ndarray) -> None:
    """Read an array's bytes from a pipe."""
    if array.nbytes and pipe.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise EOFError


def end(process: subprocess.Popen, owner: int) -> None:
    """Kill a worker whose owner exits or dropped it, so that no zombie and no open pipe is left; a forked copy of the
    owner leaves it running."""
    if owner != os.getpid():
        return
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(OSError):  # flushing a request that the dead process never read
                pipe.close()


def answering(handle: Callable[[dict[str, Any]], Iterable[Reply]]) -> None:
    """Run by a worker process: reply to requests from stdin until it closes. An empty request checks that it runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the owner
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not mix with the replies
    for line in sys.stdin.buffer:
        request = json.loads(line)
        seconds, parts = request.pop("seconds"), iter(handle(request) if request else ())
        while True:
            values, arrays = next_part(request, parts, seconds)
            seconds = values.get("within", seconds)
            head = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
            out.write(json.dumps(values | {"arrays": head}).encode() + b"\n")
            for array in arrays.values():
                out.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
            if values["over"]:
                break
        out.flush()


def next_part(request: dict[str, Any], parts: Iterator[Reply], seconds: float) -> Reply:
    """The next part of a reply; an error is the last one."""
    alarm(2 * seconds + 60)  # if the owner dies meanwhile, SIGALRM ends this process
    values: dict[str, Any] = {"over": True}
    arrays: dict[str, np.ndarray] = {}
    try:
        if part := next(parts, None):
            values, arrays = {**part[0], "over": False}, part[1]
    except PaveError as error:
        values["error"] = str(error)
    except MemoryError:
        values["error"] = f"{request['path']}: out of memory; read a smaller part of it, or scale it down first"
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        values["error"] = f"{request['path']}: {cause}; this is a bug in PAVE, not in the file; please report it"
    alarm(0)
    return values, arrays


def alarm(seconds: float) -> None:
    """Set or clear (0) the timer of SIGALRM, where the system has it."""
    if hasattr(signal, "setitimer") and seconds < threading.TIMEOUT_MAX:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit(name: str, most: int) -> None:
    """Lower a limit of this process, such as RLIMIT_DATA, where the system has it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
