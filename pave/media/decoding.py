"""Decoding with limits of time and memory, in worker processes: a decoder that hangs can only be killed.

In: a `Request` and a limit. Out: the parts of the clip, or a MediaError after the limit. A worker imports only
PyAV and numpy, and sends every picture as it is decoded.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import asdict
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Literal

from pave.errors import MediaError
from pave.files.process import Pool, Reply, Stopped, answering, limit

if TYPE_CHECKING:
    from pave.media.decode import Part
    from pave.media.key_frames import Request

Timeout = float | Literal["auto"] | None

WORKERS = Pool("pave.media.decoding")
MEMORY = 1400 << 20  # bytes that a worker may allocate: PyAV and numpy take 60 MB
# The limit "auto" counts seconds of a processor, so that a busy machine does not turn good clips into bad ones: these
# for any file, and more for a long one (`decode.work_of`), up to MOST.
LEAST, MOST = 30.0, 3600.0
PATIENCE = 10.0  # times as long may pass on the clock: for a decoder that waits for something
SETTING = "timeout= (--timeout on the command line, data.timeout in a recipe)"


def parts_within(request: Request, timeout: float | Literal["auto"]) -> Iterator[Part]:
    """The parts of `decode(request)`, decoded in a worker as they are read; a number limits the seconds waited."""
    auto = timeout == "auto"
    worker = WORKERS.lend(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # buffers for threads count as its memory
    asked = asdict(request) | {"auto": auto}
    try:
        for values, arrays in worker.parts(asked, PATIENCE * LEAST if timeout == "auto" else timeout):
            if "error" in values:
                WORKERS.give_back(worker)
                raise MediaError(values["error"])
            yield values, arrays.get("")
    except Stopped as stopped:
        raise MediaError(
            f"{request.path}: {why_stopped(worker.late, worker.process.returncode, stopped, timeout)}"
        ) from None
    WORKERS.give_back(worker)


def why_stopped(late: bool, status: int | None, stopped: Stopped, timeout: float | Literal["auto"]) -> str:
    """Cause and remedy for a worker that ended before it was done."""
    if late or status == -getattr(signal, "SIGXCPU", 0):
        took = "more processor time than its length explains" if timeout == "auto" else f"longer than {timeout:g} s"
        return f"decoding took {took} and was stopped; raise {SETTING} or read a shorter span (start, end)"
    return f"the decoder crashed on it ({stopped}); the file is damaged: re-encode it or leave it out"


def serve() -> None:
    """Run by a worker process: decode on request."""
    from pave.media.decode import decode
    from pave.media.key_frames import Request

    limit("RLIMIT_DATA", MEMORY)

    def handle(request: dict[str, Any]) -> Iterator[Reply]:
        auto = request.pop("auto", False)
        allow(LEAST if auto else inf)
        for values, array in decode(Request(**request)):
            if "work" in values:
                seconds = min(LEAST + values["work"], MOST)
                if auto:
                    allow(seconds)
                    yield {"within": PATIENCE * seconds}, {}
            else:
                yield values, {} if array is None else {"": array}

    answering(handle)


def allow(seconds: float) -> None:
    """Let this process compute that much longer, where the system can limit it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used, hard = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = resource.RLIM_INFINITY if seconds == inf else ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
