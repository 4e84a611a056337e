"""What an applied patch says of itself, and what its certificate shows.

In: the report of a patch. Out: its card as Markdown, and its certificate as lines, from the file that was applied; no
path of this machine, and nothing is downloaded. Knows nothing of HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pave.errors import PaveError
from pave.hub.card import card
from pave.hub.locate import PatchLocation, downloaded, locate
from pave.patch.certificate import standing
from pave.patch.file import Patch
from pave.patch.report import PatchReport

CARD = "README.md"
GONE = "its file is not here any more, or has changed since it was applied"


def card_of(report: PatchReport) -> dict[str, Any]:
    """The card and the certificate of a patch; `kind` of a certificate: certified, refused, void, or none."""
    patch, text = _found(report)
    if patch is None:
        return {"card": None, "certificate": {"kind": "none", "why": GONE, "lines": []}}
    found = standing(patch)
    lines = [] if found.certificate is None else str(found.certificate).splitlines()
    return {"card": text, "certificate": {"kind": found.kind, "why": found.why, "lines": lines}}


def _found(report: PatchReport) -> tuple[Patch | None, str]:
    """The patch as it was applied, and its card without the front matter for the Hub."""
    try:
        place = _place(report.source)
        patch = None if place is None else place.load()
    except PaveError:
        return None, ""
    if place is None or patch is None or patch.sha256 != report.sha256:
        return None, ""
    beside = place.path.parent / CARD
    own = not place.repo and beside.is_file()
    return patch, _body(beside.read_text("utf-8") if own else card(patch, report.name))


def _place(source: str) -> PatchLocation | None:
    """Where the file is on this machine; of the Hub, in its cache."""
    cached = next((place for place in downloaded() if place.source == source), None)
    return cached or (locate(source) if "@" not in source or Path(source).exists() else None)


def _body(text: str) -> str:
    """Markdown without YAML front matter."""
    head, mark, rest = text.removeprefix("---\n").partition("\n---\n")
    return rest if text.startswith("---\n") and mark else text
