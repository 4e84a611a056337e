"""The user's aliases of patches.

In: an alias. Out: its target: a catalogue name, a path, or a Hub repo.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pave.errors import PatchError, PatchNotFound, nearest
from pave.hub import catalogue
from pave.hub.client import repo_of


def aliases() -> dict[str, str]:
    """The user's aliases: alias -> target."""
    try:
        found = json.loads(_alias_file().read_text("utf-8"))
    except (OSError, ValueError):
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
    from pave.files.atomic import replacing

    with replacing(_alias_file()) as file:
        file.write(json.dumps(known, indent=1, sort_keys=True).encode())


def _alias_file() -> Path:
    return Path(os.environ.get("PAVE_HOME") or Path.home() / ".config" / "pave") / "aliases.json"
