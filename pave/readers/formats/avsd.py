"""AVSD, audio-visual scene-aware dialogues about Charades videos (DSTC7).

Both of its layouts: `{"dialogs": [{"image_id", "dialog": [{"question", "answer"}, ...]}]}` of the challenge, and
`{video: {"data": [{"question", "answer"}, ...]}}`. A dialogue has ten questions about one video. As the PAVE authors
train on it (tools/audio/avsd/convert_annotation_to_training_format.py), it is cut into two of five turns; as they
evaluate, `turns: last`, the last question is asked after nine turns with their true answers.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of
from pave.text.shown import quoted

UNDISCLOSED = "__UNDISCLOSED__"  # the last answers of the challenge's test file


class Avsd(Format):
    NEEDS = needs("image_id dialog", "data")
    TURNS, DIALOGUE = "dialogue", 5

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        video = record.name or text_of(value, "image_id")
        key = "dialog" if "dialog" in value else "data"
        turns = value.get(key)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise Broken(f"needs {key!r}, a list of {{'question': ..., 'answer': ...}}, got {quoted(turns)}")
        if any(turn.get("answer") == UNDISCLOSED for turn in turns):
            raise Broken(f"an answer is {UNDISCLOSED}; take the copy with answers")
        pairs = [(text_of(turn, "question"), text_of(turn, "answer")) for turn in turns]
        yield Sample(video, pairs, facts=others(value, "image_id", key), ending=".mp4")


READER = Avsd
