"""Questions with options: what the published layouts of them have in common.

In: the values of a record, under the keys that a format names. Out: a `Sample` with its options; or `Broken`. Knows
nothing of prompts (pave/readers/wording.py) and files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, others, text_of, written_list
from pave.readers.wording import LETTERED, LETTERS, NONE, Choices, Wording
from pave.text.shown import quoted

LABEL = re.compile(r"\(?([A-Z])[.:)]\s*")


class MultipleChoice(Format):
    """A layout in which a record asks one question and lists its options."""

    VIDEO: ClassVar[str] = "video"  # keys of a record
    QUESTION: ClassVar[str] = "question"
    OPTIONS: ClassVar[str] = "candidates"
    ANSWER: ClassVar[str] = "answer"
    RIGHT: ClassVar[Literal["text", "letter", "place"]] = "text"  # what the answer is: of the right option
    LABELLED: ClassVar[bool] = False  # whether options begin with their letters
    SLIPS: ClassVar[bool] = False  # whether answers that are no option are known; nobody is right then
    WORDING: ClassVar[Wording] = LETTERED

    def samples(self, record: Record) -> Iterator[Sample]:
        yield self.sample(record.value)

    def sample(self, value: Mapping[str, Any]) -> Sample:
        """The question of one record."""
        texts = self.texts(value)
        choices = Choices(texts, self.right(value, texts))
        facts = others(value, self.VIDEO, self.QUESTION, self.OPTIONS, self.ANSWER)
        turns = [(text_of(value, self.QUESTION), NONE if choices.right is None else texts[choices.right])]
        return Sample(self.video(value), turns, facts=facts, ending=".mp4", choices=choices)

    def video(self, value: Mapping[str, Any]) -> str:
        """The name of the clip."""
        return text_of(value, self.VIDEO)

    def texts(self, value: Mapping[str, Any]) -> list[str]:
        """The options, without labels."""
        texts = written_list(value, self.OPTIONS)
        if not 1 < len(texts) <= len(LETTERS):
            raise Broken(f"needs {self.OPTIONS!r}, a list of 2 to {len(LETTERS)} options; got {quoted(texts)}")
        return unlabelled(texts) if self.LABELLED else texts

    def right(self, value: Mapping[str, Any], texts: list[str]) -> int | None:
        """The place of the right option; of equal ones the last, as the authors of MVBench and MLVU have it."""
        answer = value.get(self.ANSWER)
        answer = answer.strip() if isinstance(answer, str) else answer
        if self.RIGHT == "letter":
            known: Any = list(LETTERS[: len(texts)])
        elif self.RIGHT == "place":
            known, answer = [str(place) for place in range(len(texts))], str(answer)  # a table has texts
        else:
            known = [text.strip() for text in texts]
        if answer in known:
            return len(known) - 1 - known[::-1].index(answer)
        if not self.SLIPS or not isinstance(answer, str):
            raise Broken(f"{self.ANSWER!r} must be {MUST[self.RIGHT]}, one of {quoted(known)}, got {quoted(answer)}")
        return None


MUST = {"text": "the text of an option", "letter": "the letter of an option", "place": "the place of an option"}


def unlabelled(texts: list[str]) -> list[str]:
    """Options without the letters that they begin with, which must be A, B, ... in order."""
    found = []
    for letter, text in zip(LETTERS, texts, strict=False):
        label = LABEL.match(text.strip())
        if label is None or label[1] != letter:
            raise Broken(f"an option must begin with '{letter}.', got {quoted(text)}")
        found.append(text.strip()[label.end() :])
    return found
