"""Metrics of captions: BLEU, ROUGE-L and CIDEr of Penn Treebank tokens, as the COCO captions evaluation computes them.

In: answers, and the texts that are right. Out: `Measured`, equal to `pycocoevalcap` 1.2, whose constants are here, to
rounding. Knows nothing of questions.

n answers, k numbers of one
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from math import exp, log

import numpy as np

from pave.evaluation.metrics.measured import Measured, References, Texts
from pave.evaluation.metrics.ptb import tokenised

ORDER = 4  # words of the longest n-grams
TINY, SMALL = 1e-15, 1e-9  # what BLEU adds to its counts: pycocoevalcap/bleu/bleu_scorer.py, `compute_score`
BETA = 1.2  # of ROUGE-L, the weight of recall: pycocoevalcap/rouge/rouge.py
SIGMA = 6.0  # of CIDEr-D, of the difference of lengths (Vedantam et al. 2015, eq. 5, and section 6)
SCALE = 10.0  # of CIDEr-D, the same

Grams = Counter[tuple[str, ...]]


def bleu(order: int, answers: Texts, references: References) -> Measured:
    """BLEU of n-grams of up to `order` words, against the reference of the nearest length (Papineni et al. 2002)."""
    parts = []
    for answer, own in _split(answers, references):
        length = len(answer)
        nearest = min((abs(len(each) - length), len(each)) for each in own)[1]
        allowed: Grams = Counter()
        for each in own:
            allowed |= _grams(each)
        kept = _grams(answer) & allowed
        right = [sum(count for gram, count in kept.items() if len(gram) == n) for n in range(1, ORDER + 1)]
        parts.append([*right, *(max(0, length - n) for n in range(ORDER)), length, nearest])
    return Measured(np.array(parts, np.float64), partial(_bleu, order))


def rouge_l(answers: Texts, references: References) -> Measured:
    """ROUGE-L: F of the longest common subsequence, of the best precision and the best recall (Lin 2004)."""
    values = []
    for answer, own in zip(answers, references, strict=True):
        # Split at spaces, so that an empty text has one empty word.
        found, rights = tokenised(answer).split(" "), [tokenised(each).split(" ") for each in own]
        common = [_common(found, each) for each in rights]
        precision = max(common) / len(found)
        recall = max(count / len(each) for count, each in zip(common, rights, strict=True))
        weighted = recall + BETA**2 * precision
        values.append((1 + BETA**2) * precision * recall / weighted if precision and recall else 0.0)
    return Measured.mean(values)


def cider(answers: Texts, references: References) -> Measured:
    """CIDEr-D: cosine of n-grams, which count the more the fewer answers have them in their references (Vedantam et al.
    2015). Its scale is 0 to 10. What is rare depends on all references: a subset has other values when it is alone."""
    rows = list(_split(answers, references))
    seen = Counter(gram for _, own in rows for gram in set().union(*map(_grams, own)))
    total = log(len(rows))

    def weighed(words: Sequence[str]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in _grams(words).items():
            vectors[len(gram) - 1][gram] = count * (total - log(max(1, seen[gram])))
        return vectors

    values = []
    for answer, own in rows:
        found = weighed(answer)
        scores = [
            _near(mine, theirs) * exp(-((_pairs(answer) - _pairs(right)) ** 2) / (2 * SIGMA**2))
            for right in own
            for mine, theirs in zip(found, weighed(right), strict=True)
        ]
        values.append(SCALE * sum(scores) / len(scores))
    return Measured.mean(values)


def _split(answers: Texts, references: References) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The tokens of each answer and of its references."""
    for answer, own in zip(answers, references, strict=True):
        yield tokenised(answer).split(), [tokenised(each).split() for each in own]


def _grams(words: Sequence[str]) -> Grams:
    """All n-grams of up to ORDER words."""
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _pairs(words: Sequence[str]) -> int:
    """The length that CIDEr-D compares: pycocoevalcap counts the pairs of words."""
    return max(0, len(words) - 1)


def _bleu(order: int, sums: np.ndarray) -> np.ndarray:
    """BLEU of the sums (... k): n-grams that are right, and all, of each length; words of answers and references."""
    right, all_grams = sums[..., :order], sums[..., ORDER : ORDER + order]
    precision = np.prod((right + TINY) / (all_grams + SMALL), axis=-1) ** (1 / order)
    shortness = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
    return precision * np.exp(np.minimum(0, 1 - 1 / shortness))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for j, each in enumerate(other, 1):
            before, row[j] = row[j], before + 1 if word == each else max(row[j], row[j - 1])
    return row[-1]


def _near(found: dict[tuple[str, ...], float], right: dict[tuple[str, ...], float]) -> float:
    """Cosine of two vectors, the first of which counts no n-gram more often than the second has it."""
    size = np.sqrt(sum(value**2 for value in found.values()) * sum(value**2 for value in right.values()))
    shared = sum(min(value, right[gram]) * right[gram] for gram, value in found.items() if gram in right)
    return shared / size if size else shared
