"""How much of a training step is spent outside of the model, and how much of what the model reads is padding?

    python benchmarks/step_time.py            # writes benchmarks/results/step_time.json; a minute of a core
    python benchmarks/step_time.py --small    # a few clips and steps; writes nothing

Steps of `audio-playroom` as the recipe has it, from cached features: seconds of a core, of all threads, in a step;
those in the forward and the backward pass; and the rest: reading features, packing questions, the optimiser. Target:
the rest below 10 %.

Padding is the share of places in the step's batches that hold no token, with and without `train.micro_batch`: of these
steps, with clips of one length and one to five questions, and of steps of clips that have 200 to 3,200 tokens. Target:
below 5 % with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from study import Study

from pave.model.patched import PatchedModel
from pave.recipe import TrainConfig, read_recipe
from pave.training.plan import divided
from pave.training.run import Run

ROOT = Path(__file__).parents[1]
CLIPS, STEPS, WARM = 48, 10, 2
RAGGED, BATCH, PART = (200, 3_200), 64, 8_000  # tokens of a clip; clips of a step; tokens of a part


@contextmanager
def inside(*places: tuple[type, str]) -> Iterator[list[float]]:
    """Within the block, seconds of a core of each call of some functions."""
    with ExitStack() as stack:
        spent: list[float] = []
        for place, name in places:
            call = getattr(place, name)
            setattr(place, name, _timed(call, spent))
            stack.callback(setattr, place, name, call)
        yield spent


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*values: Any, **options: Any) -> Any:
        begin = time.process_time()
        try:
            return call(*values, **options)
        finally:
            spent.append(time.process_time() - begin)

    return timed


def padding(steps: Sequence[Sequence[int]], options: TrainConfig) -> float:
    """The share of places without a token, of steps whose rows have so many."""
    parts = [[step[row] for row in part] for step in steps for part in divided(step, options)]
    return 1 - sum(map(sum, parts)) / sum(len(part) * max(part) for part in parts)


def playroom(clips: int, steps: int) -> dict[str, Any]:
    """Figures of the steps of a run."""
    with TemporaryDirectory() as folder:
        words = [f"train.output={folder}", f"data.playroom.clips={clips}", f"train.steps={steps}"]
        run = Run.begin(read_recipe(ROOT / "patches" / "audio-playroom", words))
        batches = [[clip.length for clip in run.clips_of(step)] for step in range(steps)]
        shares, each = [], []
        with inside((PatchedModel, "forward"), (torch.Tensor, "backward")) as spent:
            for step in range(steps):
                spent.clear()
                begin = time.process_time()
                run.step(step)
                each.append(time.process_time() - begin)
                shares.append(1 - sum(spent) / each[-1])
        options, longest = run.setup.recipe.train, max(map(max, batches))
    parts = options.model_copy(update={"micro_batch": 4 * longest})
    return {
        "clips of a step": options.batch,
        "step, s of a core": round(median(each[WARM:]), 3),
        "outside of the model, %": round(100 * median(shares[WARM:]), 2),
        "padding, %": round(100 * padding(batches, options), 2),
        "padding with micro_batch, %": round(100 * padding(batches, parts), 2),
    }


def ragged(steps: int) -> dict[str, Any]:
    """Padding of steps whose clips have any length."""
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(*RAGGED, (BATCH,), generator=draw).tolist() for _ in range(steps)]
    whole, parts = TrainConfig(batch=BATCH), TrainConfig(batch=BATCH, micro_batch=PART)
    return {
        "padding, %": round(100 * padding(batches, whole), 2),
        "padding with micro_batch, %": round(100 * padding(batches, parts), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few clips and steps; writes no result")
    small = parser.parse_args().small
    study = Study("step_time")
    clips, steps = (8, 4) if small else (CLIPS, STEPS)
    for name, measure in (("ragged", lambda: ragged(100)), ("playroom", lambda: playroom(clips, steps))):
        if small or name not in study:
            figures = measure()
            print(name, json.dumps(figures), flush=True)
            if not small:
                study.add(name, figures)


if __name__ == "__main__":
    main()
