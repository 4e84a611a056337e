"""What keeping the base costs: seconds of a step with its questions and without, by turns in one process.

In: two recipes that differ in `train.keep`. Out: seconds of a core in a step of each, and in writing the base's own
answers, which a run does once.
"""

from __future__ import annotations

import time
from statistics import mean
from typing import Any

from pave.recipe import Recipe
from pave.training.keep import BLOCK
from pave.training.run import Run

TURN = 2  # steps of each kind in a round


def measure(asking: Recipe, alone: Recipe, rounds: int) -> dict[str, Any]:
    """Seconds of a core, of all threads, in some rounds after a first one, which is not counted."""
    runs = [Run.begin(recipe) for recipe in (asking, alone)]
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for run, seconds in zip(runs, spent, strict=True):
            begin = time.process_time()
            for step in range(turn * TURN, (turn + 1) * TURN):
                run.step(step)
            seconds.append((time.process_time() - begin) / TURN)
    first, (with_it, without) = spent[0][0] - spent[1][0], (mean(seconds[1:]) for seconds in spent)
    return {
        "visual_tokens": runs[0].dataset.train[0].stored.visual,
        "steps": rounds * TURN,
        "core_seconds_of_a_step": round(with_it, 3),
        "without": round(without, 3),
        "share": round(1 - without / with_it, 3),
        f"core_seconds_of_{BLOCK}_answers": round((first - (with_it - without)) * TURN, 1),
    }
