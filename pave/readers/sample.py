"""What a format understands of one record: a clip, questions about it, and answers.

In: the values of a record. Out: a `Sample`; or `Broken`, which says what is wrong. The base class of formats, and what
several of them read alike. Knows nothing of files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.records import Packed, Record
from pave.readers.wording import Choices, Wording
from pave.text.shown import counted, quoted

TAGS = ("<video>", "<image>", "<audio>")  # placeholders of media in the text of other trainers
TEXTS = 32  # answers or choices of a question, at most
WRITTEN = 10_000  # characters of a list that is written as a text

Turn = tuple[str, str]  # a question and its answer


class Broken(ValueError):
    """What is wrong with a record; the reader adds its place and what to do."""


@dataclass(frozen=True)
class Sample:
    """A clip and the questions about it, in their order."""

    video: str | Packed
    turns: Sequence[Turn]
    signals: Mapping[str, Any] = field(default_factory=dict)  # paths by name, as in our own format
    tracks: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # the other keys of the record
    ending: str | None = None  # of the file that `video` names without it, among the media; None: `video` is its path
    choices: Choices | None = None  # the options of its question
    span: tuple[float, float] | None = None  # seconds of the file that are the clip; None: all


class Format(ABC):
    """A published layout of questions. `NEEDS`: sets of keys, one of which the records of this format have."""

    NEEDS: ClassVar[tuple[frozenset[str], ...]] = ()
    TURNS: ClassVar[Literal["separate", "dialogue"]] = "separate"  # of a record, unless the data set says
    WORDING: ClassVar[Wording] = Wording()  # of its questions, unless a task has its own
    DIALOGUE: ClassVar[int] = 0  # turns of one dialogue, into which a longer one is cut for training; 0: it is not

    def __init__(self, options: DataSet) -> None:
        self.options = options

    @classmethod
    def fits(cls, keys: frozenset[str]) -> int:
        """How many keys tell that a record with these keys is of this format; 0: it is not."""
        return max((len(needed) for needed in cls.NEEDS if needed <= keys), default=0)

    def missing(self, file: Path, what: str, key: str = "answers") -> DataError:
        """The error for a further file that is not there, which is named in `maps`."""
        cause = f"{self.options.file}: {what} are in another file, and {file} is not there"
        return DataError(f"{cause}; name it with maps: {{{key}: FILE}}")

    @abstractmethod
    def samples(self, record: Record) -> Iterator[Sample]:
        """What a record asks; nothing, if its answer is not published."""


def needs(*sets: str) -> tuple[frozenset[str], ...]:
    """Sets of keys, each written as words."""
    return tuple(frozenset(words.split()) for words in sets)


def text_of(value: Mapping[str, Any], key: str) -> str:
    """The text under a key; a number as it is written."""
    found = value.get(key)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str) or not found.strip():
        has = f"got {quoted(found)}" if key in value else f"has the keys {quoted(sorted(value))}"
        raise Broken(f"needs {key!r}, a text; {has}")
    return found


def texts_of(value: Mapping[str, Any], key: str) -> list[str]:
    """The list of texts under a key."""
    found = value.get(key)
    if not isinstance(found, list) or not 0 < len(found) <= TEXTS or not all(isinstance(each, str) for each in found):
        raise Broken(f"needs {key!r}, a list of 1 to {TEXTS} texts; got {quoted(found)}")
    return found


def written_list(value: Mapping[str, Any], key: str) -> list[str]:
    """The list of texts under a key, which may itself be written as a text, as Python or JSON prints it; none if there
    is no such key."""
    found = value.get(key, [])
    if isinstance(found, str) and len(found) <= WRITTEN:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of deep nesting
            found = literal_eval(found.strip())
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise Broken(f"{key!r} must be a list of texts, got {quoted(found)}")
    return found


def others(value: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The keys of a record that are not used."""
    return {key: each for key, each in value.items() if key not in used}


def paired(turns: Any, key: str, speaker: str, text: str, asks: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    """Turns that ask and answer, in pairs. Each is an object whose `speaker` is one of `asks` or `answers`."""
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        actual = counted(len(turns), "turn") if isinstance(turns, list) else type(turns).__name__
        raise Broken(f"needs {key!r}, a list of alternating questions and answers, has {actual}")
    for place, turn in enumerate(turns):
        roles = answers if place % 2 else asks
        if not isinstance(turn, dict) or turn.get(speaker) not in roles or not isinstance(turn.get(text), str):
            raise Broken(f"expected a turn {{{speaker!r}: {roles[0]!r}, {text!r}: text}}, got {quoted(turn)}")
    spoken = [turn[text] for turn in turns]
    for asked in spoken[::2]:
        if (count := sum(asked.count(tag) for tag in TAGS[:2])) > 1:
            raise Broken(f"a question has {count} placeholders of media, but an entry is about one clip")
    return list(zip(spoken[::2], spoken[1::2], strict=True))


def one_medium(value: Mapping[str, Any], *keys: str) -> tuple[Any, str]:
    """The one medium under any of these keys, a path or a list of one, and its key."""
    found = [(each, key) for key in keys for each in _listed(value.get(key))]
    if len(found) != 1:
        what = " or ".join(map(repr, keys))
        cause = f"has {len(found)}" if found else f"has none, but the keys {quoted(sorted(value))}"
        raise Broken(f"needs one clip in {what}, {cause}; several pictures are one clip if they are in a folder")
    return found[0]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]
