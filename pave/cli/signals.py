"""Signals on the command line: `--signal NAME=PATH`.

In: the options. Out: keyword arguments of `model.ask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any


def signals_of(options: Sequence[str], timeout: float | None) -> dict[str, Any]:
    """Signals by name, from NAME=PATH: a path, a list of paths (a repeated name; always for views), or sound (audio),
    read within `timeout`."""
    from inspect import signature

    from pave.errors import SignalError
    from pave.model.patched import PatchedModel

    # ask() takes signals as keyword arguments, so a signal cannot be named like one of its parameters.
    reserved = signature(PatchedModel.ask).parameters
    named: dict[str, list[str]] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise SignalError(f"--signal {option}: write NAME=PATH, for example imu=ride.npy")
        if name in reserved:
            raise SignalError(
                f"--signal {option}: {name} is not a signal; name one that a patch reads, for example imu or views"
            )
        named.setdefault(name, []).append(path)
    readers: dict[str, Any] = {"audio": partial(_sound, timeout=timeout), "views": list}
    return {name: readers.get(name, _one_or_list)(paths) for name, paths in named.items()}


def _one_or_list(paths: list[str]) -> str | list[str]:
    return paths if len(paths) > 1 else paths[0]


def _sound(paths: list[str], timeout: float | None) -> Any:
    """The one file with sound."""
    from pave.errors import SignalError
    from pave.media.clip import sound

    if len(paths) > 1:
        raise SignalError(f"--signal audio= is given {len(paths)} times; give one file")
    return sound(paths[0], timeout or "auto")
