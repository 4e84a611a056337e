"""Files opened for reading, and files written atomically: if anything fails, the old file stays.

In: a path. Out: an open file; a written file replaces the old one only when complete. An error of the operating system
becomes a FileError. Knows nothing of the contents of files.
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

STALE = 3600.0  # seconds after which a temporary file must be the rest of a killed save


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error})", "check path and permissions") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` if the block succeeds; a symbolic link stays one."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename: a crash must not leave a new name with old bytes
        os.replace(temporary, path)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(path, cause, "free disk space or fix the permissions; the previous file is unchanged") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sweep(path: Path) -> None:
    """Remove the temporary files of killed saves; that of a running save is newer."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
