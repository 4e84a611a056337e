"""What an applied patch says of itself, and what its certificate shows.

In: the report of a patch. Out: both as Markdown, from the file that was applied; no path of this machine, and nothing
is downloaded. Knows nothing of HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pave.errors import PaveError
from pave.hub.card import card, listens
from pave.hub.locate import PatchLocation, downloaded, locate
from pave.patch.certificate import standing
from pave.patch.file import Patch
from pave.patch.report import PatchReport

CARD = "README.md"
GONE = "No card: the file of this patch is not here any more, or has changed since it was applied."


def card_of(report: PatchReport) -> dict[str, Any]:
    """The card of a patch, and its certificate, whose `kind` is that of its `Standing`."""
    try:
        place = _place(report.source)
        patch = None if place is None else place.load()
    except PaveError:
        place = patch = None
    if place is None or patch is None or patch.sha256 != report.sha256:
        return {"card": GONE, "certificate": {"kind": "none", "text": ""}}
    proof = "\n".join(listens(patch)).strip()
    return {"card": _card(patch, place), "certificate": {"kind": standing(patch).kind, "text": proof}}


def _place(source: str) -> PatchLocation | None:
    """Where the file is on this machine; of the Hub, in its cache."""
    cached = next((place for place in downloaded() if place.source == source), None)
    return cached or (locate(source) if "@" not in source or Path(source).exists() else None)


def _card(patch: Patch, place: PatchLocation) -> str:
    """The card beside the file, or one from the patch's own facts; without the front matter for the Hub, and without
    the certificate."""
    beside = place.path.parent / CARD
    text = card(patch, patch.config.name) if place.repo or not beside.is_file() else beside.read_text("utf-8")
    head, mark, rest = text.partition("\n---\n")
    text = rest if mark and head.startswith("---") else text
    return text.replace("\n".join(listens(patch)), "")
