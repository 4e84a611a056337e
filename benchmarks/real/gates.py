"""How well a gate sorts questions that nobody had seen when its lists and its threshold were chosen.

In: a base. Out: of messages written by somebody who knew none of the lists of training, how many the gate of a patch
that hears, and of one that also sees, leaves to the base or opens for. `unseen.txt`: a hundred that need no clip, sixty
about what is heard, forty about what is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pave
from pave.training.gate import fitted
from pave.training.general import built_in

HERE = Path(__file__).parent
PARTS = {"need no clip": slice(0, 100), "about sounds": slice(100, 160), "about pictures": slice(160, 200)}


def unseen(*parts: str) -> list[str]:
    """Messages of some parts of the list."""
    lines = (HERE / "unseen.txt").read_text("utf-8").splitlines()
    return [line for part in parts for line in lines[PARTS[part]]]


def measure(base: Path, question: str) -> dict[str, Any]:
    """The share of each part for which the gate opens; `question`: all that the data ask."""
    reads = pave.load(base).perception.reads_many
    found: dict[str, Any] = {}
    for name, hears in (("hears", True), ("hears and sees", False)):
        tensors, shares = fitted(reads, [question], built_in("kept"), hears)
        weight, bias = tensors["weight"].double(), tensors["bias"].double()
        opens = {part: (reads(unseen(part)).double() @ weight + bias > 0).double().mean().item() for part in PARTS}
        found[name] = {"opens": {part: round(share, 4) for part, share in opens.items()}, **shares}
    return found
