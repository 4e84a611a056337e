"""Metrics of answers that choose: by the letter of an option, or yes or no.

In: answers, and the texts that are right: of a letter also the text of its option. Out: `Measured`. Knows nothing of
questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pave.evaluation.metrics.answers import words
from pave.evaluation.metrics.measured import Measured, References, Texts

# How an answer names a letter, the surest way first. A single A before a small letter is rather an article, and an I a
# pronoun; the published scripts take the first capital from A to D, even that of "Apples".
NAMED = [
    re.compile(pattern)
    for pattern in (
        r"(?i:\b(?:answer|option|choice)(?: is)?)[\s:]*\(?([A-Z])\b(?!['’])(?! [a-z])",
        r"\(([A-Z])\)",
        r"^\W*([A-Z])(?:[.):,]|\s*$)",
        r"\b(?!A [a-z]|I\b)([A-Z])\b(?!['’])",
    )
]
YES_NO = re.compile(r"\b(yes|no)\b")


def letter_of(answer: str) -> str:
    """The letter that an answer names; empty if none."""
    return next((found[1] for named in NAMED if (found := named.search(answer.strip()))), "")


def option(answers: Texts, references: References) -> Measured:
    """The answer names the letter of the right option, or has its text and no other letter."""
    return Measured.mean([_chooses(answer, own) for answer, own in zip(answers, references, strict=True)])


def _chooses(answer: str, references: Sequence[str]) -> bool:
    if any(words(answer) == words(text) for text in references):
        return True
    return letter_of(answer) in references


def yes_no(answers: Texts, references: References) -> Measured:
    """The first yes or no of the answer is that of the first reference."""
    pairs = zip(answers, references, strict=True)
    return Measured.mean([bool(_first(answer)) and _first(answer) == _first(own[0]) for answer, own in pairs])


def _first(text: str) -> str:
    found = YES_NO.search(text.lower())
    return found[1] if found else ""
