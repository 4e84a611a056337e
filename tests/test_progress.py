"""Claims about progress: never silence in a log file, one line a stage at 80 columns, no figure that is told twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from places import ROOT

from pave.text import progress
from pave.text.progress import Shown, Stage, silent

WORK = """
import time
from pave.text.progress import Shown
with Shown() as shown, shown.stage("steps", 300, 200) as steps:
    for step in range(200, 300):
        steps.to(step + 1, note="loss 1.719  waiting 12%")
        time.sleep(0.005)
    shown.tell("a clip is unreadable")
    with shown.stage("held-out", 40) as part:
        part.to(40)
"""


Captured = pytest.CaptureFixture[str]


def test_a_log_gets_lines_while_nothing_is_done(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with Shown() as shown, shown.stage("steps", 4, 1) as steps:
        steps.to(2, note="loss 0.500")
        with shown.stage("held-out", 8):
            time.sleep(1)
    waiting = [line for line in capsys.readouterr().err.splitlines() if "held-out" in line]
    assert len(waiting) >= 3
    assert all(re.fullmatch(r"steps  2/4  .* left  loss 0\.500 › held-out  0/8", line) for line in waiting)


def test_a_stage_ends_with_one_line_unless_nothing_was_done(capsys: Captured) -> None:
    with Shown() as shown:
        with shown.stage("clips", 5, 5):
            pass
        with shown.stage("steps", 3) as steps:
            for step in range(3):
                steps.to(step + 1, note=f"loss {step}")
        shown.tell("two\nlines \x1b[31m")
    steps, told = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"steps  3/3  \S+/s  in 0:00  loss 2", steps) and told == r"two\nlines \x1b[31m"


def test_the_speed_does_not_count_what_was_done_before() -> None:
    stage = Stage("steps", 400, done=300, first=200, begun=time.monotonic() - 200)
    assert stage.facts() == ["300/400", "2.0 s each", "3:20 left"]
    found = Stage("clips", begun=time.monotonic() - 10)
    found.to(81, 100)  # 80 were cached
    assert found.facts()[:2] == ["81/100", "10 s each"]
    assert Stage("loading", begun=time.monotonic() - 3725).facts() == ["1:02:05"]


def test_silence_is_possible(capsys: Captured) -> None:
    with silent() as shown, shown.stage("steps", 2) as steps:
        steps.to(2)
        shown.tell("nothing")
    with Shown(bars=False) as shown, shown.stage("steps", 2) as steps:
        steps.to(2)
        shown.tell("lines alone")
    assert capsys.readouterr().err == "lines alone\n"


def test_a_stage_takes_one_line_of_80_columns_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    termios, fcntl, struct = (pytest.importorskip(name) for name in ("termios", "fcntl", "struct"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen([sys.executable, "-c", WORK], cwd=ROOT, env=environment, stderr=theirs):
        os.close(theirs)
        written = b""
        while True:
            try:
                written += (piece := os.read(ours, 1 << 16))
            except OSError:  # the other end is closed
                break
            if not piece:
                break
    os.close(ours)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "\n").split("\n")
    bars = [line.rstrip() for line in lines if line.startswith("steps")]
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"steps +━+ 300/300  \d+/s  in 0:0\d  loss 1\.719  waiting 12%", bars[-1]), bars[-1]
    assert "a clip is unreadable" in map(str.rstrip, lines)
    assert not lines[-2].startswith("held-out"), "the bar of a part goes"
