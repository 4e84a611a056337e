"""Text from outside as it is printed: one line, without characters that act on a terminal or cannot be seen.

In: any text, of a file, of the Hub, of a model. Out: the same text with such characters escaped, as `\\x1b` or
`\\u202e`. Letters of all scripts and emoji stay. Every line that PAVE prints passes here: messages of errors
(pave/errors.py), reports (`Lines`), and the output of the commands (pave/cli/terminal.py). Knows nothing of files.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable

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
