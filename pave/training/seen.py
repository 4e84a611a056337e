"""What a person sees of the steps of a run: the last loss and the share of waiting, and a table of the looks.

In: figures of steps. Out: lines and a bar. A figure is shown when it has been measured, and never again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pave.text.progress import Shown, Stage

RECENT = 50  # steps over which waiting is averaged
AGAIN = 20  # lines of the table until its head is repeated
# Figures of a look, and the heads of their columns.
COLUMNS = {
    "loss": "loss",
    "held-out": "held-out",
    "held-out loss": "loss",
    "shuffled": "shuffled",
    "shuffled loss": "loss",
    "retention": "retention",
}


@dataclass
class Steps:
    """Shows the steps of a run as they are done."""

    shown: Shown
    stage: Stage
    told: int = 0  # lines of the table
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __call__(self, step: int, steps: int, figures: dict[str, float]) -> None:
        self.recent.append((figures["seconds"], figures["waited"]))
        seconds, waited = map(sum, zip(*self.recent, strict=True))
        self.stage.to(step, steps, f"loss {figures['loss']:.3f}  waiting {waited / seconds:.0%}")
        if "retention" in figures:
            columns = [name for name in COLUMNS if name in figures]
            if self.told % AGAIN == 0:
                self.shown.tell("  ".join([f"{'step':>11}", *(f"{COLUMNS[name]:>8}" for name in columns)]))
            self.told += 1
            self.shown.tell("  ".join([f"{f'{step}/{steps}':>11}", *(f"{figures[name]:8.3f}" for name in columns)]))
