"""AVHBench: does a model see what it only hears, or hear what it only sees? (Sung-Bin et al. 2025).

Lists of `{"video_id", "task", "text", "label"}`, of which `task` is a hallucination of sound or of pictures (the label
is Yes or No), AV Matching, or AV Captioning (the label is the caption).
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of


class AvhBench(Format):
    NEEDS = needs("video_id task text label")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        turns, facts = [(text_of(value, "text"), text_of(value, "label"))], others(value, "text", "label")
        yield Sample(text_of(value, "video_id"), turns, facts=facts, ending=".mp4")


READER = AvhBench
