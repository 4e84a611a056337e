"""Every error that PAVE raises on purpose. Each message says what was wrong (with the numbers) and what to do.

PaveError
├── MediaError          a media file cannot be read, or lacks the stream that is needed
├── EncoderError        an encoder is unknown, lacks its weights, or got a signal it cannot read
├── BaseModelError      a base model is unknown or does not offer what a patch needs
├── RecipeError         a recipe has an unknown key or an impossible value
├── DataError           a line of a data file is broken; the message has its number
├── TrainingError       a run cannot go on (not a number, no data, a folder of another run)
├── SignalError         a side signal has the wrong shape, is not finite or is on no clock
├── UsageError          a function was called with an impossible value; a ValueError, too
└── FileError           a file cannot be opened, read or written; names file, cause and remedy
    ├── FileDamaged         its content is not what a file of its kind holds
    └── PatchError          a patch cannot be used
        ├── PatchNotFound       no patch of this name, folder or file
        ├── PatchDamaged        bytes, header or tensors are not what the file says of itself; a FileDamaged, too
        ├── PatchFormatError    written in another or newer format
        └── PatchMismatch       made for another base, or its tensors do not fit
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class PaveError(Exception):
    """Root of the tree: catch this to catch whatever PAVE refuses."""


class MediaError(PaveError):
    """A media file cannot be read, or lacks the stream that is needed."""


class EncoderError(PaveError):
    """An encoder is unknown, lacks its weights, or got a signal it cannot read."""


class BaseModelError(PaveError):
    """A base model is unknown or does not offer what a patch needs."""


class RecipeError(PaveError):
    """A recipe has an unknown key or an impossible value."""


class DataError(PaveError):
    """A line of a data file is broken; the message has its number."""


class TrainingError(PaveError):
    """A training run cannot go on."""


class SignalError(PaveError):
    """A side signal has the wrong shape, is not finite or is on no clock."""


class UsageError(PaveError, ValueError):
    """A function was called with an impossible value."""


class FileError(PaveError):
    """A file cannot be opened, read or written: says which file, the cause and the remedy."""

    def __init__(self, file: str | Path, cause: str, remedy: str) -> None:
        super().__init__(f"{file}: {cause}; {remedy}")
        self.file, self.cause, self.remedy = str(file), cause, remedy

    def __reduce__(self) -> tuple:  # a worker process hands the error over whole
        return type(self), (self.file, self.cause, self.remedy)


class FileDamaged(FileError):
    """The content is not what a file of its kind holds."""


class PatchError(FileError):
    """A patch cannot be used."""


class PatchNotFound(PatchError):
    """No patch of this name, folder or file."""


class PatchDamaged(PatchError, FileDamaged):
    """Bytes, header or tensors are not what the file says of itself."""


class PatchFormatError(PatchError):
    """Written in another or newer format."""


class PatchMismatch(PatchError):
    """Made for another base, or its tensors do not fit."""


@contextmanager
def raised_as(kind: type[PaveError] | None = None, file: str | Path = "", remedy: str = "") -> Iterator[None]:
    """Raise a FileError of the block as another kind of error. `file` and `remedy` take the place of its own.

    kind: None keeps its own."""
    try:
        yield
    except FileError as error:
        kind, words = kind or type(error), (str(file or error.file), error.cause, remedy or error.remedy)
        raise (kind(*words) if issubclass(kind, FileError) else kind("{}: {}; {}".format(*words))) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The half sentence that helps after a wrong name: the nearest known one, or all of them."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
