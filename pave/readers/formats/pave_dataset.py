"""PAVEDataset: the training files of the PAVE paper's authors, with maps from ids to files.

LLaVA's layout, in which `video` is an id. `maps: {videos: FILE}` names the authors' JSON of id to path, relative to
`media`. Ids are cut as the authors do (libs/dataset/base_dataset.py): the name behind the last slash, 13 characters of
one that has "Scene", and nothing from the first dot on. An id that the map lacks stays as it is, and its clip is told
as missing. Their map of features is not needed: `pave encode --published` finds the files by the name of the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.formats.llava import Llava
from pave.readers.records import Record, whole_object
from pave.readers.sample import Broken, Sample
from pave.text.shown import quoted

SCENE, CHARACTERS = "Scene", 13


class PaveDataset(Llava):
    NEEDS = ()  # not told from LLaVA's by its keys: it must be named

    def __init__(self, options: DataSet) -> None:
        super().__init__(options)
        if "videos" not in options.maps:
            raise DataError(f"{options.file}: its videos are ids; name the map to files with maps: {{videos: FILE}}")
        self.videos: dict[str, Any] = whole_object(options.maps["videos"], "the map of videos")

    def samples(self, record: Record) -> Iterator[Sample]:
        for sample in super().samples(record):
            path = self.videos.get(identifier(str(sample.video)), sample.video)
            if not isinstance(path, str):
                raise Broken(f"the map of videos has {quoted(path)} for {quoted(sample.video)}, not a path")
            yield replace(sample, video=path, facts={**sample.facts, "video": sample.video})


def identifier(video: str) -> str:
    """The id under which the authors' maps have a video."""
    name = video.rpartition("/")[2]
    return (name[:CHARACTERS] if SCENE in name else name).partition(".")[0]


READER = PaveDataset
