"""VATEX: ten English captions for each clip (Wang et al. 2019).

A list of `{"videoID", "enCap": [...], "chCap": [...]}`. The first caption is the one to learn; all are kept for
metrics. `question:` replaces ours; the Chinese captions are not used.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of, texts_of

QUESTION = "Describe the video in one sentence."


class Vatex(Format):
    NEEDS = needs("videoID enCap")

    def samples(self, record: Record) -> Iterator[Sample]:
        value, captions = record.value, texts_of(record.value, "enCap")
        facts = others(value, "enCap", "chCap") | {"answers": captions}
        turns = [(self.options.question or QUESTION, captions[0])]
        yield Sample(text_of(value, "videoID"), turns, facts=facts, ending=".mp4")


READER = Vatex
