"""Decoding with a wall-clock limit, in worker processes: a decoder that hangs can only be killed.

In: a `Request` and seconds. Out: its `Decoded`, or a MediaError after the limit. A worker imports only PyAV and numpy.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pave.errors import MediaError
from pave.files.process import Pool, Reply, Stopped, answering

if TYPE_CHECKING:
    from pave.media.decode import Decoded
    from pave.media.key_frames import Request

ARRAYS = ("frames", "times", "audio")
WORKERS = Pool("pave.media.decoding")


def decode_within(request: Request, seconds: float) -> Decoded:
    """`decode(request)` in a worker, which is killed after `seconds`."""
    from pave.media.decode import Decoded

    worker = WORKERS.lend()
    try:
        values, arrays = worker.call(asdict(request), seconds)
    except Stopped as stopped:
        if worker.late:
            cause, remedy = (
                f"decoding took longer than {seconds:g} s and was stopped",
                "raise timeout= or read a shorter span (start, end)",
            )
        else:
            cause, remedy = (
                f"the decoder crashed on it ({stopped})",
                "the file is damaged: re-encode it or leave it out",
            )
        raise MediaError(f"{request.path}: {cause}; {remedy}") from None
    WORKERS.give_back(worker)
    if "error" in values:
        raise MediaError(values["error"])
    return Decoded(**arrays, **values["values"])


def serve() -> None:
    """Run by a worker process: decode on request."""
    from pave.media.decode import decode
    from pave.media.key_frames import Request

    def handle(request: dict[str, Any]) -> Reply:
        values = vars(decode(Request(**request)))
        arrays = {name: values.pop(name) for name in ARRAYS if values[name] is not None}
        return {"values": values}, arrays

    answering(handle)
