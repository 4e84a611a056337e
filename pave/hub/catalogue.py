"""The catalogue: names -> patches. In: a name. Out: the folder with its recipe, its card and, once trained, its file.

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

RECIPE = "patch.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")  # of a folder; longer ones no file system takes


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One patch of the catalogue, as its recipe describes it."""

    name: str
    folder: Path
    recipe: Recipe

    @property
    def file(self) -> Path | None:
        """The trained patch, or None when only the recipe is shipped."""
        file = self.folder / WEIGHTS
        return file if file.is_file() else None

    def __str__(self) -> str:
        trained = (
            "its authors' checkpoint, converted when it is applied" if self.recipe.released else "recipe: train it"
        )
        trained = f"{self.file.stat().st_size:,} bytes" if self.file else trained
        return f"{self.name}: {self.recipe.description} [{', '.join(self.recipe.senses)}; {trained}]"


def folder() -> Path:
    """Where the catalogue lies: inside the package (wheel), or beside it (checkout)."""
    here = Path(__file__).parents[1]
    inside = here / "patches"
    return inside if inside.is_dir() else here.parent / "patches"


def names() -> list[str]:
    """Names of the catalogue, in alphabetical order."""
    return sorted(recipe.parent.name for recipe in folder().glob(f"*/{RECIPE}"))


def named(source: str | Path) -> bool:
    """Whether this is a name of the catalogue, whatever lies in the current folder: `./name` and a Path are paths."""
    return isinstance(source, str) and NAME.fullmatch(source) is not None and (folder() / source / RECIPE).is_file()


def find(name: str) -> Path:
    """The folder of the patch called `name`."""
    if not named(name):
        remedy = f"{nearest(name, names())}; or give a folder or a file"
        raise PatchNotFound(name, "no patch of this name in the catalogue", remedy)
    return folder() / name


def locate(source: str | Path) -> Path:
    """The file of a patch on this machine: of a name of the catalogue, of a folder, or the file itself."""
    path = Path(source)
    if named(source):
        file = find(str(source)) / WEIGHTS
        if not file.is_file():
            raise PatchNotFound(
                source, "the catalogue has its recipe, but no trained file", f"train it: pave-train {source}"
            )
        return file
    if path.exists():
        return path / WEIGHTS if path.is_dir() and path.name != WEIGHTS else path
    remedy = f"{nearest(str(source), names())}; or give a folder or a file"
    raise PatchNotFound(source, "no patch, folder or file of this name", remedy)


def recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a name of the catalogue, of a folder, or the file itself."""
    path = os.path.exists(source) or Path(source).suffix in (".yaml", ".yml")
    return read_recipe(find(str(source)) if named(source) or not path else source, overrides)


def list_patches() -> list[CatalogueEntry]:
    """Every patch of the catalogue, with its recipe."""
    return [CatalogueEntry(name=name, folder=find(name), recipe=read_recipe(find(name))) for name in names()]
