"""Ways to break records of the usual shapes: a question with options, and texts.

In: where such a record is in a content. Out: changes of the content, each with the error that must be told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Change = Callable[[Any], object]


def choosing(get: Callable[[Any], Any], question: str, options: str, answer: str) -> list[tuple[Change, str]]:
    """Ways to break a record with options, in which `answer` is a letter, a place or a text."""

    def put(key: str, value: Any) -> Change:
        return lambda content: get(content).update({key: value})

    must = f"{answer!r} must be the (text|letter|place) of an option, one of"
    many = f"{options!r} must be a list of texts, got|needs {options!r}, a list of 2 to 26 options; got"
    return [
        (put(answer, "Z"), f"{must}.*got 'Z'"),
        (put(answer, 99), f"{must}.*got '?99"),
        (put(answer, None), must),
        (lambda content: get(content).pop(answer), must),
        (put(options, []), many),
        (put(options, ["A. one"]), many),
        (put(options, "one, two"), many),
        (put(options, [1, 2]), many),
        (put(question, ""), f"needs {question!r}, a text; got ''"),
        (put(question, ["?"]), f"needs {question!r}, a text; got"),
    ]


def asking(get: Callable[[Any], Any], *keys: str) -> list[tuple[Change, str]]:
    """Ways to break the texts under these keys."""

    def put(key: str, value: Any) -> Change:
        return lambda content: get(content).update({key: value})

    def without(key: str) -> Change:
        return lambda content: get(content).pop(key)

    wrong: tuple[Any, ...] = ("", " ", None, [], {"text": "x"}, ["x"], True)
    found = [(put(key, value), f"needs {key!r}, a text; got") for value in wrong for key in keys]
    return [*found[: 12 - len(keys)], *((without(key), f"needs {key!r}, a text; has the keys") for key in keys)]
