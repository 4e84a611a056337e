"""What a server is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pave.errors import UsageError

SHOWN = ("audio-playroom", "fast-playroom")  # patches of the embedded base, if none is named


@dataclass(frozen=True)
class Limits:
    """How much is taken at once."""

    rows: int = 16  # of a batch
    waiting: int = 64  # requests that are answered or wait; others are refused with 429
    readers: int = 2  # clips that are read and encoded at once
    tokens: int = 1024  # of an answer
    clip_bytes: int = 64 << 20  # of each media file
    uploads: int = 1 << 30  # bytes of all requests that are answered or wait; others are refused with 429
    clip_seconds: float = 600.0
    clip_pictures: int = 40_000
    reading: float = 120.0  # seconds for decoding a clip
    upload: float = 60.0  # seconds until a request has arrived
    fetch: float = 30.0  # seconds for the media at an address
    kept: int = 1 << 30  # bytes of features of the last clips
    prefixes: int = 2 << 30  # bytes of keys and values of the last prompts


@dataclass(frozen=True)
class Settings:
    """How a server is reached, by whom, and within which limits."""

    name: str = "playroom"  # of the base, as clients write it
    keys: frozenset[str] = frozenset()  # one of them must come with each request; none: anybody may ask
    admin: str | None = None  # the key that loads and unloads patches; None: nobody can
    hosts: frozenset[str] = frozenset()  # that media are fetched from
    folder: Path | None = None  # that files of this machine are read from
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not all(key.strip() for key in (*self.keys, *([] if self.admin is None else [self.admin]))):
            raise UsageError("a key is empty, and would let everybody in; set it, or leave the option out")


def keys_of(text: str | None) -> frozenset[str]:
    """Keys in an environment variable, separated by commas."""
    return frozenset(filter(None, (each.strip() for each in (text or "").split(","))))


def server_name(base: str) -> str:
    """The name of a base for clients: a Hub id as it is; of a folder, the last part."""
    return Path(base).resolve().name if Path(base).exists() else base


def patches_of(model: str, base: str, known: Mapping[str, object]) -> tuple[str, ...] | None:
    """The patches that a model id names, as in `base+patch+patch`; None if it is not one of this server."""
    if model == base:
        return ()
    if not model.startswith(f"{base}+"):
        return None
    names = tuple(model[len(base) + 1 :].split("+"))  # no name of a patch has a +
    return names if len({*names}) == len(names) and all(name in known for name in names) else None
