"""A published benchmark as data: its files, its prompt, its metrics, and where it is to be had.

In: the folder of its publisher's files. Out: its questions. Knows nothing of models and of how answers are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pave.data import Example, Refuse, refuse_texts
from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.media import Media
from pave.readers.questions import Reading
from pave.readers.records import empty
from pave.readers.wording import Wording

DEPTH = 3  # folders below the given one in which a file is looked for
LETTER = 16  # tokens of an answer by a letter, as lmms-eval allows


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark."""

    what: str  # in a few words
    senses: str  # what its questions need besides key frames; empty: nothing
    files: tuple[str, ...]  # the file of its questions, or the pattern of several; others are tried in turn
    format: str  # of the file, as in `pave data formats`
    questions: int | None  # of the split; None: its versions differ
    metrics: tuple[str, ...]  # the first is its score; others are reported with it
    data: str  # where it is to be had
    licence: str  # of the annotations, as the publisher states it
    split: str = "test"
    by: tuple[str, ...] = ()  # keys by which its publisher groups figures
    wording: Wording | None = None  # None: that of the format
    prompt_of: str = ""  # whose prompt it is; empty: ours, as none is published
    turns: Literal["last"] | None = None  # of a dialogue
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # only questions with one of these values
    balanced: str = ""  # a key: its score is the mean over the groups of this key
    max_new_tokens: int = 1024
    name: str = ""  # of its file

    def read(self, folder: str | Path, refuse: Refuse | None = None) -> list[Example]:
        """All questions in a folder. DataError for a file that is missing or a broken record, with its place."""
        folder = Path(folder)
        media, found, records = Media(folder), list[Example](), 0
        files = self.found(folder)
        for file in files:
            options: dict[str, Any] = {"format": self.format, "media": folder, "turns": self.turns}
            reading = Reading(DataSet(file=file, **options), wording=self.wording, media=media)
            own = [each for each in reading.examples() if self._wanted(each)]
            records += reading.records
            if refuse:
                refuse_texts(file, own, refuse)
            found += own
        if not found:
            raise empty(files[0], records)
        return found

    def found(self, folder: Path) -> list[Path]:
        """The files of its questions, in the folder or a little below."""
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the folder of {self.name}'s files, from {self.data}")
        for name in self.files:
            for depth in range(DEPTH + 1):
                files = sorted(folder.glob("*/" * depth + name))
                if len({file.parent for file in files}) > 1 or (len(files) > 1 and not set(name) & set("*?[")):
                    two = " and ".join(str(file.relative_to(folder)) for file in (files[0], files[-1]))
                    raise DataError(f"{folder}: {self.name} could be {two}; give a folder nearer to yours")
                if files:
                    return files
        named = " or ".join(self.files)
        raise DataError(f"{folder}: has no {named} of {self.name}; download it from {self.data}")

    def _wanted(self, example: Example) -> bool:
        return all(example.facts.get(key) in values for key, values in self.where.items())

    def missing(self, read: int) -> str:
        """A remark on a number of questions that is not that of the benchmark; empty if it is."""
        if self.questions in (None, read):
            return ""
        return f"{read:,} questions were found, {self.name} has {self.questions:,}: figures are not those of all of it"
