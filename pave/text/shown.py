"""Text from outside as it is printed: one line, without characters that act on a terminal or cannot be seen.

In: any text, of a file, of the Hub, of a model. Out: the same text with such characters escaped, as `\\x1b` or
`\\u202e`. Letters of all scripts and emoji stay. Every line that PAVE prints passes here: messages of errors
(pave/errors.py), reports (`Lines`), and the output of the commands (pave/cli/terminal.py). Knows nothing of files.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sized
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

# Unicode's controls (C0, C1), format characters (bidi, zero width, tags), line separators, surrogates, and letters
# without a shape. Zero-width joiners stay between characters of scripts and emoji that need them (👩‍🚀, می‌خواهم):
# beside ASCII they can only disguise a name.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e01ef]"
    "|(?<![^\x00-\x7f\\s\u200c\u200d])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\\s\u200c\u200d])"
)
LONGEST = 4_000  # characters of an error message


def shown(text: object) -> str:
    """A text on one line; a line break in it is escaped, too."""
    return UNSEEN.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def shortened(text: str, most: int = LONGEST) -> str:
    """The beginning and the end of a long text."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"


def quoted(value: object) -> str:
    """A value from outside in a message: its repr, shortened."""
    return shortened(repr(value), 200)


def counted(number: int, what: str) -> str:
    """A number of things: "1 clip", "2,000 clips"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class Lines(ABC):
    """Something that prints as lines of text. Only `lines` itself can begin a line: one inside a name is escaped."""

    @abstractmethod
    def lines(self) -> Iterable[str]:
        """The lines, as they are."""

    def __str__(self) -> str:
        return "\n".join(map(shown, self.lines()))

    __repr__ = __str__  # for a console; a dataclass must say repr=False

    def _repr_html_(self) -> str:
        """In a notebook."""
        return f"<pre>{escape(str(self))}</pre>"


def brief(value: Any) -> str:
    """The repr of a dataclass that holds tensors: their dtypes and shapes instead of their numbers, and no empty
    fields."""
    facts = {each.name: getattr(value, each.name) for each in fields(value) if each.repr}
    some = [f"{name}={_brief(fact)}" for name, fact in facts.items() if _told(fact)]
    return f"{type(value).__name__}({', '.join(some)})"


def _told(value: Any) -> bool:
    return value is not None and not (isinstance(value, Sized) and not hasattr(value, "dtype") and not len(value))


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} ({' '.join(map(str, value.shape))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_brief(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple) and not isinstance(value, str):
        return f"[{', '.join(map(_brief, value[:4]))}{', …' if len(value) > 4 else ''}]"
    return shown(shortened(str(value) if is_dataclass(value) else repr(value), 200))
