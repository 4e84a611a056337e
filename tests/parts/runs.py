"""Training runs, begun and ended."""

from __future__ import annotations

from pave.recipe import Recipe
from pave.training.dataset import see
from pave.training.run import Run
from pave.training.setup import Setup


def quiet(step: int, steps: int, figures: dict[str, float]) -> None:
    """Nobody watches."""


def begun(recipe: Recipe) -> Run:
    """A run before its first step."""
    setup = Setup.of(recipe)
    return Run.of(setup, see(setup))


def trained(recipe: Recipe) -> Run:
    """A run after its last step."""
    run = begun(recipe)
    run.fit(quiet)
    return run
