"""WorldSense: questions that need sound and pictures together, with four options (Hong et al. 2025).

`{video: {"domain", "duration", ..., "task0": {"task_domain", "task_type", "question", "candidates": ["A. ...", ...],
"answer": "C"}, "task1": ...}}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pave.readers.choices import MultipleChoice
from pave.readers.records import Record
from pave.readers.sample import Broken, Sample, needs
from pave.text.shown import quoted

TASK = re.compile(r"task\d+")


class WorldSense(MultipleChoice):
    NEEDS = needs("domain task0")
    RIGHT, LABELLED = "letter", True

    def samples(self, record: Record) -> Iterator[Sample]:
        tasks = {key: each for key, each in record.value.items() if TASK.fullmatch(key)}
        if not tasks or not all(isinstance(each, dict) for each in tasks.values()):
            raise Broken(f"needs 'task0', a question, got {quoted(tasks)}")
        facts = {key: each for key, each in record.value.items() if key not in tasks}
        for each in tasks.values():
            yield self.sample({**facts, **each, "video": record.name})


READER = WorldSense
