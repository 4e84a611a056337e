"""What can be read of data sets, and what cannot, with its place: for training, which leaves broken records out.

In: data sets. Out: a `Part` for each; where clips are asked about, and files that are missing. Media are not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pave.data import Example, Refuse, Source, flaw_of
from pave.data_sets import DataSet, Sets, data_sets
from pave.errors import DataError
from pave.readers.questions import Reading
from pave.readers.records import empty
from pave.readers.sample import Broken
from pave.text.shown import counted

BROKEN = 0.1  # of the records of a data set may be broken: with more, it is rather read wrongly


@dataclass(frozen=True)
class Part:
    """What can be read of one data set, and what cannot."""

    file: Path
    records: int
    examples: list[Example]
    broken: list[tuple[str, str]]  # the places of records, and what is wrong with them

    def named(self, place: str) -> str:
        """A place in this data set."""
        return f"{self.file.name}, {place}"


def read_parts(data: Sets, refuse: Refuse | None = None, packed: set[Path] | None = None) -> list[Part]:
    """All questions of some data sets; broken records are left out. Arguments as of `read_data`. DataError for a data
    set without a question, or with more than BROKEN of its records broken."""
    return [_part(each, refuse, packed) for each in data_sets(data)]


def _part(data: DataSet, refuse: Refuse | None, packed: set[Path] | None) -> Part:
    reading = Reading(data, packed is None)
    part, unit = Part(data.file, 0, [], []), "record"
    for record, found in reading.parsed():
        unit = record.unit.rpartition(" ")[2]
        flaws = [str(found)] if isinstance(found, Broken) else [flaw_of(each, refuse) for each in found if refuse]
        if flaw := next(filter(None, flaws), ""):
            part.broken.append((record.place, flaw))
        elif not isinstance(found, Broken):
            part.examples.extend(found)
    if len(part.broken) > BROKEN * reading.records:
        (place, flaw), count = part.broken[0], f"{len(part.broken):,} of {counted(reading.records, 'record')}"
        remedy = f"fix or delete the {unit} (broken: {count}; up to a tenth is left out)"
        raise DataError(f"{data.file}, {place}: {flaw}; {remedy}")
    if not part.examples:
        raise empty(data.file, reading.records)
    if packed is not None:
        packed |= reading.packed
    return replace(part, records=reading.records)


def places_of(parts: Sequence[Part]) -> dict[Source, list[str]]:
    """Where each clip is asked about."""
    places: dict[Source, list[str]] = {}
    for part in parts:
        for example in part.examples:
            here = places.setdefault(example.source, [])
            if (place := part.named(example.place)) not in here[-1:]:  # of several turns
                here.append(place)
    return places


def missing_of(parts: Sequence[Part]) -> Iterator[tuple[str, Path]]:
    """The files of clips that do not exist, with the place that names them."""
    for source, places in places_of(parts).items():
        for file in source.files:
            if not os.path.exists(file):
                yield from ((place, file) for place in places)
