"""An excerpt of a data set, and what must be understood of it; helpers that write turns and tables."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Excerpt:
    """A data file, and what is understood of it."""

    format: str
    file: str
    content: Any  # JSON, or the text of the file
    understood: list[tuple[str, Turns]]  # clips, relative to the folder, with all their questions in order
    beside: dict[str, Any] = field(default_factory=dict)  # further files
    options: dict[str, Any] = field(default_factory=dict)  # other keys of the data set
    facts: dict[str, Any] = field(default_factory=dict)  # some of those of the first question
    signals: dict[str, Any] = field(default_factory=dict)  # of the first clip, relative to the folder
    lines: bool = False  # written as one JSON object a line


def spoken(*texts: str, roles: tuple[str, str] = ("human", "gpt"), keys: tuple[str, str] = ("from", "value")) -> list:
    return [{keys[0]: roles[place % 2], keys[1]: text} for place, text in enumerate(texts)]


def asked(*texts: str) -> list:
    return [{"question": q, "answer": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]


def table(rows: list[list[str]], delimiter: str = ",") -> str:
    out = StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()
