"""EgoSchema: questions about three minutes of Ego4D, with five options (Mangalam et al. 2023).

`questions.json` has `{"q_uid", "question", "option 0", ..., "option 4"}`, and `subset_answers.json` beside it the
places of the right options of 500 of them, by `q_uid`; `maps: {answers: FILE}` names another. The others have no
published answer: they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pave.data_sets import DataSet
from pave.readers.choices import MultipleChoice
from pave.readers.records import Record, whole_object
from pave.readers.sample import Sample, others, text_of

OPTIONS = tuple(f"option {place}" for place in range(5))


class EgoSchema(MultipleChoice):
    NEEDS = (frozenset(("q_uid", "question", *OPTIONS)),)
    VIDEO, ANSWER, RIGHT = "q_uid", "right", "place"

    def __init__(self, options: DataSet) -> None:
        super().__init__(options)
        self.file = options.maps.get("answers") or options.file.with_name("subset_answers.json")

    @cached_property
    def answers(self) -> dict[str, Any]:
        """Places of right options by the ids of questions."""
        if not self.file.is_file():
            raise self.missing(self.file, "its answers")
        return whole_object(self.file, "the answers")

    def samples(self, record: Record) -> Iterator[Sample]:
        number = text_of(record.value, "q_uid")
        if number in self.answers:
            five = {"candidates": [text_of(record.value, key) for key in OPTIONS]}
            yield self.sample({**others(record.value, *OPTIONS), **five, "right": self.answers[number]})


READER = EgoSchema
