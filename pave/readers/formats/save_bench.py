"""SAVE, the benchmark of video-SALMONN, in which FAVOR's AVEB is published: questions about pictures, films and sound.

Lists of `{"image": file, or [film or picture, sound], "question", "answer": text or list of texts}`; `image_name` in
some files, with `answer_candidates` in others, and `conversation`, a list of questions and answers, in that of AVSD.
`kind` is the name of the file. The sound is the signal `audio` unless it is the film's own, a file of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, others, text_of, texts_of
from pave.readers.wording import LISTED, Choices
from pave.text.shown import quoted

KEYS = ("image", "image_name")


class SaveBench(Format):
    NEEDS = ()  # its keys are also those of tables: it must be named
    WORDING = LISTED

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        key = next((key for key in KEYS if key in value), KEYS[0])
        named: Any = value.get(key)
        files = named if isinstance(named, list) else [named]
        if not 1 <= len(files) <= 2 or not all(isinstance(each, str) and each for each in files):
            raise Broken(f"needs {key!r}, a file or a list of two, got {quoted(named)}")
        own = len(files) == 1 or PurePosixPath(files[0]).stem == PurePosixPath(files[1]).stem
        facts = others(value, *KEYS, "question", "conversation", "answer") | {"kind": self.options.file.stem}
        turns, choices = _turns(value, facts)
        yield Sample(files[0], turns, {} if own else {"audio": files[1]}, facts=facts, ending="", choices=choices)


def _turns(value: Mapping[str, Any], facts: dict[str, Any]) -> tuple[list[tuple[str, str]], Choices | None]:
    """Questions and answers, and the options of the only one."""
    if "conversation" in value:
        turns = value["conversation"]
        if not isinstance(turns, list) or not turns or not all(_is_turn(each) for each in turns):
            raise Broken(f"needs 'conversation', a list of [question, answer], got {quoted(turns)}")
        return [(question, answer) for question, answer in turns], None
    answers = texts_of(value, "answer") if isinstance(value.get("answer"), list) else [text_of(value, "answer")]
    if len(answers) > 1:
        facts["answers"] = answers
    turn = (text_of(value, "question"), answers[0])
    if "answer_candidates" not in value:
        return [turn], None
    candidates = texts_of(value, "answer_candidates")
    if answers[0] not in candidates:
        raise Broken(f"'answer' must be one of {quoted(candidates)}, got {quoted(answers[0])}")
    return [turn], Choices(candidates, candidates.index(answers[0]))


def _is_turn(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


READER = SaveBench
