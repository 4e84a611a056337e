"""VALOR-32K: a caption of what is seen and heard in each clip (Chen et al. 2023).

A list of `{"video_id", "desc"}`. `question:` replaces ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of

QUESTION = "Describe in one sentence what is seen and heard."


class Valor(Format):
    NEEDS = needs("video_id desc")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        turns = [(self.options.question or QUESTION, text_of(value, "desc"))]
        yield Sample(text_of(value, "video_id"), turns, facts=others(value, "desc"), ending=".mp4")


READER = Valor
