"""PAVE: give a frozen video LLM a new sense. `import pave` is light: torch comes with the first name that needs it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pave.errors import (
    BaseModelError,
    DataError,
    EncoderError,
    FileDamaged,
    FileError,
    JudgeError,
    MediaError,
    MediaWarning,
    PatchDamaged,
    PatchError,
    PatchFormatError,
    PatchMismatch,
    PatchNotFound,
    PaveError,
    RecipeError,
    ServerError,
    SignalError,
    TrainingError,
    UsageError,
    WriterError,
)

if TYPE_CHECKING:
    from pave.encoder import load_encoder
    from pave.evaluation.accuracy import evaluate
    from pave.evaluation.certify import certify
    from pave.evaluation.judge import Judge
    from pave.hub.catalogue import list_patches
    from pave.media.clip import Clip
    from pave.model.patched import load
    from pave.patch.file import Patch
    from pave.training.module import patch_module
    from pave.training.run import train

__version__ = "0.1.0"

__all__ = [
    "BaseModelError",
    "Clip",
    "DataError",
    "EncoderError",
    "FileDamaged",
    "FileError",
    "Judge",
    "JudgeError",
    "MediaError",
    "MediaWarning",
    "Patch",
    "PatchDamaged",
    "PatchError",
    "PatchFormatError",
    "PatchMismatch",
    "PatchNotFound",
    "PaveError",
    "RecipeError",
    "ServerError",
    "SignalError",
    "TrainingError",
    "UsageError",
    "WriterError",
    "__version__",
    "certify",
    "evaluate",
    "list_patches",
    "load",
    "load_encoder",
    "patch_module",
    "train",
]

# Public names that come with their file, when they are first asked for.
_HOMES = {
    "Clip": "pave.media.clip",
    "Judge": "pave.evaluation.judge",
    "Patch": "pave.patch.file",
    "certify": "pave.evaluation.certify",
    "evaluate": "pave.evaluation.accuracy",
    "list_patches": "pave.hub.catalogue",
    "load": "pave.model.patched",
    "load_encoder": "pave.encoder",
    "patch_module": "pave.training.module",
    "train": "pave.training.run",
}


class _Beside:
    """Finds `pave.encoders` and `pave.patches` in a checkout, where they are beside this package, not inside it."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        beside = name in ("pave.encoders", "pave.patches")
        return PathFinder.find_spec(name, [str(Path(__file__).parents[1])]) if beside else None


if not Path(__file__).with_name("encoders").is_dir():
    sys.meta_path.insert(0, _Beside)  # before the finder of an editable install, which may be of another checkout


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pave' has no attribute {name!r}")
    from pave.files.quiet import quiet_imports

    with quiet_imports():
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
