"""Train on a Ray cluster: the same function in several processes, which Ray Train starts and connects.

In: a recipe, and what each process runs. Out: the result of the run. All machines need the recipe's files and its
output folder under the same paths. Knows nothing of training.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import torch

from pave.errors import PaveError, TrainingError
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe
from pave.training.checkpoint import refuse_a_file
from pave.training.ranks import Elsewhere
from pave.training.run import Result

Work = Callable[[Recipe, bool], Any]
PRINT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


def train_on_ray(
    work: Work, recipe: Recipe, resume: bool, workers: int | None, tell: Callable[[str], object]
) -> Result:
    """Run `work(recipe, resume)` in so many processes; None: one for each GPU of the cluster, or one. The cluster is
    that of the environment, or this machine. What the processes print on stderr is passed to `tell`, and an error of
    theirs is raised here."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.train import RunConfig, ScalingConfig  # pyright: ignore[reportMissingImports]
        from ray.train.torch import TorchTrainer  # pyright: ignore[reportMissingImports]
        from ray.util.queue import Queue  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TrainingError(f'--engine ray needs Ray Train ({error}); run pip install "pave[ray]"') from None
    # What Ray logs of its own is in its session folder; the lines of the first process come through a queue.
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    count = workers or gpus or 1
    if count > (gpus or cpus):
        held = f"{gpus} GPUs" if gpus else f"no GPU and {cpus} CPU cores"
        raise TrainingError(f"--workers {count}: the Ray cluster has {held}; ask for fewer")
    refuse_a_file(recipe.output)
    recipe.output.mkdir(parents=True, exist_ok=True)
    lines = Queue(actor_options={"num_cpus": 0})
    teller = Thread(target=_tell, args=(lines, tell))
    teller.start()
    # Ray's own record of the run has to be where all machines find it.
    with TemporaryDirectory(prefix=".ray-", dir=recipe.output.absolute()) as folder:
        trainer = TorchTrainer(
            partial(_begin, work, recipe, resume, os.getcwd(), lines),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=bool(gpus)),
            # else Ray Train replaces `print`, and every line comes twice
            run_config=RunConfig(name=recipe.name, storage_path=folder, worker_runtime_env={"env_vars": PRINT}),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _told(error) from error
        finally:
            lines.put(None)
            teller.join()
    metrics = json.loads((recipe.output / "metrics.json").read_text("utf-8"))
    return Result(recipe.output / WEIGHTS, metrics)


def _begin(work: Work, recipe: Recipe, resume: bool, folder: str, lines: Any) -> None:
    """What a process runs. Ray starts it in a folder of its own, and gives it a GPU if there are any."""
    from ray.train.torch import get_device  # pyright: ignore[reportMissingImports]

    os.chdir(folder)
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    with redirect_stderr(_Lines(lines)):
        work(recipe, resume)


class _Lines(StringIO):
    """Text that goes to a queue, line by line."""

    def __init__(self, lines: Any) -> None:
        super().__init__()
        self.lines, self.begun = lines, ""

    def write(self, text: str) -> int:
        *whole, self.begun = (self.begun + text).split("\n")
        for line in whole:
            self.lines.put(line)
        return len(text)


def _tell(lines: Any, tell: Callable[[str], object]) -> None:
    """Pass on the lines of a queue, until None comes."""
    while (line := lines.get()) is not None:
        tell(line)


def _told(error: Exception) -> Exception:
    """The error of the process that failed, or Ray's own."""
    failures = getattr(error, "worker_failures", {})
    ours = [each for _, each in sorted(failures.items()) if isinstance(each, PaveError)]
    return next((each for each in ours if not isinstance(each, Elsewhere)), next(iter(ours), error))
