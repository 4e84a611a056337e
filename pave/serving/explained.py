"""Explanations as JSON: which seconds an answer depends on, as `PatchedModel.explain` finds them.

In: what a request asks, and an `Explanation`. Out: dictionaries for JSON. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Any

from pave.explaining.explanation import Explanation
from pave.explaining.found import Cited, Deletions, Reading
from pave.model.answer import Answer
from pave.serving.failures import Refused
from pave.serving.messages import Asked


def refuse_more(question: Asked) -> None:
    """`Refused` for what an explanation cannot have: it is of one greedy answer to one question."""
    sampling = question.sampling
    for param, given in (
        ("stream", question.stream),
        ("messages", bool(question.history)),
        ("temperature", not sampling.greedy),
        ("stop", bool(sampling.stop)),
        ("logprobs", sampling.logprobs is not None),
    ):
        if given:
            raise Refused(param, "is not supported here: one question is explained, and its greedy answer")


def body(model: str, patches: tuple[str, ...], found: Explanation) -> dict[str, Any]:
    """An explanation; seconds are on the clip's clock, `lost` in nats (0.7: half as likely without them)."""
    answer = found.answer
    told = {"patches": list(patches)}
    if isinstance(answer, Answer):
        told |= {"signals": dict(answer.signals), "warnings": list(answer.warnings)}
    return {
        "object": "explanation",
        "model": model,
        "question": found.question.encode("utf-8", "replace").decode(),  # JSON can hold half a surrogate pair
        "answer": str(answer),
        "without": found.without,
        "text": str(found).splitlines(),
        "key_times": found.key_times.tolist(),
        "cited": [_cited(each) for each in found.cited],
        "deletions": [_deletions(each) for each in found.deletions],
        "readings": [_reading(each) for each in found.readings],
        "missing": dict(found.missing),
        "pave": told,
    }


def _cited(each: Cited) -> dict[str, Any]:
    start, end = each.other
    other = {"start": start, "end": end, "lost": each.other_lost, "answer": each.other_answer}
    facts = {"text": str(each), "sense": each.sense, "start": each.start, "end": each.end}
    return {**facts, "lost": each.lost, "answer": each.answer, "other": other}


def _deletions(each: Deletions) -> dict[str, Any]:
    return {"sense": each.sense, "windows": each.windows.tolist(), "lost": each.lost.tolist()}


def _reading(each: Reading) -> dict[str, Any]:
    """How much of each step the key frames read, on average; `times` is None for tokens without times."""
    times = None if each.times is None else each.times.tolist()
    return {"patch": each.patch, "senses": list(each.senses), "times": times, "weights": each.by_step.mean(0).tolist()}
