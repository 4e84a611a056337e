"""Files opened for reading, and files written atomically: if anything fails, the old file stays.

In: a path. Out: an open file, if it is a plain one; a written file or folder replaces the old one only when complete.
An error of the operating system becomes a FileError. Knows nothing of the contents of files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from pave.errors import FileError
from pave.files.locks import lock, mark, scratch, sweep_once

ODD = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotPlain(OSError):
    """The path leads to something that is not a plain file, so reading it might block or never end."""


def opened(path: str | Path) -> BufferedReader:
    """A plain file, open for reading. OSError for anything else, at once: every file from outside is opened here."""
    try:
        _refuse_odd(os.stat(path))  # before it is opened, which has an effect on some devices
    except ValueError as error:  # a null character, or what is no Unicode
        raise OSError(errno.EINVAL, f"no file can have this name ({error})") from None
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        info = os.fstat(descriptor)
        _refuse_odd(info)  # the path may lead to another file by now
        if not info.st_size and os.read(descriptor, 1):
            raise NotPlain(errno.EINVAL, "it has no size but a content, as files of /proc: copy it first")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_odd(info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode):
        kind = ODD.get(stat.S_IFMT(info.st_mode), "something else")
        raise NotPlain(errno.EINVAL, f"it is {kind}, not a file: save what it gives to a file first")


@contextmanager
def reading(path: str | Path) -> Iterator[BufferedReader]:
    """A plain file, open for reading; FileError for anything else."""
    try:
        with opened(path) as file:
            yield file
    except OSError as error:
        cause = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            cause = f"it is a link to {os.readlink(path)!r}, which does not exist"
        raise FileError(path, f"cannot be read ({cause})", "check path and permissions") from None


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a plain file."""
    with reading(path) as file:
        return file.read()


def refuse_odd_inside(folder: str | Path) -> None:
    """FileError if a folder, or one in it, holds anything but plain files: other people's loaders open them by name."""
    for place, inside, names in os.walk(folder):
        if place != str(folder):
            inside.clear()
        for path in (os.path.join(place, name) for name in names):
            try:
                _refuse_odd(os.stat(path))
            except NotPlain as error:
                cause = f"holds {os.path.relpath(path, folder)}, which cannot be read ({error.strerror})"
                raise FileError(folder, cause, "take it out of the folder") from None
            except OSError:  # a link to nothing is as good as no file
                continue


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` if the block succeeds; a symbolic link stays one."""
    path = Path(os.path.realpath(path))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        temporary, file = _begun(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename: a crash must not leave a new name with old bytes
            if os.name != "nt":  # while it is open, and so locked: nobody takes it for a dead process's
                os.replace(temporary, path)
        if os.name == "nt":  # which renames no open file
            os.replace(temporary, path)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(path, cause, "free disk space or fix the permissions; the previous file is unchanged") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def _begun(path: Path) -> tuple[Path, BinaryIO]:
    """A locked temporary file beside `path`."""
    while True:
        temporary = path.with_name(f".{path.name[:50]}.{mark()}.part")
        file = temporary.open("xb")
        if lock(file.fileno()) is not False and temporary.exists():
            return temporary, file
        file.close()  # another process has just taken it for a dead one's


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def append(path: Path, data: bytes) -> None:
    """Add bytes to the end of a plain file in one write, which a crash may cut short."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
        try:
            _refuse_odd(os.fstat(descriptor))
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(path, cause, "free disk space or fix the permissions") from None


def cut(path: Path, size: int) -> None:
    """Drop the bytes of a file beyond a size."""
    try:
        if os.path.getsize(path) > size:
            os.truncate(path, size)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(path, cause, "fix the permissions") from None


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """A path for a new file or folder, which becomes `path` if the block succeeds. If another process was faster, its
    result stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path) as folder:
        yield folder / path.name
        try:
            os.rename(folder / path.name, path)
        except OSError:  # a folder does not replace another one
            if not path.exists():
                raise
