"""Work with a limit of wall clock: in another process, because what hangs can only be stopped by killing it.

In: a request and seconds. Out: an answer with arrays, or `Stopped` after the limit. A worker runs the `serve()` of a
module (pave/media/decoding.py, pave/features/worker.py), serves many requests (starting one costs about 0.3 s), dies
with its owner, and is replaced when it was killed; a `Pool` keeps those that are idle. The processes are plain
subprocesses, not multiprocessing: a user's script needs no `if __name__ == "__main__"`. Knows nothing of what they do.

Wire format: one line of JSON each way; the answer's arrays follow as raw bytes. No pickle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from pave.errors import MediaError, PaveError

START_SECONDS = 300.0  # a machine under heavy load may need long to start an interpreter; not counted as decoding
SERVE = "import importlib, sys; importlib.import_module(sys.argv[1]).serve()"
Reply = tuple[dict[str, Any], dict[str, np.ndarray]]


class Stopped(Exception):
    """The worker ended before it answered."""


def python(code: str, *words: str) -> list[str]:
    """The command that runs code in a process of its own, with these words as `sys.argv[1:]`. It finds exactly what its
    owner finds, whatever the folder or the environment holds (-I)."""
    path = json.dumps([entry or os.getcwd() for entry in sys.path])
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); {code}"
    return [sys.executable, "-I", "-c", code, path, *words]


class Worker:
    """One process that runs `serve()` of a module, used by one thread at a time."""

    def __init__(self, module: str, **environment: str) -> None:
        command, pipe = python(SERVE, module), subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, **environment})
        self.owner = os.getpid()
        # What a pool has asked it first, if anything, and what it has answered.
        self.request: dict[str, Any] | None = None
        self.answer: dict[str, Any] = {}
        self.late = False
        weakref.finalize(self, end, self.process, self.owner)
        try:
            self.call({}, START_SECONDS)
        except Stopped as error:
            raise MediaError(f"a process of {module} does not start ({error}); run `pave doctor`") from None

    @property
    def alive(self) -> bool:
        """Whether this process may ask it; a forked child must not talk through its parent's pipes."""
        return self.owner == os.getpid() and self.process.poll() is None

    def call(self, request: dict[str, Any], seconds: float) -> Reply:
        """Send one request and wait for its answer; Stopped when the process dies or is killed after `seconds`."""
        timer = threading.Timer(seconds, self.expire)
        timer.daemon = True
        timer.start()
        try:
            answer = self.exchange(request | {"seconds": seconds})
        except (OSError, EOFError, ValueError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # its own end says more than ours
            self.kill()
            raise Stopped("killed" if self.late else f"exit status {self.process.returncode}") from None
        except BaseException:  # Ctrl-C: an answer half read would be taken for the next one's
            self.kill()
            raise
        finally:
            timer.cancel()
            timer.join()
        if self.late:  # the answer and the limit came together
            self.kill()
            raise Stopped("killed")
        return answer

    def exchange(self, request: dict[str, Any]) -> Reply:
        """Write a request, read the answer and its arrays."""
        inlet, outlet = self.process.stdin, self.process.stdout
        assert inlet and outlet
        inlet.write(json.dumps(request).encode() + b"\n")
        inlet.flush()
        line = outlet.readline()
        if not line:
            raise EOFError
        answer, arrays = json.loads(line), {}
        for name, (dtype, shape) in answer.get("arrays", {}).items():
            arrays[name] = np.empty(shape, dtype)
            fill(outlet, arrays[name])
        return answer, arrays

    def expire(self) -> None:
        """Called by the timer."""
        self.late = True
        self.process.kill()

    def kill(self) -> None:
        """End the process and wait for it, so that no zombie and no open pipe stays."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):  # a request that never reached the dead process
                    pipe.close()


class Pool:
    """Idle workers of one module, by the first request of each, which says what it is for. One that is for something
    else than what is asked for is ended; so is one that was lent and is not given back."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._idle: deque[Worker] = deque()  # append and pop are atomic: no lock that a fork could copy when locked

    def lend(self, request: dict[str, Any] | None = None, seconds: float = 0, **environment: str) -> Worker:
        """An idle worker whose first request was this one, or a new one that has answered it within so many seconds.
        Stopped: it ended before that."""
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
        """End all that are idle."""
        self._idle.clear()


def fill(pipe: Any, array: np.ndarray) -> None:
    """Read an array's bytes from a pipe."""
    if array.nbytes and pipe.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise EOFError


def end(process: subprocess.Popen, owner: int) -> None:
    """End a worker whose owner exits or forgot it; a forked copy of the owner leaves it alone."""
    if owner == os.getpid() and process.poll() is None:
        process.kill()
        process.wait()


def answering(answer: Callable[[dict[str, Any]], Reply]) -> None:
    """The worker's side: answer requests from stdin until it closes. An empty one asks whether it is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's affair
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the answers
    for line in sys.stdin.buffer:
        request = json.loads(line)
        seconds, arrays, said = request.pop("seconds"), {}, {}
        if hasattr(signal, "setitimer"):  # should the owner die meanwhile, the kernel ends this process
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 60)
        if request:
            try:
                said, arrays = answer(request)
                said["arrays"] = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
            except PaveError as error:
                said = {"error": str(error)}
            except MemoryError:
                said = {"error": f"{request['path']}: needs more memory than there is; ask for fewer frames"}
            except Exception as error:
                cause = f"{type(error).__name__}: {error}"
                said = {"error": f"{request['path']}: {cause}; this is a bug of PAVE, not of the file: report it"}
        out.write(json.dumps(said).encode() + b"\n")
        for array in arrays.values():
            out.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        out.flush()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def limit(name: str, most: int) -> None:
    """Lower a limit of this process, as RLIMIT_DATA, where the system has it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
