"""What PAVE understands of a data set, without opening its media: the work of `pave data check`.

In: a `DataSet`. Out: a `Check`: counts, the first question, broken records, files that are not there, and keys that are
kept but not read.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pave.data import Example, Source
from pave.data_sets import DataSet
from pave.readers.questions import Reading
from pave.readers.sample import Broken
from pave.text.shown import Lines, counted, quoted

FEW = 5  # of many, in print
LONG = 300  # characters of a question in print


@dataclass(frozen=True, repr=False)
class Check(Lines):
    """The findings about one data set."""

    file: str
    format: str
    records: int
    left_out: int  # records beyond `per_clip`, or without a published answer
    questions: int
    clips: int
    signals: Mapping[str, int]  # for each name, the clips that have such a file
    other_keys: Mapping[str, int]  # kept with a question, but not read; the records that have them
    first: Mapping[str, Any]  # the first question as it is understood; empty: there is none
    broken: tuple[str, ...]  # place and cause of each broken record
    missing: tuple[str, ...]  # files of clips that are not there

    @property
    def ok(self) -> bool:
        """Whether there are questions, and nothing is broken or missing."""
        return bool(self.questions) and not self.broken and not self.missing

    def lines(self) -> list[str]:
        named = ", ".join(f"{name} of {counted(count, 'clip')}" for name, count in self.signals.items())
        asked = f"{counted(self.questions, 'question')} about {counted(self.clips, 'clip')}"
        lines = [
            f"{self.file}: {self.format}",
            f"{counted(self.records, 'record')}, {asked}",
            *(
                [f"{counted(self.left_out, 'record')} left out: beyond per_clip, or without an answer"]
                if self.left_out
                else []
            ),
            *([f"signals: {named}"] if named else []),
        ]
        if self.first:
            lines += ["", f"{self.first['place']} as it is understood:"]
            lines += [f"  {name}: {quoted(value)}" for name, value in self.first.items() if name != "place"]
        if self.other_keys:
            kept = ", ".join(f"{quoted(key)[1:-1]} ({count:,})" for key, count in self.other_keys.items())
            lines += ["", f"kept as facts of a question, but not read: {kept}"]
        for what, found in (("broken", self.broken), ("missing", self.missing)):
            if found:
                lines += ["", f"{counted(len(found), 'record' if what == 'broken' else 'file')} {what}:"]
                lines += [f"  {each}" for each in found[:FEW]]
                lines += [f"  and {len(found) - FEW:,} more"] if len(found) > FEW else []
        if not self.ok:
            lines += ["", "not ready for training" if self.questions else "no question can be read"]
        return lines


def check(options: DataSet, most: float = math.inf) -> Check:
    """Read at most so many records of a data set."""
    reading = Reading(options, unpacks=False)
    sources: dict[Source, None] = {}
    keys: Counter[str] = Counter()
    broken, first, questions = [], None, 0
    for record, found in reading.parsed(most):
        if isinstance(found, Broken):
            broken.append(f"{record.place}: {found}")
            continue
        first = first or found[0]
        questions += len(found)
        sources |= dict.fromkeys(example.source for example in found)
        keys.update({key for example in found for key in example.facts})
    files = dict.fromkeys(file for source in sources for file in source.files if file not in reading.packed)
    return Check(
        str(options.file),
        reading.format,
        reading.records,
        reading.left_out,
        questions,
        len(sources),
        dict(Counter(name for source in sources for name, named in source.signals if named is not None)),
        dict(sorted(keys.items())),
        _shown(first) if first else {},
        tuple(broken),
        tuple(sorted(str(file) for file in files if not os.path.exists(file))),
    )


def _shown(example: Example) -> dict[str, Any]:
    """A question as it is printed."""
    signals = {name: str(named) if isinstance(named, Path) else named for name, named in example.source.signals}
    return {
        "place": example.place,
        "clip": str(example.source),
        **({"signals": signals} if signals else {}),
        **example.source.tracks,
        "question": example.question[:LONG],
        "answer": example.answer[:LONG],
    }
