"""Columns: one question a row, with columns `video`, `question` and `answer`, in a table or in JSON.

Other names of columns that trainers use are known (`query`, `response`, `instruction`, `output`), and `columns:` names
your own. `audio` and columns such as `signals.imu` name files of signals; an empty cell names none. All others are
facts of the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, one_medium, others, text_of
from pave.text.shown import quoted

MEDIA = ("video", "videos", "image", "images", "path", "file_name")
QUESTIONS, ANSWERS = ("question", "query", "instruction", "prompt"), ("answer", "response", "output", "caption")
SIGNAL = "signals."


class Table(Format):
    NEEDS = needs(*(f"{medium} {answer}" for medium in MEDIA for answer in ANSWERS))

    def samples(self, record: Record) -> Iterator[Sample]:
        value = dict(record.value)
        video, medium = one_medium(value, *(key for key in MEDIA if value.get(key)))
        asked = next((key for key in QUESTIONS if value.get(key)), "")
        if not asked and self.options.question is None:
            has = f"has the keys {quoted(sorted(value))}"
            raise Broken(f"needs a column 'question', {has}; name yours in columns:, or one for all in question:")
        answered = next((key for key in ANSWERS if key in value), "answer")
        question = text_of(value, asked) if asked else self.options.question
        if value.get("input"):  # Alpaca's: what the instruction is about
            question = f"{question}\n{text_of(value, 'input')}"
        signals = {key.removeprefix(SIGNAL): each for key, each in value.items() if key.startswith(SIGNAL) and each}
        if value.get("audio"):
            signals["audio"] = value["audio"]
        used = (medium, asked, answered, "input", "audio", *(SIGNAL + name for name in signals))
        yield Sample(video, [(str(question), text_of(value, answered))], signals, facts=_facts(others(value, *used)))


def _facts(value: dict[str, Any]) -> dict[str, Any]:
    """Without empty cells."""
    return {key: each for key, each in value.items() if each not in (None, "")}


READER = Table
