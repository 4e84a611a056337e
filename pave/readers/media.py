"""Where the media of a data set are: paths in its folder, and files that are named without folder and ending.

In: the names that a data file has. Out: paths. Media packed in shards are written to the folder first. Nothing is
opened here.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pave.errors import DataError
from pave.readers.records import Packed

MOST = 1_000_000  # names that are looked at in a folder of media


class Media:
    """The folder of a data set's media. `unpacks`: whether packed media may be written to it."""

    def __init__(self, folder: Path, unpacks: bool = True) -> None:
        self.folder, self.unpacks = folder, unpacks
        self.packed: set[Path] = set()  # media that were not unpacked

    def path(self, name: str | Packed, ending: str | None = None) -> Path:
        """The path of a medium. With `ending`, `name` may lack its folder and its ending, or have another folder: it is
        looked for, and if it is nowhere, that ending is taken."""
        if not isinstance(name, str):
            if self.unpacks:
                return name.unpack(self.folder)
            self.packed.add(self.folder / str(name))
            return self.folder / str(name)
        path = self.folder / name
        if ending is None or os.path.exists(path):
            return path
        found = self._known.get(os.path.basename(name), [])
        found = [each for each in found if ending and each.suffix.lower() == ending] or found
        if len(found) > 1:
            two = " and ".join(str(each.relative_to(self.folder)) for each in found[:2])
            raise DataError(f"{self.folder}: {name} is {two}; remove one, or name a folder nearer to yours with media:")
        return found[0] if found else self.folder / (name if name.endswith(ending) else f"{name}{ending}")

    @cached_property
    def _known(self) -> dict[str, list[Path]]:
        """Files and folders in the folder and those below, by name and by name without ending."""
        known: dict[str, list[Path]] = {}
        count, seen = 0, set[str]()
        for place, folders, files in os.walk(self.folder, followlinks=True):
            if (real := os.path.realpath(place)) in seen:  # a link back, or a second one to the same folder
                folders.clear()
                continue
            seen.add(real)
            count += len(folders) + len(files)
            if count > MOST:
                raise DataError(f"{self.folder}: has over {MOST:,} files; name a folder nearer to yours with media:")
            for name in (*folders, *files):
                for key in {name, os.path.splitext(name)[0]}:
                    known.setdefault(key, []).append(Path(place, name))
        return known
