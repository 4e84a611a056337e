"""A `pave curate` that is killed, and what a folder of instructions must then hold."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

from forked import Forked

from pave.data_sets import DataSet
from pave.readers.check import check


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def killed(process: Forked | Popen[bytes], when: Callable[[], bool]) -> None:
    """Kill a process (SIGKILL) once `when` says so."""
    while not when():
        if process.poll() is not None:
            raise AssertionError(f"it ended before it was killed, with {process.returncode}")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def flaws(folder: Path) -> list[str]:
    """What is wrong with a finished folder: entries lost, written twice, invalid, or counted wrongly."""
    kept, dropped = lines(folder / "instructions.jsonl"), lines(folder / "dropped.jsonl")
    report, found = json.loads((folder / "report.json").read_text()), []
    ids = Counter(each["id"] for each in kept + dropped)
    found += [f"{name} is written {count} times" for name, count in ids.items() if count > 1]
    numbers: dict[str, set[int]] = {}
    for name in ids:
        clip, _, number = name.rpartition("#")
        numbers.setdefault(clip, set()).add(int(number))
    found += [f"an entry of {clip} is lost" for clip, own in numbers.items() if own != {*range(1, len(own) + 1)}]
    found += [] if len(numbers) == report["complete"] else [f"{len(numbers)} clips of {report['complete']}"]
    checked = check(DataSet(file=folder / "instructions.jsonl"))
    found += [*checked.broken, *checked.missing] + ([] if checked.format == "llava" else [checked.format])
    told = {
        "kept": Counter(f"{each['channel']} {each['kind']}" for each in kept),
        "dropped": Counter(each["why"] for each in dropped if each["conversations"]),
        "lacking": Counter(each["why"] for each in dropped if not each["conversations"]),
    }
    found += [f"{name}: {told[name]} but told {report[name]}" for name in told if told[name] != report[name]]
    found += [] if checked.questions == report["questions"] else [f"{checked.questions} questions"]
    return found
