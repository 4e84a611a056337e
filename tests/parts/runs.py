"""Whole training runs."""

from __future__ import annotations

from pave.recipe import Recipe
from pave.training.run import Run

KEEPING = ("train.keep=1", "train.gate=true")  # as by default: the workshop's recipe has neither


def quiet(step: int, steps: int, figures: dict[str, float]) -> None:
    """Progress that is not shown."""


def trained(recipe: Recipe) -> Run:
    """A run after its last step."""
    run = Run.begin(recipe)
    run.fit(quiet)
    return run
