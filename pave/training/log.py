"""The record of a run: a line of JSON for each step, the figures of every look at held-out questions, trackers by name.

In: figures of steps. Out: `log.jsonl` in the output folder, always; `curves.png` at the end; and what TensorBoard,
trackio or wandb show, through the trackers of `accelerate`. A resumed run goes on with the record as its checkpoint
left it. Knows nothing of what the figures mean.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pave.errors import FileError, TrainingError
from pave.files.atomic import append, reading, write_text
from pave.recipe import Recipe
from pave.text.values import json_value
from pave.training import curves
from pave.training.checkpoint import leaves

NAME = "log.jsonl"
FOLDER = "tensorboard"  # of TensorBoard's files, in the output folder
DIGITS = 6  # of a figure
Line = dict[str, float]  # `step` and figures by name


def refuse_missing(trackers: Sequence[str]) -> None:
    """TrainingError if the package of a tracker is not installed."""
    if lacking := [name for name in trackers if find_spec(name) is None]:
        names = " ".join(lacking)
        raise TrainingError(f"train.trackers={names}: not installed; run pip install {names}, or remove the name")


class Log:
    """The record of one run. `steps`: so many are done, and what is recorded of later ones is dropped."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.file, self.title = recipe.output / NAME, recipe.name
        self.lines: list[Line] = []
        self._broken = False  # whether the file could not be written
        before = list(_lines(self.file))
        # The figures of the finished patch have a line without a loss: they are measured again.
        self.lines += [line for line in before if line.get("step", steps + 1) <= steps and "loss" in line]
        if self.lines != before:
            self._write("".join(map(_text, self.lines)), anew=True)
        self.trackers = _trackers(recipe, steps)

    @property
    def looks(self) -> list[Line]:
        """What was measured besides the steps themselves: at every look, and of the finished patch."""
        return [line for line in self.lines if "retention" in line]

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Record a step, or what is measured after it."""
        line = {"step": step, **{name: float(f"{value:.{DIGITS}g}") for name, value in figures.items()}}
        self.lines.append(line)
        self._write(_text(line))
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Nothing more will come."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []

    def draw(self, losses: Sequence[float], base: float | None) -> None:
        """Draw the curves, as `curves.draw`. The run is done: that a picture cannot be drawn does not matter to it."""
        try:
            curves.draw(self.file.with_name(curves.NAME), self.title, losses, self.looks, base)
        except FileError as error:
            warnings.warn(str(error), stacklevel=2)

    def _write(self, text: str, anew: bool = False) -> None:
        """A run does not end because its record cannot be written: the patch is what counts."""
        try:
            if anew:
                write_text(self.file, text)
            else:
                append(self.file, text.encode())
        except FileError as error:
            if not self._broken:
                warnings.warn(f"{error}; the run goes on, its record has a gap", stacklevel=4)
            self._broken = True


def _text(line: Line) -> str:
    return f"{json.dumps(line)}\n"


def _lines(file: Path) -> Iterable[Line]:
    """The whole lines of a record; a killed process may leave half a line."""
    with suppress(FileError), reading(file) as content:
        for text in content:
            with suppress(ValueError):
                line = json_value(text)
                if isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values()):
                    yield line


def _trackers(recipe: Recipe, steps: int) -> list[Any]:
    """Trackers that have been told the recipe."""
    if not recipe.train.trackers:
        return []
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # which they ask whether they are on the main process
    found = []
    for name in recipe.train.trackers:
        # What is recorded of later steps than the checkpoint's is not shown.
        own = {"logging_dir": recipe.output, "purge_step": steps + 1} if name == FOLDER else {"name": recipe.name}
        tracker: Any = LOGGER_TYPE_TO_CLASS[name](FOLDER if name == FOLDER else "pave", **own)
        tracker.start()
        facts = leaves(recipe.model_dump(mode="json"))
        tracker.store_init_configuration({key: _plain(value) for key, value in facts})
        found.append(tracker)
    return found


def _plain(value: Any) -> bool | int | float | str:
    """A value of a recipe as trackers take it."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
