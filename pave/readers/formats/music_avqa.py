"""MUSIC-AVQA: questions about musical performances (Li et al. 2022), templates to fill, and an answer named `anser`.

`{"video_id", "question_content": "Is the <Object> ...?", "templ_values": "[\\"flute\\"]", "anser", "type": "[...]"}`;
`templ_values` and `type` are lists written as text. Each `<...>` takes the next value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of, written_list
from pave.text.shown import counted, quoted

SLOT = re.compile("<[^<>]+>")


class MusicAvqa(Format):
    NEEDS = needs("video_id question_content anser", "video_id question_content templ_values")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        question, filling = text_of(value, "question_content"), written_list(value, "templ_values")
        slots = SLOT.findall(question)
        if slots and len(slots) != len(filling):  # the authors' cleaned files have filled questions beside the values
            cause = f"{counted(len(slots), 'slot')} in {quoted(question)}"
            raise Broken(f"{cause}, but {counted(len(filling), 'value')} in 'templ_values': {quoted(filling)}")
        values = iter(filling)
        question = SLOT.sub(lambda slot: next(values), question)
        kind = written_list(value, "type")  # such as Audio-Visual, Counting
        facts = others(value, "video_id", "question_content", "anser") | {"type": " ".join(kind)}
        facts |= {"modality": kind[0]} if kind else {}
        yield Sample(text_of(value, "video_id"), [(question, text_of(value, "anser"))], facts=facts, ending=".mp4")


READER = MusicAvqa
