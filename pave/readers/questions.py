"""Questions from data files: the one place where data is read, for training, evaluation, `pave encode` and `pave data`.

In: files in any of the formats of pave/readers/formats, `DataSet`s, which say more about a file, or rows in memory.
Out: `Example`s; a broken record is a DataError with its place. The format of a file is that with whose keys its first
record agrees best, or the one that is named.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from importlib import import_module
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

from pave.data import TRACKS, Example, Files, Refuse, Source, refuse_texts
from pave.data_sets import DataSet, Sets, data_sets
from pave.errors import DataError, nearest, raised_as
from pave.readers.media import Media
from pave.readers.records import Packed, Record, empty, json_records
from pave.readers.sample import TAGS, Broken, Format, Sample
from pave.readers.shards import ENDINGS, tar_records
from pave.readers.tables import csv_records, is_saved, parquet_records, rows_of, saved_records
from pave.readers.wording import Wording
from pave.text.shown import quoted

CHANNEL = 100  # characters of the name of a group of questions
SHARDS = 100_000  # files of one data set
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
CONTAINERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), csv_records),
    **dict.fromkeys((".parquet", ".pq"), parquet_records),
    **dict.fromkeys(ENDINGS, tar_records),
}

Data = Sets | str | Iterable[Any]  # a file, data sets, rows (a `datasets.Dataset`), or examples


def read_data(data: Data, refuse: Refuse | None = None, packed: set[Path] | None = None) -> list[Example]:
    """All questions of some data. DataError with file and place for the first that is broken, that `refuse` does not
    take, or for a data set without a question. Media in shards and tables are written to files, unless `packed` is
    given, to which the paths of these files are added."""
    if isinstance(data, str):
        data = Path(data)
    elif isinstance(data, list | tuple) and data and all(isinstance(each, str | Path | DataSet) for each in data):
        data = tuple(each if isinstance(each, DataSet) else Path(each) for each in data)
    elif not isinstance(data, Path | DataSet):
        given = isinstance(data, list | tuple) and all(isinstance(each, Example) for each in data)
        rows = data if hasattr(data, "__len__") else list(data)  # which are gone through twice
        examples = list(data) if given else list(Reading(DataSet(file=Path("rows")), rows=rows).examples())
        if refuse:
            refuse_texts("examples", examples, refuse)
        return examples
    found: list[Example] = []
    for each in data_sets(data):
        reading = Reading(each, packed is None)
        own = list(reading.examples())
        if not own:
            raise empty(each.file, reading.records)
        if refuse:
            refuse_texts(each.file, own, refuse)
        found += own
        if packed is not None:
            packed |= reading.packed
    return found


def refuse_no_data(data: Sets | None) -> None:
    """DataError if a file of some data is missing, or its format unknown."""
    for each in data_sets(data):
        shards(each.file)
        if each.format:
            format_of(each.format)


def formats() -> list[str]:
    """The names of all formats."""
    return sorted(file.stem.replace("_", "-") for file in (Path(__file__).parent / "formats").glob("[!_]*.py"))


def described() -> dict[str, str]:
    """What each format is, by its name: the first sentence of its file."""
    heads = {name: str(import_module(_module(name)).__doc__).partition("\n\n")[0] for name in formats()}
    return {name: " ".join(head.split()) for name, head in heads.items()}


def _module(name: str) -> str:
    return f"pave.readers.formats.{name.replace('-', '_')}"


def format_of(name: str) -> type[Format]:
    """The reader of a format."""
    if name not in formats():
        raise DataError(f"no format {name!r}; {nearest(name, formats())}")
    return import_module(_module(name)).READER


def shards(file: Path) -> list[Path]:
    """The files of a data set: itself, or those that its pattern (`*`, `?`, `{000..099}`) names."""
    if os.path.isfile(file) or (os.path.isdir(file) and is_saved(file)):
        return [file]
    if span := BRACES.search(str(file)):
        first, last = int(span[1]), int(span[2])
        if last - first >= SHARDS:
            raise DataError(f"{file}: names over {SHARDS:,} files; give fewer")
        numbers = (f"{number:0{len(span[1])}}" for number in range(first, last + 1))
        named = [Path(f"{str(file)[: span.start()]}{number}{str(file)[span.end() :]}") for number in numbers]
        return [each for path in named for each in shards(path)]
    if set(str(file)) & set("*?["):
        found = sorted(Path(each) for each in glob(str(file)))
        if found:
            return found
    remedy = "give a file of questions about clips, in a format of `pave data formats`"
    if not os.path.lexists(file):  # unlike Path's, it takes names too long for a file system
        cause = "no such file"
    elif os.path.isdir(file):
        cause = "is a folder"
        if ending := next((each for each in CONTAINERS if any(file.glob(f"*{each}"))), None):
            remedy = f"name its files together: {file / '*'}{ending}"
    else:
        return [file]  # which is refused when it is opened
    raise DataError(f"{file}: {cause}; {remedy}")


@dataclass
class Reading:
    """One data set as it is read. `unpacks`: whether media in shards and tables are written to its folder."""

    options: DataSet
    unpacks: bool = True
    wording: Wording | None = None  # of the questions; None: that of the format
    media: Media | None = None  # None: by the options
    rows: Iterable[Any] | None = None  # instead of a file
    records: int = 0  # so far
    left_out: int = 0  # records beyond `per_clip`, or without a published answer
    packed: set[Path] = field(default_factory=set)  # paths of media that were not unpacked

    def examples(self) -> Iterator[Example]:
        """All questions; DataError for the first broken record."""
        for record, found in self.parsed():
            if isinstance(found, Broken):
                unit = record.unit.rpartition(" ")[2]
                raise DataError(f"{self.options.file}, {record.place}: {found}; fix or delete the {unit}")
            yield from found

    def parsed(self, most: float = math.inf) -> Iterator[tuple[Record, list[Example] | Broken]]:
        """At most so many records, each with its questions, or with what is wrong with it; those that are left out are
        counted."""
        per_clip: Counter[Source] = Counter()
        for record, media in self._records():
            if self.records >= most:
                return
            self.records += 1
            media.packed = self.packed
            try:
                found = self._understood(record, media)
            except Broken as broken:
                yield record, broken
                continue
            if not found:
                self.left_out += 1
                continue
            source = found[0].source
            per_clip[source] += 1
            if self.options.per_clip and per_clip[source] > self.options.per_clip:
                self.left_out += 1
            else:
                yield record, found

    @cached_property
    def format(self) -> str:
        """The name of the format: as it is given, or that whose keys the first readable record has most of."""
        if self.options.format:
            return self.options.format
        first = next((record for record, _ in self._opened() if not record.flaw), None)
        if first is None:
            return "llava"  # nothing can be read, which will be told
        keys = frozenset(self._renamed(first).value)
        fits = {name: format_of(name).fits(keys) for name in formats()}
        best = [name for name, count in fits.items() if count == max(fits.values())]
        if max(fits.values()) and len(best) == 1:
            return best[0]
        cause = f"could be {' or '.join(best)}" if max(fits.values()) else f"is in no known format ({_likest(keys)})"
        remedy = f"name it with format: or --format, one of {', '.join(formats())}"
        raise DataError(f"{self.options.file}, {first.place}: {cause}; {remedy}")

    @cached_property
    def reader(self) -> Format:
        """The reader of the format, with the further files that it needs."""
        with raised_as(DataError):
            return format_of(self.format)(self.options)

    def _opened(self) -> Iterator[tuple[Record, Media]]:
        """Records as they are in the files."""
        if self.rows is not None:
            yield from ((record, Media(self.options.media or Path(), self.unpacks)) for record in rows_of(self.rows))
            return
        for file in shards(self.options.file):
            name = file.name.lower()
            ending = next((ending for ending in CONTAINERS if name.endswith(ending)), "")
            packs = CONTAINERS.get(ending) not in (None, csv_records)
            folder = self.options.media or (file.with_name(f"{file.name}.media") if packs else file.parent)
            container = saved_records if os.path.isdir(file) else CONTAINERS.get(ending, json_records)
            media = self.media or Media(folder, self.unpacks)
            with raised_as(DataError):
                yield from ((record, media) for record in container(file))

    def _records(self) -> Iterator[tuple[Record, Media]]:
        return ((self._renamed(record), media) for record, media in self._opened())

    def _renamed(self, record: Record) -> Record:
        """A record whose columns have our names for them."""
        names = {own: ours for ours, own in self.options.columns.items()}
        if not names or record.flaw:
            return record
        value = {key: each for key, each in record.value.items() if key not in names and key not in names.values()}
        value |= {ours: record.value[own] for own, ours in names.items() if own in record.value}
        return Record(record.number, value, record.unit, record.name)

    def _understood(self, record: Record, media: Media) -> list[Example]:
        """The questions of one record; Broken if it is none."""
        if record.flaw:
            raise Broken(record.flaw)
        try:
            samples = list(self.reader.samples(record))
        except Broken as broken:
            if self.options.format and not self.reader.fits(frozenset(record.value)) and self.reader.NEEDS:
                raise Broken(f"{broken}. As {self.format}, {_likest(frozenset(record.value))}") from None
            raise
        return list(chain.from_iterable(self._asked(sample, record, media) for sample in samples))

    def _asked(self, sample: Sample, record: Record, media: Media) -> Iterator[Example]:
        source = _source(sample, media)
        facts = dict(sample.facts)
        channel = str(facts.get("channel", ""))
        if len(channel) > CHANNEL or not channel.isprintable():
            cause = f"'channel' names a group of figures: at most {CHANNEL} printable characters"
            raise Broken(f"{cause}, got {quoted(channel)}")
        turns, wording = [], self.wording or self.reader.WORDING
        for asked, answer in sample.turns:
            for tag in TAGS:
                asked = asked.replace(tag, "")
            if asked.strip():
                asked, answer = wording.asked(asked.strip(), sample.choices), wording.answer(answer, sample.choices)
            if not asked.strip() or not answer.strip():
                raise Broken("question and answer must not be empty")
            turns.append((asked.strip(), answer.strip()))
        for place, (question, answer) in enumerate(turns):
            if self.options.turns == "last" and place < len(turns) - 1:
                continue
            history = tuple(turns[self._begin(place) : place])
            choices = tuple(sample.choices.texts) if sample.choices and wording.letter else ()
            spoken = media.folder / wording.subtitles.format(name=source.video.stem) if wording.subtitles else None
            weight = self.options.weight
            yield Example(source, question, answer, record.number, facts, record.unit, weight, history, choices, spoken)

    def _begin(self, place: int) -> int:
        """The first turn that a turn sees, itself if none."""
        kind, length = self.options.turns or self.reader.TURNS, self.reader.DIALOGUE
        if kind == "separate":
            return place
        return place - place % length if length and kind == "dialogue" else 0


def _likest(keys: frozenset[str]) -> str:
    """What a record with these keys looks like."""
    needs = {name: format_of(name).NEEDS for name in formats()}
    shared = [(len(needed & keys) / len(needed), name, needed) for name in needs for needed in needs[name]]
    share, name, needed = max(shared, key=lambda each: each[0])
    if share == 1:
        return f"it looks like {name}: its keys are {quoted(sorted(keys))}"
    lacking = ", ".join(sorted(needed - keys))
    return f"its keys are {quoted(sorted(keys))}; {name}, the nearest, needs {lacking}, too"


def _source(sample: Sample, media: Media) -> Source:
    """The files of a sample; Broken if a name cannot be one of a file."""
    video, signals, tracks = sample.video, sample.signals, [sample.tracks.get(name) for name in TRACKS]
    if not _nameable(video):
        raise Broken(f"'video' is {quoted(video)}, which is not a valid file name")
    for name, named in signals.items():
        if any(file is not None and not _nameable(file) for file in (named if isinstance(named, list) else [named])):
            raise Broken(f"signal {quoted(name)} must be a path, a list of paths, or null, got {quoted(named)}")
        if name == "audio" and isinstance(named, list):
            raise Broken(f"signal 'audio' must be one path, or null, got {quoted(named)}")
    for name, track in zip(TRACKS, tracks, strict=True):
        if track is not None and (type(track) is not int or track < 0):
            raise Broken(f"{name!r} must be a whole number, counted from 0, got {quoted(track)}")
    if "audio" in signals and tracks[0] is not None:
        raise Broken("'audio_track' chooses a sound of the video, and the signal 'audio' replaces it; give one of them")
    span: tuple[float | None, float | None] = sample.span or (None, None)
    if sample.span and not (all(map(isfinite, sample.span)) and 0 <= sample.span[0] < sample.span[1]):
        raise Broken(f"its seconds must be 0 or more, the end behind the start, got {quoted(sample.span)}")
    path = media.path(video, sample.ending)
    beside = {name: _beside(media, named, sample.ending) for name, named in signals.items()}
    if sample.ending == "" and os.path.isdir(path / "depth") and os.path.isdir(path / "pose"):
        beside["depth"] = str(path)  # a scan whose views are posed
    return Source(path, tuple(beside.items()), tracks[0], tracks[1], *span)


def _beside(media: Media, named: Any, ending: str | None) -> Files:
    """Paths of signals among the media; looked for as the video is."""
    if isinstance(named, list):
        return tuple(_beside(media, each, ending) for each in named)  # pyright: ignore[reportReturnType]
    return None if named is None else str(media.path(named, None if ending is None else ""))


def _nameable(path: Any) -> bool:
    """Whether an operating system can have a file of this name."""
    try:
        name = os.fsencode(str(path)) if isinstance(path, str | Packed) else b""
        return bool(name) and b"\0" not in name and len(name) < 4096 and max(map(len, name.split(b"/"))) < 256
    except UnicodeEncodeError:
        return False


def names_of(data: Sets) -> str:
    """The files of some data, for messages."""
    return ", ".join(str(each.file) for each in data_sets(data))
