"""SQA3D: questions about ScanNet scenes from within, after a description of where one stands (Ma et al. 2023).

Two files: `v1_balanced_questions_*.json` has scene, situation and question, and `v1_balanced_sqa_annotations_*.json`
beside it the answers, by `question_id`; `maps: {answers: FILE}` names another. Both parts make the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.records import Record, whole_object
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of
from pave.text.shown import quoted

KINDS = ("what", "is", "how", "can", "which")  # first words of questions


class Sqa3d(Format):
    NEEDS = needs("scene_id situation question question_id")

    def __init__(self, options: DataSet) -> None:
        super().__init__(options)
        self.answers: dict[Any, Any] | None = None  # annotations by the ids of questions

    def samples(self, record: Record) -> Iterator[Sample]:
        value, annotation = record.value, self._annotation(record.value.get("question_id"))
        answers = annotation.get("answers")
        first = answers[0] if isinstance(answers, list) and answers else answers
        answer = text_of(first if isinstance(first, dict) else {"answer": first}, "answer")
        question = f"{text_of(value, 'situation')} {text_of(value, 'question')}"
        facts = others(annotation, "scene_id") | others(value, "scene_id", "situation", "question")
        kind = text_of(value, "question").split()[0].lower()  # the types of its paper's Table 3
        facts |= {"kind": kind if kind in KINDS else "other"}
        yield Sample(text_of(value, "scene_id"), [(question, answer)], facts=facts, ending="")

    def _annotation(self, number: Any) -> dict[str, Any]:
        if self.answers is None:
            file = self.options.maps.get("answers")
            file = file or self.options.file.with_name(self.options.file.name.replace("questions", "sqa_annotations"))
            if file == self.options.file or not file.is_file():
                raise self.missing(file, "its answers")
            found = whole_object(file, "the answers").get("annotations")
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                raise DataError(f"{file}: has no list 'annotations' of answers; give SQA3D's own file")
            self.answers = {str(each.get("question_id")): each for each in found}
        if str(number) not in self.answers:
            raise Broken(f"question_id {quoted(number)} is not one of the {len(self.answers):,} with answers")
        return self.answers[str(number)]


READER = Sqa3d
