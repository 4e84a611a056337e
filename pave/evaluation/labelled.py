"""The labelled set of a certificate: its questions, and what names it.

In: a data file, examples, or what makes a set of the Playroom. Out: examples; a `LabelledSet` with a hash of the
content of questions and files, which does not depend on where they are. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pave.data import Example, Refuse, Source
from pave.data_sets import DataSet
from pave.errors import UsageError
from pave.evaluation.result import references_of
from pave.features.files import inside
from pave.patch.certificate import LabelledSet, PlayroomSet
from pave.playroom.writer import write_clips
from pave.readers.questions import Data, names_of, read_data


def labelled(data: Data | PlayroomSet, folder: Path | None, refuse: Refuse) -> list[Example]:
    """The questions; those of a Playroom set are written to a folder first."""
    if not isinstance(data, PlayroomSet):
        return read_data(data, refuse)
    if folder is None:
        raise UsageError("a set of the Playroom is written as files; give folder=")
    return read_data(write_clips(folder / "clips", data.clips, data.seed, "test", data.channels), refuse)


def named(data: Any, asked: Sequence[Example], key: str, types: Sequence[str]) -> LabelledSet:
    """What names a set. key: of a line, that says the type of its question; types: of each question."""
    contents = {source: _content(source) for source in dict.fromkeys(example.source for example in asked)}
    lines = [
        [e.question, references_of(e), e.history, kind, contents[e.source]]
        for e, kind in zip(asked, types, strict=True)
    ]
    file = names_of(data) if isinstance(data, Path | DataSet) else data if isinstance(data, str) else ""
    return LabelledSet(
        name=Path(file).name[:200],
        sha256=sha256(json.dumps(lines).encode()).hexdigest(),
        playroom=data if isinstance(data, PlayroomSet) else None,
        questions=len(asked),
        clips=len(contents),
        types=key,
    )


def _content(source: Source) -> list[str]:
    """sha256 of each file of a clip, or of those in a folder; of a clip in memory, its name."""
    found = [json.dumps([[name for name, _ in source.signals], source.tracks])]
    for path in source.files:
        files = inside(path) if path.is_dir() else [path]
        for file in files:
            digest = sha256()
            if file.is_file():
                with file.open("rb") as stream:
                    while piece := stream.read(1 << 20):
                        digest.update(piece)
            else:
                digest.update(file.name.encode())
            found.append(digest.hexdigest())
    return found
