"""Metrics of short answers: equal texts, after more or less cleaning, and shared words.

In: answers, and the texts that are right. Out: `Measured`. Each rule is somebody's: its source is beside it. Knows
nothing of questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from pave.evaluation.metrics.measured import Measured, References, Texts

# Rajpurkar et al. 2016, SQuAD's evaluate-v1.1.py: what does not count when two answers are compared.
ARTICLES = frozenset({"a", "an", "the"})
UNMARKED = str.maketrans("", "", string.punctuation)

# The cleaning of ScanQA's and SQA3D's answers that LEO introduced and PAVE and others follow: embodied-generalist,
# data/data_utils.py at 477dc44, `clean_answer`. Its rules, in its order, without three that change nothing.
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
TYPOS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
    "o'[ ]+clock": "o'clock",
}
DIGITS = {
    "0": "zero",
    "none": "zero",
    **{str(i): word for i, word in enumerate(NUMBERS.split()) if i},
    "23": "twenty-three",
}
CLEANING = [
    (re.compile(pattern), text)
    for pattern, text in (
        (" +$", ""),
        ("^ +", ""),
        (" {2,}", " "),
        (r"[^a-zA-Z0-9,'\s\-:]+", ""),
        *((rf"\b{wrong}\b", right) for wrong, right in (TYPOS | DIGITS).items()),
        (r"\b([a-zA-Z]+)[0-9]\b", r"\1"),
        *((rf"\b{article}\b ([a-zA-Z]+)", r"\1") for article in ("a", "an", "the")),
        (r"\bbackwards\b", "backward"),
    )
]


def folded(text: str) -> str:
    """A text without regard to case and surrounding spaces."""
    return text.strip().lower()


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """The words of an answer in lower case, without punctuation and articles; all of them if it has only these, as an
    option letter A is."""
    found = tuple(text.lower().translate(UNMARKED).split())
    return tuple(word for word in found if word not in ARTICLES) or found


@lru_cache(maxsize=65536)
def cleaned(text: str) -> str:
    """An answer as LEO cleans it; as it is, if nothing is left, as of a text in another script."""
    clean = text.lower()
    for pattern, replacement in CLEANING:
        clean = pattern.sub(replacement, clean)
    return clean or folded(text)


def exact(answers: Texts, references: References) -> Measured:
    """Equal texts, without regard to case and surrounding spaces."""
    return _any(lambda answer, right: folded(answer) == folded(right), answers, references)


def match(answers: Texts, references: References) -> Measured:
    """Equal `words`."""
    return _any(lambda answer, right: words(answer) == words(right), answers, references)


def contains(answers: Texts, references: References) -> Measured:
    """The right text occurs in the answer, without regard to case, as MUSIC-AVQA is scored in PAVE's
    tools/audio/music_avqa/calculate_acc.py."""
    return _any(lambda answer, right: right.lower() in answer.lower(), answers, references)


def em(answers: Texts, references: References) -> Measured:
    """Exact match after LEO's cleaning: EM@1 of ScanQA and SQA3D."""
    return _any(lambda answer, right: cleaned(answer) == cleaned(right), answers, references)


def em_refined(answers: Texts, references: References) -> Measured:
    """LEO's refined exact match: without spaces, one text contains the other. An empty answer is wrong; in the
    published scripts it is contained in every text."""

    def right(answer: str, reference: str) -> bool:
        short, long = sorted(("".join(cleaned(each).split()) for each in (answer, reference)), key=len)
        return bool(short) and short in long

    return _any(right, answers, references)


def f1(answers: Texts, references: References) -> Measured:
    """F1 of the shared `words` with the nearest reference, as SQuAD has it."""
    pairs = zip(answers, references, strict=True)
    return Measured.mean([max(_f1(answer, right) for right in own) for answer, own in pairs])


def wer(answers: Texts, references: References) -> Measured:
    """Word error rate: substituted, deleted and inserted words over the words of the first reference, the transcript;
    the rate of a set is that of its sums, as jiwer has it. Case and punctuation count."""
    pairs = [(answer.split(), own[0].split()) for answer, own in zip(answers, references, strict=True)]
    counts = [(distance(answer, right), len(right)) for answer, right in pairs]
    return Measured(np.array(counts, np.float64))


def _any(right: Callable[[str, str], bool], answers: Texts, references: References) -> Measured:
    """The share of answers that are right by one of their references."""
    pairs = zip(answers, references, strict=True)
    return Measured.mean([any(right(answer, reference) for reference in own) for answer, own in pairs])


def _f1(answer: str, right: str) -> float:
    found, wanted = words(answer), words(right)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def distance(found: list[str], wanted: list[str]) -> int:
    """Levenshtein's distance of two lists of words: how many to change, add or leave out."""
    row = list(range(len(wanted) + 1))
    for i, word in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
