"""ScanQA: questions about ScanNet scenes (Azuma et al. 2022).

`{"scene_id", "question_id", "question", "answers": [...]}`; the PAVE authors' copies for evaluation have `text` in
place of `question`. The first answer is the one to learn; all are kept for metrics. The clip is the folder of the
scene, see pave/media/folder.py; if it has depth and poses, it is the signal `depth`, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of, texts_of


class Scanqa(Format):
    NEEDS = needs("scene_id question question_id answers", "scene_id text question_id answers")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        question = text_of(value, "text" if "text" in value else "question")
        turns = [(question, texts_of(value, "answers")[0])]
        yield Sample(
            text_of(value, "scene_id"), turns, facts=others(value, "scene_id", "video", "question", "text"), ending=""
        )


READER = Scanqa
