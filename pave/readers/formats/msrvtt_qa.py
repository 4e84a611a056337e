"""MSRVTT-QA: questions made from the captions of MSR-VTT (Xu et al. 2017).

A list of `{"id", "video_id": number, "category_id", "question", "answer"}`; the clip is `video<number>.mp4`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of


class MsrvttQa(Format):
    NEEDS = needs("id video_id category_id question answer")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        turns, facts = [(text_of(value, "question"), text_of(value, "answer"))], others(value, "question", "answer")
        yield Sample(f"video{text_of(value, 'video_id')}", turns, facts=facts, ending=".mp4")


READER = MsrvttQa
