"""Video-ChatGPT's benchmark: questions about films of ActivityNet, and long answers (Maaz et al. 2024).

Lists of `{"video_name", "Q", "A"}`, or `{"video_name", "Q1", "Q2", "A"}`: two ways to ask the same. Videos may be named
`v_<id>`, as their names are.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Format, Sample, needs, others, text_of

PAIR = ("Q1", "Q2")


class VideoChatGpt(Format):
    NEEDS = needs("video_name Q A", "video_name Q1 Q2 A")

    def samples(self, record: Record) -> Iterator[Sample]:
        value, answer = record.value, text_of(record.value, "A")
        turns = [(text_of(value, key), answer) for key in (PAIR if "Q1" in value else ("Q",))]
        yield Sample(text_of(value, "video_name"), turns, facts=others(value, "Q", *PAIR, "A"), ending=".mp4")


READER = VideoChatGpt
