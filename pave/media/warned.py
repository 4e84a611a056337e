"""Warnings of many clips as a few lines.

In: the clips, and what reading each of them found wrong. Out: one line for each of the first ones, and the number of
the others. Knows nothing of files.
"""

from __future__ import annotations

import os
import sys
import warnings as python
from collections.abc import Mapping, Sequence

from pave.errors import MediaWarning
from pave.text.shown import counted

OURS = ("pave.", "contextlib", "torch.")  # modules between a warning and the user's line
FEW = 5  # clips that are named; records of a run list all


def told(warnings: Mapping[str, Sequence[str]], most: int = FEW) -> list[str]:
    """Lines such as "half.mp4: cut short: 1.25 s of the announced 3.80 s are present", by the path of the clip."""
    some = [(path, texts) for path, texts in warnings.items() if texts]
    lines = [f"{os.path.basename(path)}: {'; '.join(texts)}" for path, texts in some[:most]]
    return lines if len(some) <= most else [*lines, f"and {counted(len(some) - most, 'more clip')} with warnings"]


def warn(lines: Sequence[str], kind: type[Warning] = MediaWarning) -> None:
    """Warn of these lines, at the line of the user that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(OURS):
        level, frame = level + 1, frame.f_back
    if lines:
        python.warn("\n".join(lines), kind, stacklevel=level)
