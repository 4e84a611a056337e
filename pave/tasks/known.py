"""The benchmarks that are known, by name.

In: a name. Out: a `Task`; or all of them as a table. There is no registry: a task is a file in pave/tasks/published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from pave.errors import UsageError, nearest
from pave.tasks.task import Task

FOLDER = Path(__file__).parent / "published"
HEAD = ("task", "questions", "senses", "metrics", "prompt", "licence", "data")


def names() -> list[str]:
    """The names of all tasks."""
    return sorted(file.stem.replace("_", "-") for file in FOLDER.glob("[!_]*.py"))


def task_of(name: str | Task) -> Task:
    """A task by its name."""
    if isinstance(name, Task):
        return name
    if name not in names():
        raise UsageError(f"no task {name!r}; {nearest(name, names())}")
    return replace(import_module(f"pave.tasks.published.{name.replace('-', '_')}").TASK, name=name)


def rows() -> Iterator[tuple[str, ...]]:
    """A table of all tasks: its head, then a row for each."""
    yield HEAD
    for name in names():
        task = task_of(name)
        count = "" if task.questions is None else f"{task.questions:,}"
        score = [f"{task.metrics[0]}, mean of {task.balanced}" if task.balanced else task.metrics[0], *task.metrics[1:]]
        prompt = task.prompt_of or "ours"
        yield name, count, task.senses or "none", ", ".join(score), prompt, task.licence, task.data


def lines() -> Iterator[str]:
    """The table as lines of text: for each task a line, and a second one with its licence and where it is to be had."""
    table = [(row[0], *row[1:5]) for row in rows()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for place, (cells, row) in enumerate(zip(table, rows(), strict=True)):
        yield "  ".join(
            cell.rjust(width) if i == 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        if place:
            task = task_of(row[0])
            yield f"    {task.what} ({task.split}); {task.licence}; {task.data}"
