"""Locks between processes, and temporary files and folders whose owner died.

In: a folder or a file that a process is going to write. Out: a lock that ends with its owner, however that dies,
because the system keeps it (flock; on Windows, a locked byte). Who holds it is in the lock file, for errors. Temporary
files are locked by their owner, too: one that is not locked is a dead process's and may be deleted. Knows nothing of
contents.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import stat
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

from pave.errors import FileError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

STALE = 3600.0  # seconds after which a temporary file must be a dead process's, where that cannot be seen by its lock
MARK = re.compile(r"(?:^|\.)pave-([0-9a-f]{8})-[0-9a-f]{24}(?:\.part)?$")  # ends the name of all temporary ones
LOCK = ".pave.lock"
FAR = 1 << 30  # the byte that is locked on Windows, where locked bytes cannot be read: beyond what the file holds
HELD: set[int] = set()  # descriptors whose locks are this process's: a forked child must not prolong them
SWEPT: set[str] = set()  # folders that this process has swept: looking through a large one takes long


def mark() -> str:
    """The end of the name of a temporary file or folder: the machine and a random number."""
    return f"pave-{_machine()}-{uuid.uuid4().hex[:24]}"


def _machine() -> str:
    return sha256(platform.node().encode()).hexdigest()[:8]


def lock(descriptor: int, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed. False: another process holds it. None: no locks exist here."""
    try:
        if sys.platform == "win32":
            place = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, FAR, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, place, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK) else None
    return True


def _keep(descriptor: int) -> None:
    """Note a locked file of this process."""
    _forget_in_children()
    HELD.add(descriptor)


@cache
def _forget_in_children() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Run by a forked child: close its copies of the locked files."""
    for descriptor in HELD:
        os.close(descriptor)
    HELD.clear()


def _release(descriptor: int) -> bool:
    """Close a locked file; False in a forked child, which owns nothing."""
    if descriptor not in HELD:
        return False
    HELD.remove(descriptor)
    os.close(descriptor)
    return True


# ---------------------------------------------------------------- one process at a time


@contextmanager
def held(place: Path, doing: str, shared: str = "", is_file: bool = False) -> Iterator[None]:
    """Within the block, a folder (or a file) belongs to this process; FileError if it belongs to another one.

    doing: what this process does there, for the errors of others. shared: processes that name the same work may do it
    together. is_file: the place is a file if it does not exist yet."""
    file = place / LOCK if not is_file or os.path.isdir(place) else place.with_name(f".{place.name}{LOCK}")
    new = [folder for folder in (file.parent, *file.parent.parents) if not os.path.exists(folder)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(place, file, doing, shared)
    except (OSError, ValueError) as error:  # ValueError: a null character in its name
        cause = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        raise FileError(place, cause, "free disk space, fix the permissions, or choose another name") from None
    try:
        yield
    finally:
        # The file is deleted only by its last owner and while it is locked: nobody may wait for a file without a name.
        last = descriptor in HELD and (not shared or lock(descriptor))
        if last:
            with suppress(OSError):  # Windows deletes no open file; an empty lock file does no harm
                file.unlink()
        if _release(descriptor):
            with suppress(OSError):  # one that holds something by now stays
                for folder in new:
                    folder.rmdir()


def _acquired(place: Path, file: Path, doing: str, shared: str) -> int:
    """The descriptor of the locked lock file."""
    for _ in range(500):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        free = lock(descriptor)
        if free is None:
            warnings.warn(
                f"{place}: its file system has no locks; start no second process that writes there", stacklevel=4
            )
        elif free is False:
            owner = _owner(descriptor)
            if owner and not (shared and owner.get("shared") == shared):
                os.close(descriptor)
                raise FileError(place, _in_use(owner), "wait for it to end, or give another folder or file")
            free = bool(owner) and (sys.platform == "win32" or lock(descriptor, shared=True))
        elif _same(descriptor, file):
            _sign(descriptor, doing, shared)
            free = not shared or sys.platform == "win32" or lock(descriptor, shared=True)
        if free is not False and _same(descriptor, file):
            _keep(descriptor)
            return descriptor
        os.close(descriptor)  # its owner has just deleted it, or is just signing it
        time.sleep(0.01)
    raise OSError(errno.EAGAIN, f"{file} is locked by an unknown process")


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(descriptor: int, doing: str, shared: str) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(owner | {"doing": doing, "shared": shared}).encode())


def _owner(descriptor: int) -> dict[str, Any]:
    """Who holds the lock; empty if it has not signed yet."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        owner = json.loads(os.read(descriptor, 1 << 16))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _in_use(owner: dict[str, Any]) -> str:
    who = "this process" if owner.get("pid") == os.getpid() else f"process {owner.get('pid')} on {owner.get('host')}"
    return f"is in use by {owner.get('doing')} ({who}, since {owner.get('since')})"


# ---------------------------------------------------------------- temporary files and folders


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the block, locked by this process: if it is killed, another one deletes the folder.
    beside: a path in the folder for it; None is the system's folder for temporary files."""
    parent, name = (beside.parent, f".{beside.name[:50]}.") if beside else (Path(tempfile.gettempdir()), "")
    sweep_once(parent)
    while True:
        folder = parent / f"{name}{mark()}"
        folder.mkdir(mode=0o777 if beside else 0o700)
        try:
            descriptor = None if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process has just swept it
            continue
        if descriptor is None or (lock(descriptor) is not False and _same(descriptor, folder)):
            break
        os.close(descriptor)  # another process has just taken it for a dead one's
    if descriptor is not None:
        _keep(descriptor)
    owner = os.getpid()
    try:
        yield folder
    finally:
        if owner == os.getpid():
            rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            _release(descriptor)


def sweep_once(folder: Path) -> None:
    """`sweep`, if this process has not swept the folder yet."""
    if (place := os.path.abspath(folder)) not in SWEPT:
        SWEPT.add(place)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Delete the temporary files and folders that dead processes left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if MARK.search(entry.name)]
    for path in left:
        _delete_abandoned(path)


def _delete_abandoned(path: str) -> None:
    """Delete a temporary file or folder of this user unless its owner lives: while it is locked by this process, so
    that an owner that has just created it notices."""
    if sys.platform == "win32":
        with suppress(OSError):
            if time.time() - os.stat(path).st_mtime > STALE:
                rmtree(path) if os.path.isdir(path) else os.unlink(path)
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        info, named = os.fstat(descriptor), MARK.search(os.path.basename(path))
        if info.st_uid != os.getuid() or not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            return
        free = lock(descriptor)
        # The lock of a process on another machine may be invisible here.
        here = free is True and named is not None and named[1] == _machine()
        if free is not False and (here or time.time() - info.st_mtime > STALE):
            with suppress(OSError):
                rmtree(path) if stat.S_ISDIR(info.st_mode) else os.unlink(path)
    finally:
        os.close(descriptor)
