"""Media files -> clips. The public names are imported lazily, on first access.

Importing this package imports nothing heavy: the decoding process needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pave.media.arrays import pictures_of, size_of, sound_of, tensor_of, times_of
    from pave.media.clip import Clip, Report, Signal, decode_many, signals_of
    from pave.media.pixels import preprocess, scaled
    from pave.media.resampling import Resampling, resample, sinc_kernel

__all__ = [
    "Clip",
    "Report",
    "Resampling",
    "Signal",
    "decode_many",
    "pictures_of",
    "preprocess",
    "resample",
    "scaled",
    "signals_of",
    "sinc_kernel",
    "size_of",
    "sound_of",
    "tensor_of",
    "times_of",
]

_HOMES = {
    "arrays": ("LOUDEST", "pictures_of", "size_of", "sound_of", "tensor_of", "times_of"),
    "clip": ("TIMEOUT", "Clip", "Report", "Signal", "decode_many", "signals_of"),
    "pixels": ("preprocess", "scaled"),
    "resampling": ("MAX_KERNEL", "SINC_ROLLOFF", "SINC_WIDTH", "Resampling", "resample", "sinc_kernel"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"pave.media.{home}"), name)
    raise AttributeError(f"module 'pave.media' has no attribute {name!r}")
