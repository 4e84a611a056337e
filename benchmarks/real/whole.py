"""Files and folders that exist only when they are finished, so that a stopped run goes on where it was.

In: a place and a function that writes there. Out: the place. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def written(target: Path, write: Callable[[Path], object]) -> Path:
    """`target`, a file or folder, made by `write(place)` beside it and renamed when it is whole."""
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    write(part)
    os.replace(part, target)
    print(f"{target}: written in {time.perf_counter() - begin:.0f} s", flush=True)
    return target
