"""Data sets, as the keys of `data` in a recipe: questions in files, held-out ones, or clips of the Playroom.

In: parsed YAML, or options of the command line. Out: frozen values. Knows nothing of what is in the files, and of
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pave.config import Short
from pave.files.validation import Config

# The channels that carry the answers to the questions of the Playroom.
AskedChannel = Literal[
    "video",
    "audio",
    "audio+video",
    "order",
    "fast",
    "fast+video",
    "audio+fast",
    "audio+fast+video",
    "views",
    "views+video",
    "depth",
    "imu",
    "imu+video",
    "speech",
    "speech+video",
    "match",
    "conflict",
]
Channel = Literal[AskedChannel, "caption"]  # caption: all channels, for training


class PlayroomData(Config):
    """Clips of the synthetic world, written as mp4 files before training."""

    clips: Annotated[int, Field(ge=8)] = 1200
    seed: int = 0
    channels: tuple[Channel, ...] = ("video", "audio", "audio+video", "order", "caption")

    @model_validator(mode="after")
    def _asks(self) -> PlayroomData:
        if not set(self.channels) - {"caption"}:
            raise ValueError("channels has only caption; add one more, for held-out questions")
        return self


# Each is omitted from a resolved recipe if it is the default, so that earlier recipes keep their hashes.
Limit = Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], Field(exclude_if=lambda limit: limit == "auto")]
Cache = Annotated[Literal["auto", "keep", "none"], Field(exclude_if=lambda cache: cache == "auto")]
Budget = Annotated[Annotated[float, Field(gt=0)] | None, Field(exclude_if=lambda budget: budget is None)]
Strict = Annotated[bool, Field(exclude_if=lambda strict: not strict)]


class DataSet(Config):
    """Questions in a file and how they are read, in data.train and data.val. Paths in it are relative to its folder."""

    file: Path  # in any format of `pave data formats`; a pattern, as part-*.tar, names several
    format: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)] | None = None  # None: by its content
    media: Path | None = None  # folder of the media; None: the file's own
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0  # how often each clip comes in an epoch
    per_clip: Annotated[int, Field(ge=1)] | None = None  # use only the first entries of each clip
    turns: Literal["separate", "dialogue", "last"] | None = None  # what a turn sees; null: as the format is made for
    question: Annotated[str, Field(min_length=1, max_length=4_096)] | None = None  # asked where the data has none
    columns: Mapping[str, Short] = Field(default={})  # your names of columns: {question: prompt, answer: reply}
    maps: Mapping[str, Path] = Field(default={})  # further files of a format, by its names for them


def _shape(value: Any) -> str:
    """Which of the forms of `Sets` a value has."""
    return (
        "(set)" if isinstance(value, Mapping | DataSet) else "(sets)" if isinstance(value, list | tuple) else "(file)"
    )


FileOrSet = Annotated[Annotated[Path, Tag("(file)")] | Annotated[DataSet, Tag("(set)")], Discriminator(_shape)]
Sets = Annotated[
    Annotated[Path, Tag("(file)")]
    | Annotated[DataSet, Tag("(set)")]
    | Annotated[tuple[FileOrSet, ...], Field(min_length=1), Tag("(sets)")],
    Discriminator(_shape),
]


def data_sets(given: Sets | None) -> tuple[DataSet, ...]:
    """The data sets that a recipe names in one of three forms: a file, a mapping with `file`, a list of these."""
    each = given if isinstance(given, tuple) else () if given is None else (given,)
    return tuple(one if isinstance(one, DataSet) else DataSet(file=one) for one in each)


class DataConfig(Config):
    """Either your own files, or clips of the Playroom."""

    train: Sets | None = None  # a file, {file: ..., format: ..., ...}, or a list of these
    val: Sets | None = None  # held-out questions, likewise
    playroom: PlayroomData | None = None
    features: tuple[Path, ...] = ()  # folders of feature files from `pave encode`, used instead of encoding
    # Text file, one question a line, for `train.keep`; None: the built-in list. Omitted from older recipes likewise.
    keep: Annotated[Path | None, Field(exclude_if=lambda file: file is None)] = None
    timeout: Limit = "auto"  # seconds to decode a clip; auto: by its length
    # What is cached of the pictures. Both are omitted from older recipes likewise.
    cache: Cache = "auto"  # keep: features of the vision tower; none: what it reads; auto: keep if that fits
    budget: Budget = None  # GB on disk for features of the vision tower; None: nine tenths of what is free
    strict: Strict = False  # stop at broken records and unreadable clips, with their lines, instead of leaving them out

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.train is None) == (self.playroom is None):
            raise ValueError(
                "data needs exactly one of train: FILE and playroom: {...}; data.playroom=null disables the Playroom"
            )
        if self.playroom and self.val:
            raise ValueError("data.playroom generates its own held-out questions; remove val")
        return self
