"""What the headers of a media file announce: PyAV opens them in a worker process that may be killed.

In: the path of a file, or of a folder of pictures. Out: a `Header`: its kinds of streams and its length, or why it is
not media. The ending of its name does not count. Whether its pictures and sound decode shows only when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.files.process import Pool, Reply, Stopped, answering, limit

SECONDS = 20.0  # for one header
MEMORY = 1 << 30  # bytes of a worker
WORKERS = Pool("pave.media.headers")


@dataclass(frozen=True)
class Header:
    """What a file announces. `flaw`: why it is not media, with the remedy, without the path; empty: it is."""

    flaw: str = ""
    pictures: bool = False
    sound: bool = False
    seconds: float = 0.0  # 0: it does not say


def announced_by(path: str) -> Header:
    """The header of a file."""
    worker = WORKERS.lend(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    try:
        reply, _ = worker.call({"path": path}, SECONDS)
    except Stopped:
        return Header(f"its header cannot be read within {SECONDS:g} s; re-encode it")
    WORKERS.give_back(worker)
    if "error" in reply:
        return Header(reply["error"].removeprefix(f"{path}: "))
    return Header(**reply)


def announced_by_each(paths: Iterable[str], workers: int) -> Iterator[Header]:
    """The headers of many files, in order, read in so many processes."""
    with ThreadPoolExecutor(workers, thread_name_prefix="headers") as pool:  # each only waits for its process
        yield from pool.map(announced_by, paths)


def serve() -> None:
    """Run by a worker process: open headers on request."""
    limit("RLIMIT_DATA", MEMORY)

    def handle(request: dict[str, Any]) -> Iterator[Reply]:
        yield fields_of(request["path"]), {}

    answering(handle)


def fields_of(path: str) -> dict[str, Any]:
    """The fields of a `Header`; MediaError for a file that announces neither pictures nor sound."""
    from pave.media.animation import animated, survey_of
    from pave.media.container import check_file, opened, refuse

    if os.path.isdir(path):
        from pave.media.folder import pictures_in  # Pillow is rarely needed

        return {"pictures": True, "seconds": float(len(pictures_in(Path(path))))}
    check_file(path)
    if animated(path):
        return {"pictures": True, "seconds": survey_of(path).reached}
    with opened(path) as container:
        known = [stream.codec_context for stream in container.streams if stream.codec_context is not None]
        pictures, sound = (any(getattr(each, key, 0) for each in known) for key in ("width", "sample_rate"))
        if not pictures and not sound:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            cause = f"holds neither pictures nor sound that can be read ({kinds})"
            raise refuse(path, cause, "give a video, sound or image file")
        return {"pictures": pictures, "sound": sound, "seconds": max(0, container.duration or 0) / 1e6}
