"""MSVD-QA: questions made from the captions of MSVD (Xu et al. 2017).

A list of `{"id", "video_id": number, "question", "answer"}`. `youtube_mapping.txt` beside it has the names of the
clips, lines of `<name> vid<number>`; `maps: {videos: FILE}` names another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.files.atomic import reading
from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of
from pave.text.shown import quoted

MAP = 1 << 20  # bytes of the map; the published one has 40,000


class MsvdQa(Format):
    NEEDS = needs("id video_id question answer")

    def __init__(self, options: DataSet) -> None:
        super().__init__(options)
        self.file = options.maps.get("videos") or options.file.with_name("youtube_mapping.txt")

    @cached_property
    def videos(self) -> dict[str, str]:
        """Names of clips by `vid<number>`."""
        if not self.file.is_file():
            raise self.missing(self.file, "the names of its clips", "videos")
        with reading(self.file) as file:
            lines = file.read(MAP).decode("utf-8", "replace").splitlines()
        pairs = [line.split() for line in lines if line.strip()]
        if not pairs or not all(len(pair) == 2 for pair in pairs):
            raise DataError(f"{self.file}: must have lines of '<name> vid<number>'; give MSVD-QA's own file")
        return {number: name for name, number in pairs}

    def samples(self, record: Record) -> Iterator[Sample]:
        value, number = record.value, f"vid{text_of(record.value, 'video_id')}"
        if number not in self.videos:
            raise Broken(f"{quoted(number)} is not one of the {len(self.videos):,} names in {self.file.name}")
        turns, facts = [(text_of(value, "question"), text_of(value, "answer"))], others(value, "question", "answer")
        yield Sample(self.videos[number], turns, facts=facts, ending=".avi")


READER = MsvdQa
