"""Results of a benchmark as a JSON file: each run is saved when it ends, so that a study can continue after a stop.

In: a key and figures. Out: `benchmarks/results/NAME.json` with versions and machine.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "av", "numpy")


class Study:
    """Runs of one benchmark, by key."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.json"
        self.runs: dict[str, Any] = json.loads(self.path.read_text())["runs"] if self.path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.runs

    def add(self, key: str, figures: dict[str, Any]) -> None:
        """Add one run; it is on disk when this returns."""
        self.runs[key] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"machine": machine(), "runs": self.runs}, indent=1) + "\n")
        os.replace(part, self.path)


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures were measured with."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
