"""The control `capacity` of a certificate: a patch of the same recipe that had no signal to learn from.

In: a recipe. Out: a patch trained as the recipe says, on the same clips and questions, but every clip with the signals
of another one. What it gains it owes to frames, questions and its own parameters. Knows nothing of certificates.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pave.ambient import neutral
from pave.errors import DataError
from pave.patch.file import Patch
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe
from pave.text.shown import counted
from pave.training.checkpoint import owned
from pave.training.dataset import shuffled
from pave.training.run import Run


@neutral()
@torch.enable_grad()
def untaught(recipe: Recipe, folder: Path) -> Patch:
    """Train a recipe with the signals of other clips, in a folder, from which it goes on. DataError if fewer than two
    clips have signals. A patch that is there is taken as it is."""
    if (folder / WEIGHTS).is_file():
        return Patch.load(folder)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"output": folder})})
    with owned(folder, True), torch.random.fork_rng(range(torch.cuda.device_count())):
        run = Run.begin(recipe)
        clips = shuffled(run.dataset.train, run.acts, recipe.train.seed)
        if not clips:
            raise DataError(
                f"{counted(len(run.dataset.train), 'clip')} for training, and no two have signals; add clips"
            )
        run.dataset = replace(run.dataset, train=clips)
        run.resume()
        run.fit(lambda step, steps, figures: None)
        patch = run.trainee.attached.export()
        patch.save(folder / WEIGHTS)
    return patch


def unlike(one: Patch, other: Patch) -> str:
    """How the shapes of two patches differ; empty if they do not, or if their values are the same."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in patch.tensors.items()} for patch in (one, other)]
    if shapes[0] != shapes[1]:
        sizes = [f"{sum(tensor.numel() for tensor in patch.tensors.values()):,}" for patch in (one, other)]
        return f"it has {sizes[1]} parameters in {len(shapes[1])} tensors, not {sizes[0]} in {len(shapes[0])}"
    if one.config.senses != other.config.senses:
        return "it reads other senses"
    return "it is the same patch" if one.sha256 == other.sha256 else ""
