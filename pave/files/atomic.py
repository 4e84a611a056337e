"""Files opened to be read, and files written in one piece: whatever goes wrong, the old file stays.

In: a path. Out: an open file; one that is written takes its place when all has been written. What the system refuses is
a FileError. Knows nothing of what files hold.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from pave.errors import FileError

STALE = 3600.0  # seconds after which a temporary file can only be what a killed save left behind


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """The file, open to be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error})", "mend the file or its rights") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well; a link stays a link."""
    path = Path(os.path.realpath(path))
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with fresh.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(path, cause, "free space or mend the rights; what was there before is untouched") from None
    finally:
        with suppress(OSError):
            fresh.unlink()


def _sweep(path: Path) -> None:
    """Remove what killed saves have left; a save that is still running is younger."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
