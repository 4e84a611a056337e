"""MLVU: questions about films of minutes to hours, with four options (Zhou et al. 2024).

Lists of `{"video", "duration", "question", "candidates": [...], "answer": text of the right one, "question_type"}`, one
file for each of seven types. In some records `candidates` is written as a text; in two the answer is no option. One is
void, without question and options: it is left out, as in the 2,174 questions that the field uses.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.choices import MultipleChoice
from pave.readers.records import Record
from pave.readers.sample import Sample, needs


class Mlvu(MultipleChoice):
    NEEDS = needs("video question candidates answer duration question_type")
    SLIPS = True

    def samples(self, record: Record) -> Iterator[Sample]:
        options = record.value.get("candidates")
        void = isinstance(options, list) and not any(options) and record.value.get("question") == ""
        yield from () if void else super().samples(record)


READER = Mlvu
