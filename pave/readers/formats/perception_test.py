"""Perception Test: questions that test memory, physics and more, with three options (Patraucean et al. 2023).

`{video: {"metadata": {...}, "mc_question": [{"id", "question", "options": [...], "answer_id": place of the right one,
"area", "reasoning", "tag"}, ...]}}`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.choices import MultipleChoice
from pave.readers.records import Record
from pave.readers.sample import Broken, Sample, needs
from pave.text.shown import quoted


class PerceptionTest(MultipleChoice):
    NEEDS = needs("metadata mc_question")
    OPTIONS, ANSWER, RIGHT = "options", "answer_id", "place"

    def samples(self, record: Record) -> Iterator[Sample]:
        asked = record.value.get("mc_question")
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            raise Broken(f"needs 'mc_question', a list of questions, got {quoted(asked)}")
        for each in asked:
            yield self.sample({**each, "video": record.name})


READER = PerceptionTest
