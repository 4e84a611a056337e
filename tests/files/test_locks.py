"""Two processes at once, and processes that are killed: a lock ends with its owner, and what a dead one left is swept.

The other processes are real ones; each says "ready" and does something until it is killed.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from places import ROOT

from pave.errors import FileError
from pave.files.atomic import creating, replacing, write_text
from pave.files.locks import SWEPT, held, mark, scratch, sweep

fcntl = pytest.importorskip("fcntl")
HOLD = "with held(place, 'the other', {shared!r}): wait()"
# Until the child has run, it still has what it got from its parent: the parent says "ready" after it.
HOLD_AND_FORK = """
with held(place, 'the other'):
    reading, writing = os.pipe()
    if os.fork():
        os.read(reading, 1)
        wait()
    os.write(writing, b'.')
    time.sleep(60)
"""
WRITE = """
with replacing(place / 'target') as file:
    file.write(b'half')
    file.flush()
    wait()
"""
CREATE = """
with creating(place / 'made') as part:
    part.mkdir()
    (part / 'half').touch()
    wait()
"""
SCRATCH = """
tempfile.tempdir = str(place)
with scratch() as folder:
    (folder / 'large').touch()
    wait()
"""
COMMAND = """
import typer
from pave.cli.terminal import run_command
app = typer.Typer()
@app.command()
def work():
    tempfile.tempdir = str(place)
    with scratch() as folder:
        (folder / 'large').touch()
        wait()
sys.argv[1:] = []
run_command(app, 'work')
"""
HIDING = COMMAND.replace(
    "        wait()",
    """
        try:
            wait()
        except BaseException:  # as the lazy imports of transformers do
            raise ModuleNotFoundError('Could not import module')
""",
)
HEAD = """
import os, sys, tempfile, time
from pathlib import Path
from pave.files.atomic import creating, replacing
from pave.files.locks import held, scratch
place = Path(sys.argv[1])
def wait():
    print('ready', flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def unswept() -> None:
    """As in a process that has not written anything yet."""
    SWEPT.clear()


@contextmanager
def other(code: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of its work; it and its children are killed afterwards."""
    command = [sys.executable, "-c", HEAD + code, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> int:
    process.send_signal(how)
    return process.wait(300)


def hold(shared: str = "") -> str:
    return HOLD.format(shared=shared)


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Locks


def test_a_place_of_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    with other(hold(), tmp_path) as process:
        pid, host = process.pid, re.escape(platform.node())
        who = rf"is in use by the other \(process {pid} on {host}, since \d{{4}}-.*\); wait for it to end"
        with pytest.raises(FileError, match=who), held(tmp_path, "this"):
            pass
        kill(process)
        with held(tmp_path, "this"):
            assert left(tmp_path) == [".pave.lock"]
    assert left(tmp_path) == []


def test_a_forked_child_does_not_prolong_the_lock_of_its_parent(tmp_path: Path) -> None:
    with other(HOLD_AND_FORK, tmp_path) as process:
        with pytest.raises(FileError, match="in use"), held(tmp_path, "this"):
            pass
        kill(process)  # its child lives on
        with held(tmp_path, "this"):
            pass


def test_a_forked_child_that_leaves_the_block_frees_nothing(tmp_path: Path) -> None:
    with held(tmp_path, "this"):
        if not (child := os.fork()):
            try:
                with ExitStack() as stack:
                    stack.enter_context(pytest.raises(FileError))
                    stack.enter_context(held(tmp_path, "the child"))
                    os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0 and left(tmp_path) == [".pave.lock"]


def test_two_threads_of_one_process_are_two_owners(tmp_path: Path) -> None:
    with held(tmp_path, "one"), pytest.raises(FileError, match=r"in use by one \(this process"), held(tmp_path, "two"):
        pass


def test_a_file_is_locked_beside_it_and_a_new_folder_is_not_left_empty(tmp_path: Path) -> None:
    with held(tmp_path / "a.bin", "one", is_file=True), held(tmp_path / "b.bin", "two", is_file=True):
        assert left(tmp_path) == [".a.bin.pave.lock", ".b.bin.pave.lock"]
    with held(tmp_path / "new" / "folder", "one"):
        pass
    with held(tmp_path / "kept", "one"):
        (tmp_path / "kept" / "x").touch()
    assert left(tmp_path) == ["kept"]


def test_processes_with_the_same_work_share_a_place(tmp_path: Path) -> None:
    with other(hold("work"), tmp_path) as first, other(hold("work"), tmp_path) as second:
        with pytest.raises(FileError, match="in use by the other"), held(tmp_path, "this", "other work"):
            pass
        with held(tmp_path, "this", "work"):
            kill(first)
        with pytest.raises(FileError, match="in use"), held(tmp_path, "this"):
            pass
        kill(second)
        with held(tmp_path, "this"):
            pass
    assert left(tmp_path) == []


def test_where_there_are_no_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="its file system has no locks"), held(tmp_path, "this"):
        pass
    write_text(tmp_path / "x", "x")
    assert left(tmp_path) == ["x"]


def test_a_place_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"), held(tmp_path / "file" / "x", "this"):
        pass


# What is left


@pytest.mark.parametrize("code", [WRITE, CREATE, SCRATCH], ids=["file", "folder", "temporary folder"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_stays(tmp_path: Path, code: str) -> None:
    with other(code, tmp_path) as living, other(code, tmp_path) as killed:
        assert len(left(tmp_path)) == 2
        sweep(tmp_path)
        assert len(left(tmp_path)) == 2, "both live"
        kill(killed)
        write_text(tmp_path / "x", "x")  # the first write of this process there
        assert len(left(tmp_path)) == 2 and (tmp_path / "x").exists(), "the dead one's is gone"
        kill(living)
        sweep(tmp_path)
    assert left(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [COMMAND, HIDING], ids=["at work", "in an import"])
def test_sigterm_ends_a_command_and_leaves_nothing(tmp_path: Path, code: str) -> None:
    with other(code, tmp_path) as process:
        assert len(left(tmp_path)) == 1
        assert kill(process, signal.SIGTERM) == 128 + signal.SIGTERM
        assert left(tmp_path) == []


def test_foreign_files_are_never_swept(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ["pave-x", ".target.tmp", f"{mark()}.txt", f"my{mark()}", "pave-12345678-9", ".x.pave.lock", f"{mark()}x"]
    for name in names:
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    (folder / mark()).symlink_to(outside)  # a link with such a name: what it leads to stays
    sweep(folder)
    assert {*names} <= set(left(folder)) and left(outside) == ["x"]


def test_what_another_machine_left_is_swept_only_when_it_is_old(tmp_path: Path) -> None:
    """The locks of another machine may be invisible."""
    name = ".target.pave-00000000-" + 24 * "1"
    for path in (tmp_path / f"{name}.part", tmp_path / name):
        path.mkdir() if path.suffix != ".part" else path.touch()
    sweep(tmp_path)
    assert len(left(tmp_path)) == 2
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    sweep(tmp_path)
    assert left(tmp_path) == []


def test_a_folder_is_swept_once_and_not_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looks.append(folder) or look(folder))
    for number in range(5):
        write_text(tmp_path / str(number), "x")
        write_text(tmp_path / "inside" / str(number), "x")
    assert looks == [tmp_path, tmp_path / "inside"]


def test_a_folder_made_twice_at_once_stays_whole(tmp_path: Path) -> None:
    with creating(tmp_path / "made") as one, creating(tmp_path / "made") as two:
        for part, name in ((one, "one"), (two, "two")):
            part.mkdir()
            (part / name).touch()
    assert left(tmp_path) == ["made"] and left(tmp_path / "made") == ["two"]


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "語" * 85):
        write_text(tmp_path / name, "x")
    assert len(left(tmp_path)) == 2


def test_a_write_survives_a_sweep_at_every_moment(tmp_path: Path) -> None:
    """A thread that sweeps all the time never takes the file of a living writer."""
    code = f"from pave.files.locks import sweep\nprint('ready', flush=True)\nwhile True: sweep({str(tmp_path)!r})"
    with other(code, tmp_path):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with replacing(tmp_path / "x") as file:
                file.write(b"x")
            with scratch(tmp_path / "y") as folder:
                (folder / "z").touch()
                assert left(folder) == ["z"]
    assert left(tmp_path) == ["x"]
