"""PAVE: give a frozen video LLM a new sense. `import pave` is light: torch comes with the first name that needs it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pave.errors import (
    BaseModelError,
    DataError,
    EncoderError,
    MediaError,
    PatchDamaged,
    PatchError,
    PatchFormatError,
    PatchMismatch,
    PatchNotFound,
    PaveError,
    RecipeError,
    SignalError,
    TrainingError,
)

if TYPE_CHECKING:
    from pave.catalogue import list_patches
    from pave.encoder import load_encoder
    from pave.evaluate import evaluate
    from pave.media import Clip
    from pave.model import load
    from pave.patch import Patch
    from pave.train import train

__version__ = "0.1.0"

__all__ = [
    "BaseModelError",
    "Clip",
    "DataError",
    "EncoderError",
    "MediaError",
    "Patch",
    "PatchDamaged",
    "PatchError",
    "PatchFormatError",
    "PatchMismatch",
    "PatchNotFound",
    "PaveError",
    "RecipeError",
    "SignalError",
    "TrainingError",
    "__version__",
    "evaluate",
    "list_patches",
    "load",
    "load_encoder",
    "train",
]

# Public names that come with their file, when they are first asked for.
_HOMES = {
    "Clip": "pave.media",
    "Patch": "pave.patch",
    "evaluate": "pave.evaluate",
    "list_patches": "pave.catalogue",
    "load": "pave.model",
    "load_encoder": "pave.encoder",
    "train": "pave.train",
}

# A wheel carries encoders/ inside this package; a checkout keeps it beside us. Same name in both.
if (_checkout := Path(__file__).parents[1]).joinpath("setup.cfg").is_file():
    __path__.append(str(_checkout))


class _FrontDoor(ModuleType):
    """`pave.train` and `pave.evaluate` are functions in files of the same name; the import system would put the
    *module* there as soon as anybody imports the file, so the door hands the function on instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pave' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _FrontDoor
