"""The user's aliases of patches.

In: an alias. Out: its target: a catalogue name, a path, or a Hub repo.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pave.errors import FileError, PatchError, PatchNotFound, nearest
from pave.files.atomic import read_bytes, write_text
from pave.hub import catalogue
from pave.hub.client import repo_of


def aliases() -> dict[str, str]:
    """The user's aliases: alias -> target."""
    try:
        found = json.loads(read_bytes(_alias_file()))
    except (FileError, ValueError):
        return {}
    return {str(name): str(target) for name, target in found.items()} if isinstance(found, dict) else {}


def set_alias(name: str, target: str | None) -> None:
    """Set the alias `name` for `target`; None deletes it."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name in catalogue.names():
        raise PatchError(
            name,
            "cannot be an alias",
            "use lower-case letters, digits, dots, dashes and underscores, and no catalogue name",
        )
    known = aliases()
    if target is None and known.pop(name, None) is None:
        raise PatchNotFound(name, "is not an alias", nearest(name, known))
    if target is not None:
        target = known.get(target, target)
        if not catalogue.named(target) and os.path.exists(target):
            target = str(Path(target).resolve())
        elif not catalogue.named(target):
            repo_of(target, [*catalogue.names(), *known])
        known[name] = target
    write_text(_alias_file(), json.dumps(known, indent=1, sort_keys=True))


def _alias_file() -> Path:
    return Path(os.environ.get("PAVE_HOME") or Path.home() / ".config" / "pave") / "aliases.json"
