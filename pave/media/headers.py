"""Whether a file is media: PyAV opens its header, in a worker process that may be killed.

In: the path of a file. Out: why it is not media; empty if it is. The ending of its name does not count. Whether its
pictures and sound decode shows only when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pave.files.process import Pool, Reply, Stopped, answering, limit

SECONDS = 20.0  # for one header
MEMORY = 1 << 30  # bytes of a worker
WORKERS = Pool("pave.media.headers")


def why_not_media(path: str) -> str:
    """Cause and remedy, without the path; empty for a media file."""
    worker = WORKERS.lend(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    try:
        reply, _ = worker.call({"path": path}, SECONDS)
    except Stopped:
        return f"its header cannot be read within {SECONDS:g} s; re-encode it"
    WORKERS.give_back(worker)
    return reply.get("error", "").removeprefix(f"{path}: ")


def serve() -> None:
    """Run by a worker process: open headers on request."""
    limit("RLIMIT_DATA", MEMORY)

    def handle(request: dict[str, Any]) -> Iterator[Reply]:
        check_header(request["path"])
        yield {"media": True}, {}

    answering(handle)


def check_header(path: str) -> None:
    """Refuse a file that announces neither pictures nor sound."""
    from pave.media.animation import animated
    from pave.media.container import check_file, opened, refuse

    check_file(path)
    if animated(path):
        return
    with opened(path) as container:
        known = [stream.codec_context for stream in container.streams if stream.codec_context is not None]
        if not any(getattr(each, "width", 0) or getattr(each, "sample_rate", 0) for each in known):
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            cause = f"holds neither pictures nor sound that can be read ({kinds})"
            raise refuse(path, cause, "give a video, sound or image file")
