"""Every error that PAVE raises on purpose. Each message states the cause (with numbers) and the remedy.

PaveError
├── MediaError          a media file cannot be read, or lacks the stream that is needed
├── EncoderError        an encoder is unknown, has no weights, or cannot read its input
├── BaseModelError      a base model is unknown or does not support what a patch needs
├── RecipeError         a recipe has an unknown key or an invalid value
├── DataError           a line of a data file is invalid; the message has its number
├── TrainingError       a run cannot continue (NaN, no data, a folder of another run)
├── SignalError         a side signal has the wrong shape, non-finite values or no times
├── JudgeError          a judge of answers cannot be reached, or refuses
├── WriterError         a writer of instructions cannot be reached, or refuses
├── ServerError         a vLLM server cannot be reached, or refuses
├── UsageError          a function was called with an invalid value; also a ValueError
└── FileError           a file cannot be opened, read or written; names file, cause and remedy
    ├── FileDamaged         its content is not valid for its file type
    └── PatchError          a patch cannot be used
        ├── PatchNotFound       no patch with this name, folder or file
        ├── PatchDamaged        bytes, header or tensors contradict the file's metadata; also a FileDamaged
        ├── PatchFormatError    written in another or a newer format
        └── PatchMismatch       made for another base, or its tensors do not fit

MediaWarning            a warning: a media file is damaged, cut short or ambiguous, and was read nevertheless
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from pave.text.shown import shortened, shown


class PaveError(Exception):
    """Root of the tree: catch this to catch every error of PAVE. Its message is one line that is safe to print,
    whatever a file name or a value in it contains (pave/text/shown.py)."""

    def __str__(self) -> str:
        return shown(shortened(super().__str__()))


class MediaError(PaveError):
    """A media file cannot be read, or lacks the stream that is needed."""


class EncoderError(PaveError):
    """An encoder is unknown, has no weights, or cannot read its input."""


class BaseModelError(PaveError):
    """A base model is unknown or does not support what a patch needs."""


class RecipeError(PaveError):
    """A recipe has an unknown key or an invalid value."""


class DataError(PaveError):
    """A line of a data file is invalid; the message has its number."""


class TrainingError(PaveError):
    """A training run cannot continue."""


class SignalError(PaveError):
    """A side signal has the wrong shape, non-finite values or no times."""


class JudgeError(PaveError):
    """A judge of answers cannot be reached, or refuses."""


class WriterError(PaveError):
    """A language model that writes instructions cannot be reached, or refuses."""


class ServerError(PaveError):
    """A vLLM server cannot be reached, or refuses."""


class UsageError(PaveError, ValueError):
    """A function was called with an invalid value."""


class FileError(PaveError):
    """A file cannot be opened, read or written; the message names the file, the cause and the remedy."""

    def __init__(self, file: str | Path, cause: str, remedy: str) -> None:
        super().__init__(f"{file}: {cause}; {remedy}")
        self.file, self.cause, self.remedy = str(file), cause, remedy

    def __reduce__(self) -> tuple:  # pickle, as worker processes use it, would pass the message alone to __init__
        return type(self), (self.file, self.cause, self.remedy)


class FileDamaged(FileError):
    """The content is not valid for the file type."""


class PatchError(FileError):
    """A patch cannot be used."""


class PatchNotFound(PatchError):
    """No patch with this name, folder or file."""


class PatchDamaged(PatchError, FileDamaged):
    """Bytes, header or tensors contradict the file's metadata."""


class PatchFormatError(PatchError):
    """Written in another or a newer format."""


class PatchMismatch(PatchError):
    """Made for another base, or its tensors do not fit."""


class MediaWarning(UserWarning):
    """A media file is damaged, cut short or ambiguous, and was read nevertheless."""


@contextmanager
def raised_as(kind: type[PaveError] | None = None, file: str | Path = "", remedy: str = "") -> Iterator[None]:
    """Re-raise a FileError of the block as another type. `file` and `remedy` replace those of the error.

    kind: None keeps the type."""
    try:
        yield
    except FileError as error:
        kind, parts = kind or type(error), (str(file or error.file), error.cause, remedy or error.remedy)
        raise (kind(*parts) if issubclass(kind, FileError) else kind("{}: {}; {}".format(*parts))) from None


def nearest(name: str, known: Iterable[str], also: str = "") -> str:
    """The remedy for a wrong name: the nearest known name, or all of them. also: another remedy, such as "pass a
    file"."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?" + (f" Or {also}" if also else "")
    return f"known: {', '.join(names) or 'none'}" + (f"; or {also}" if also else "")
