"""ActivityNet-QA: questions about films of three minutes (Yu et al. 2019).

Two lists: `test_q.json` has `{"video_name", "question", "question_id"}`, and `test_a.json` beside it `{"answer",
"type", "question_id"}`; `maps: {answers: FILE}` names another. Questions have neither capital letters nor question
marks. Videos may be named `v_<video_name>`. `kind` says what the number of the type means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.records import Record, json_records
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of
from pave.text.shown import quoted

KINDS = ("motion", "spatial relation", "temporal relation", "yes or no", "colour", "object", "location", "number")
OTHER = "other"


class ActivityNetQa(Format):
    NEEDS = needs("video_name question question_id")

    def __init__(self, options: DataSet) -> None:
        super().__init__(options)
        self.file = options.maps.get("answers") or options.file.with_name(options.file.name.replace("_q.", "_a."))

    @cached_property
    def answers(self) -> dict[str, Mapping[str, Any]]:
        """Answers by the ids of questions."""
        if self.file == self.options.file or not self.file.is_file():
            raise self.missing(self.file, "its answers")
        records = list(json_records(self.file))
        if flawed := next((each for each in records if each.flaw), None):
            raise DataError(f"{self.file}, {flawed.place}: {flawed.flaw}; give ActivityNet-QA's own file")
        return {str(each.value.get("question_id")): each.value for each in records}

    def samples(self, record: Record) -> Iterator[Sample]:
        value, number = record.value, text_of(record.value, "question_id")
        if number not in self.answers:
            raise Broken(f"question_id {quoted(number)} is not one of the {len(self.answers):,} with answers")
        answer, kind = self.answers[number], str(self.answers[number].get("type"))
        kind = KINDS[int(kind)] if kind.isdecimal() and int(kind) < len(KINDS) else OTHER
        facts = others(value, "video_name", "question") | {"kind": kind}
        turns = [(text_of(value, "question"), text_of(answer, "answer"))]
        yield Sample(f"v_{text_of(value, 'video_name')}", turns, facts=facts, ending=".mp4")


READER = ActivityNetQa
