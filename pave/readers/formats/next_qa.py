"""NExT-QA: why, how, when and what in films of daily life, with five options (Xiao et al. 2021).

The rows of `test.csv` and `val.csv`: `video`, `question`, `answer` (the place of the right option), `qid`, `type`, `a0`
to `a4`. Questions have neither capital letters nor question marks. `kind` is the first letter of the type: C(ausal),
T(emporal), D(escriptive). Videos are found by their id, in any folder.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.choices import MultipleChoice
from pave.readers.records import Record
from pave.readers.sample import Sample, needs, others, text_of

OPTIONS = ("a0", "a1", "a2", "a3", "a4")


class NextQa(MultipleChoice):
    NEEDS = needs(f"video question answer {' '.join(OPTIONS)}")
    RIGHT = "place"

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        texts = [text_of(value, key).strip() for key in OPTIONS]
        kind = {"kind": str(value["type"])[:1]} if value.get("type") else {}
        yield self.sample({**others(value, *OPTIONS), "candidates": texts, **kind})


READER = NextQa
