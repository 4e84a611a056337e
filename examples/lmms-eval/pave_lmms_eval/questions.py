"""Documents of the five benchmarks: what the publishers' files ask, as PAVE reads, asks and measures it.

In: a task's name. Out: what lmms-eval's YAML files name as functions. Questions come from `pave.tasks`, scores from
`pave.evaluation`; nothing of a benchmark is repeated here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from pave.data import Example
from pave.errors import UsageError
from pave.evaluation.metrics.known import METRICS, measure
from pave.evaluation.metrics.measured import Measured
from pave.evaluation.result import references_of
from pave.tasks.known import task_of

Doc = Mapping[str, Any]
DATA = "PAVE_DATA"  # environment variable: the folder with a folder of publishers' files for each task, by its name


def questions(named: Dataset) -> Dataset:
    """All questions of the task that the only row of `named` names. DataError for files that are missing or broken."""
    task = task_of(named[0]["task"])
    if DATA not in os.environ:
        raise UsageError(f"no {DATA} is set; set it to a folder that has {task.name}'s files in {task.name}/")
    examples = task.read(Path(os.environ[DATA]).expanduser().resolve() / task.name)
    if short := task.missing(len(examples)):
        logging.getLogger(__name__).warning(short)
    return Dataset.from_list([_doc(task.name, example) for example in examples])


def _doc(task: str, example: Example) -> dict[str, Any]:
    return {
        "task": task,
        "clip": str(example.video),
        "question": example.question,
        "history": [list(turn) for turn in example.history],
        "answer": example.answer,
        "references": references_of(example),
        "pave": json.dumps({**dict(example.source.signals), **example.source.tracks}),
        "facts": json.dumps(example.facts),
    }


def clip(doc: Doc) -> list[str]:
    return [doc["clip"]]


def text(doc: Doc) -> str:
    """The question behind its dialogue, for models that take no messages."""
    return "\n".join([*(part for turn in doc["history"] for part in turn), doc["question"]])


def messages(doc: Doc) -> list[dict[str, Any]]:
    """The dialogue as turns; the clip stands before the first question."""
    said = [*(part for turn in doc["history"] for part in turn), doc["question"]]
    content = [[{"type": "text", "text": each}] for each in said]
    content[0].insert(0, {"type": "video", "url": doc["clip"]})
    return [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(content)]


def results(doc: Doc, answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each metric of the task needs of one answer."""
    return {name: {"answer": answers[0], "references": doc["references"]} for name in task_of(doc["task"]).metrics}


def score(metric: str, found: Sequence[Mapping[str, Any]]) -> float | str:
    """The value of a metric; a text says why there is none."""
    measured = measure(metric, [each["answer"] for each in found], [each["references"] for each in found])
    return measured.value if isinstance(measured, Measured) else f"n/a: {measured}"


def __getattr__(name: str) -> Any:
    """`score` of a metric by its name, with _ for -: `!function pave_lmms_eval.questions.rouge_l`."""
    if (metric := name.replace("_", "-")) in METRICS:
        return partial(score, metric)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
