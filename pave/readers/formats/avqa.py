"""AVQA: questions about everyday sounds and scenes, with four choices (Yang et al. 2022), on VGGSound videos.

`{"video_name", "question_text", "multi_choice": [...], "answer": index, "question_relation", "question_type"}`. The
question lists the choices; the answer is the text of the right one.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of, texts_of
from pave.readers.wording import LISTED, Choices
from pave.text.shown import quoted


class Avqa(Format):
    NEEDS = needs("video_name question_text multi_choice")
    WORDING = LISTED

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        choices, right = texts_of(value, "multi_choice"), value.get("answer")
        if type(right) is not int or not 0 <= right < len(choices):
            raise Broken(f"'answer' must be the place of a choice, 0 to {len(choices) - 1}, got {quoted(right)}")
        turns, facts = [(text_of(value, "question_text"), choices[right])], others(value, "video_name")
        yield Sample(text_of(value, "video_name"), turns, facts=facts, ending=".mp4", choices=Choices(choices, right))


READER = Avqa
