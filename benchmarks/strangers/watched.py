"""Cases tried in a forked process that another one watches: crashes, hangs, seconds and memory are results, not ends.

In: a function that makes the case of a number. Out: a `Verdict` per case. Only on Linux: memory and CPU time are read
from /proc. A case is refused well if the error is a PaveError whose message names what is wrong; anything else, and
anything over the limits, is BAD.
"""

from __future__ import annotations

import builtins
import ctypes
import faulthandler
import gc
import io
import json
import os
import resource
import select
import signal
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from pave.cli.terminal import remark
from pave.errors import PaveError
from pave.text.shown import shown

SECONDS, MEMORY = 5.0, 300 << 20  # CPU time and growth of a process within which a case must be judged
STILL = 4.0  # seconds in which all processes of a case sleep, after which it hangs
TOGETHER = 200  # cases per process
ROOM = 3 << 30  # bytes of data a process may add before allocations fail, so that the machine survives
TALK = 5_000  # characters of an error message that a person could still read
FORGED = "\n  forged: line"  # part of names and texts; a line of the output that begins with it was forged
BIDI = "\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """One case: steps, each of which ends or raises a PaveError whose message has one of `names`."""

    steps: Sequence[Callable[[], object]]
    names: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """The result of one case. `where`: the last frame of PAVE in the traceback, and the last of all."""

    number: int
    kind: str  # fine, refused, or BAD: ...
    message: str = ""
    where: str = ""
    seconds: float = 0.0
    growth: int = 0  # bytes


class Asked(BaseException):
    """A library has asked the user a question."""


def verdicts(numbers: Sequence[int], case: Callable[[int], Case]) -> Iterator[Verdict]:
    """Try all cases, in as many processes as needed."""
    left = list(numbers)
    while left:
        for verdict in _of_one_process(left[:TOGETHER], case):
            yield verdict
            left.pop(0)


def _of_one_process(numbers: Sequence[int], case: Callable[[int], Case]) -> Iterator[Verdict]:
    inlet, outlet = os.pipe()
    with TemporaryFile() as stacks, os.fdopen(inlet, "rb", buffering=0) as pipe:
        child = os.fork()
        if not child:
            try:
                _child(numbers, case, outlet, stacks)
            except BaseException:  # of this file, not of a case
                os.write(outlet, (json.dumps({"broken": traceback.format_exc()}) + "\n").encode())
            os._exit(0)
        os.close(outlet)
        try:
            yield from _watched(child, pipe, numbers, stacks)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _watched(child: int, pipe: Any, numbers: Sequence[int], stacks: IO[bytes]) -> Iterator[Verdict]:
    """Verdicts from the pipe; the last one is ours if the child had to be killed, or died. stacks: where a stuck child
    writes its Python stack when it gets SIGUSR1."""
    rest, place, began, seen, still = b"", 0, None, 0.0, time.monotonic()
    while place < len(numbers):
        if select.select([pipe], [], [], 0.25)[0]:
            block = pipe.read(1 << 16)
            if not block:
                _, status = os.waitpid(child, 0)
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
                yield Verdict(numbers[place], f"BAD: the process died ({how})")
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                facts = json.loads(line)
                if "broken" in facts:
                    raise RuntimeError(facts["broken"])
                yield Verdict(**facts)
                place += 1
            began, seen, still = None, 0.0, time.monotonic()
            continue
        used, awake = _used(child)
        began = used if began is None else began
        if awake or used > seen:
            seen, still = used, time.monotonic()
        if used - began > 2 * SECONDS:
            yield Verdict(numbers[place], "BAD: too slow", f"killed after {used - began:.0f} s", _stack(child, stacks))
            return
        if time.monotonic() - still > STILL:
            yield Verdict(
                numbers[place], "BAD: hangs", f"all its processes sleep for {STILL:g} s", _stack(child, stacks)
            )
            return


def _used(leader: int) -> tuple[float, bool]:
    """CPU seconds of all processes of a group, and whether one of them is running."""
    total, awake = 0, False
    for entry in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            fields = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader:
                total, awake = total + sum(map(int, fields[11:15])), awake or fields[0] in "RD"
    return total / TICK, awake


def _stack(child: int, stacks: IO[bytes]) -> str:
    """Where a stuck process is."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGUSR1)
    time.sleep(0.3)
    stacks.seek(0)
    frames = [line.strip() for line in stacks.read().decode("utf-8", "replace").splitlines() if "File" in line]
    ours = [frame for frame in frames if _ours(frame)]
    return " < ".join([*frames[:1], *ours[:2]])


def _child(numbers: Sequence[int], case: Callable[[int], Case], outlet: int, stacks: IO[bytes]) -> None:
    os.setsid()
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=False)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    builtins.input = asked
    torch.set_num_threads(1)
    most = _status("VmData") + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    gc.freeze()  # what was imported need not be looked through after every case
    for number in numbers:
        os.write(outlet, (json.dumps(asdict(tried(number, case))) + "\n").encode())


def asked(*text: object) -> str:
    raise Asked(*text)


def tried(number: int, case: Callable[[int], Case]) -> Verdict:
    """One case in this process."""
    made = case(number)  # errors here are of the fuzzer
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, used = _status("VmRSS"), _own_seconds()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts again
    kind, message, where = judged(made)
    growth, seconds = _status("VmHWM") - before, _own_seconds() - used
    if not kind.startswith("BAD") and seconds > SECONDS:
        kind = "BAD: too slow"
    if not kind.startswith("BAD") and growth > MEMORY:
        kind = "BAD: too much memory"
    return Verdict(number, kind, message[:300], where, round(seconds, 2), growth)


def judged(case: Case) -> tuple[str, str, str]:
    """Kind, message and place of a case's result."""
    printed, refused = io.StringIO(), ""
    with redirect_stdout(printed), redirect_stderr(printed):
        for step in case.steps:
            try:
                step()
            except PaveError as error:
                before = printed.tell()
                remark(error)
                refused = refused or str(error)
                if not any(shown(name) in str(error) for name in case.names):
                    return "BAD: refused without a name", str(error), _place(error)
                if printed.tell() - before > TALK:
                    return f"BAD: a message of over {TALK:,} characters", str(error), _place(error)
            except Asked as error:
                return "BAD: a question is asked", str(error), _place(error)
            except (Exception, SystemExit) as error:
                return f"BAD: raw {type(error).__name__}", str(error), _place(error)
    text = printed.getvalue()
    if wild := {
        hex(ord(each)) for each in text if each in BIDI or (unicodedata.category(each) == "Cc" and each not in "\n\t\r")
    }:
        return "BAD: control characters on the terminal", f"{sorted(wild)[:5]}: {text[:200]!r}", ""
    if FORGED in text:
        return "BAD: a forged line on the terminal", text[max(0, text.index(FORGED) - 100) :][:200], ""
    return ("refused", refused, "") if refused else ("fine", "", "")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    names = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    ours = [name for name, frame in zip(names, frames, strict=True) if _ours(frame.filename)]
    return " < ".join(dict.fromkeys([*names[:-2:-1], *ours[:-4:-1]]))


def _ours(file: str) -> bool:
    return "site-packages" not in file and ("/pave/" in file or "/encoders/" in file)


def _status(key: str) -> int:
    """A size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def _own_seconds() -> float:
    """CPU seconds of this process and its children, dead and alive."""
    dead = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + dead.ru_utime + dead.ru_stime
    for child in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split():
        with suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / TICK
    return total
