"""How a question is put to a model: the words around it and around its options.

In: a question, its options and which of them is right. Out: the prompt, and the answer that is expected. Knows nothing
of files and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import NamedTuple

LETTERS = ascii_uppercase  # of options, in their order
NONE = "none"  # the answer if no option is right


class Choices(NamedTuple):
    """The options of a question, without labels."""

    texts: Sequence[str]
    right: int | None  # the place of the right one; None: by a slip of the publisher, no option is


class _Options(list[str]):
    """Options with their labels: in a prompt a line each, or with `!r` as Python prints a list."""

    def __str__(self) -> str:
        return "\n".join(self)


@dataclass(frozen=True)
class Wording:
    """A prompt with the slots {question} and {options}. White space at its ends does not count."""

    prompt: str = "{question}"
    option: str = "- {text}"  # of each option; {letter}
    letter: bool = False  # the answer is the letter of the right option; else its text
    sentence: bool = False  # questions are written without capital letters and question marks: they get both
    subtitles: str = ""  # path of a clip's subtitles among the media, with {name} for the clip's; the slot {subtitles}

    def asked(self, question: str, choices: Choices | None) -> str:
        """The prompt. The slot {subtitles} stays: what it holds depends on the key frames."""
        question = f"{question.capitalize()}?" if self.sentence else question
        options = _Options(
            self.option.format(letter=LETTERS[place : place + 1], text=text)
            for place, text in enumerate(choices.texts if choices else ())
        )
        return self.prompt.format(question=question, options=options, subtitles=SUBTITLES)

    def answer(self, answer: str, choices: Choices | None) -> str:
        """The expected answer."""
        if choices is None or not self.letter:
            return answer
        return NONE if choices.right is None else LETTERS[choices.right]


SUBTITLES = "{subtitles}"
LISTED = Wording("{question}\n{options}")  # options as a list; the text of the right one is the answer
# The prompt for options that LLaVA-OneVision is evaluated with, in lmms-eval's egoschema and perceptiontest.
LETTERED = Wording(
    "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
    "{letter}. {text}",
    letter=True,
)
