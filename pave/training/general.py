"""Lists of questions that need no sense.

In: nothing, or a text file. Out: questions; or a DataError that names file, line and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from pave.base import Host
from pave.errors import DataError, UsageError
from pave.files.atomic import opened

LARGEST = 1_000_000  # bytes of a list


@cache
def built_in(name: str) -> tuple[str, ...]:
    """A list of this folder: "kept", for training; "retention", which training never sees; and for gates "about", about
    clips, "seen", about pictures alone, and "alone", as people type what needs no clip."""
    return tuple((files("pave.training") / "questions" / f"{name}.txt").read_text("utf-8").splitlines())


def read_questions(file: Path, host: Host) -> tuple[str, ...]:
    """A list of questions, one a line; empty lines are skipped. DataError for a file without questions, with one that
    the base cannot read, or with one of those that measure what is kept."""
    try:
        with opened(file) as content:
            raw = content.read(LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); give a UTF-8 text file") from None
    if len(raw) > LARGEST:
        raise DataError(f"{file}: is larger than {LARGEST:,} bytes; give fewer questions")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: has no questions; write one a line")
    measured = {_words(question) for question in built_in("retention")}
    for number, question in lines:
        try:
            host.refuse_text(question)
        except UsageError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
        if _words(question) in measured:
            cause = f"{question!r} is one of the questions that measure what the base keeps"
            raise DataError(f"{file}, line {number}: {cause}; delete the line")
    return tuple(question for _, question in lines)


def without(questions: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """Those of the questions that are not among others, whatever their case and punctuation."""
    same = {_words(other) for other in others}
    return tuple(question for question in questions if _words(question) not in same)


def _words(question: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", question.casefold()))
