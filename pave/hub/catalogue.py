"""The catalogue: names -> patches. In: a name. Out: the folder with its recipe, its card and, if trained, its file.

`patches/` is data: one folder per patch with `patch.yaml` and `README.md`, and `patch.safetensors` for patches small
enough to ship. Opens no weights and knows nothing of tensors, so listing costs milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pave.errors import PatchNotFound, nearest
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe, read_recipe
from pave.text.shown import Lines

RECIPE = "patch.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")  # of a folder; longer ones no file system takes


@dataclass(frozen=True, kw_only=True, repr=False)
class CatalogueEntry(Lines):
    """One patch of the catalogue, as its recipe describes it."""

    name: str
    folder: Path
    recipe: Recipe

    @property
    def file(self) -> Path | None:
        """The trained patch, or None when only the recipe is shipped."""
        file = self.folder / WEIGHTS
        return file if file.is_file() else None

    def lines(self) -> list[str]:
        trained = "official checkpoint, converted when applied" if self.recipe.released else "recipe: train it"
        trained = f"{self.file.stat().st_size:,} bytes" if self.file else trained
        description = " ".join(self.recipe.description.split())
        return [f"{self.name}: {description} [{', '.join(self.recipe.senses)}; {trained}]"]


def folder() -> Path:
    """The folder of the catalogue: inside the package (wheel), or next to it (checkout)."""
    here = Path(__file__).parents[1]
    inside = here / "patches"
    return inside if inside.is_dir() else here.parent / "patches"


def names() -> list[str]:
    """Names of the catalogue, in alphabetical order."""
    return sorted(recipe.parent.name for recipe in folder().glob(f"*/{RECIPE}"))


def named(source: str | Path) -> bool:
    """Whether this is a catalogue name. It takes precedence over a local folder; `./name` and a Path are paths."""
    return isinstance(source, str) and NAME.fullmatch(source) is not None and (folder() / source / RECIPE).is_file()


def folder_of(name: str) -> Path:
    """The folder of the patch called `name`."""
    if not named(name):
        remedy = nearest(name, names(), "pass a folder or a file")
        raise PatchNotFound(name, "no patch with this name in the catalogue", remedy)
    return folder() / name


def file_of(source: str | Path) -> Path:
    """The local file of a patch, from a catalogue name, a folder, or the file itself."""
    path = Path(source)
    if named(source):
        file = folder_of(str(source)) / WEIGHTS
        if not file.is_file():
            raise PatchNotFound(
                source, "the catalogue has only its recipe, no trained file", f"train it: pave-train {source}"
            )
        return file
    if os.path.exists(path):
        return path / WEIGHTS if path.is_dir() and path.name != WEIGHTS else path
    remedy = nearest(str(source), names(), "pass a folder or a file")
    raise PatchNotFound(source, "no patch, folder or file with this name", remedy)


def recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe, from a catalogue name, a folder, or the file itself."""
    path = os.path.exists(source) or Path(source).suffix in (".yaml", ".yml")
    return read_recipe(folder_of(str(source)) if named(source) or not path else source, overrides)


def list_patches() -> list[CatalogueEntry]:
    """Every patch of the catalogue, with its recipe."""
    return [CatalogueEntry(name=name, folder=folder_of(name), recipe=read_recipe(folder_of(name))) for name in names()]
