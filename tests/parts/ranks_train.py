"""One of several processes that train together, several recipes one after the other.

Out: a line of JSON on stdout: of each run the bytes of the decoder's layers that this process has stored, and the
error, if it has failed; of `turn`, when the process had its turn of working alone. A run named `stopped` fails at step
3 and is resumed; in one named `killed`, process 1 kills itself at step 3; those named `long` have the masks of long
rows.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from torch.distributed.tensor import DTensor

from pave.errors import PaveError
from pave.packing import mask
from pave.recipe import Recipe, read_recipe
from pave.training.checkpoint import owned
from pave.training.ranks import Ranks, joined
from pave.training.run import Run

DENSE = mask.DENSE


def stored(run: Run) -> int:
    """Bytes of the decoder's layers in this process."""
    parts = dict(run.setup.model.host.language_model.named_parameters())
    layers = [each for name, each in parts.items() if name.startswith("layers.")]
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in layers)


def trained(name: str, recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    def progress(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 3 and name == "killed" and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and name == "stopped":
            raise InterruptedError

    mask.DENSE = 0 if name.startswith("long") else DENSE
    try:
        with owned(recipe.output, False, ranks):
            run = Run.begin(recipe, ranks=ranks)
            run.complete(False, progress)
    except InterruptedError:
        with owned(recipe.output, True, ranks):
            run = Run.begin(recipe, ranks=ranks)
            run.complete(True, lambda *_: None)
    except PaveError as error:
        if name == "killed":  # there is nobody to go on with
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    return {"stored": stored(run)}


def turn() -> tuple[float, float]:
    begin = time.monotonic()
    time.sleep(0.2)
    return begin, time.monotonic()


def main(workshop: str, runs: dict[str, list[str]]) -> None:
    with joined() as ranks:
        found: dict[str, Any] = {
            name: trained(name, read_recipe(workshop, words), ranks) for name, words in runs.items()
        }
        found["turn"] = ranks.one_by_one(turn)
        print(json.dumps({"rank": ranks.rank, "runs": found}) + "\n", end="", flush=True)
