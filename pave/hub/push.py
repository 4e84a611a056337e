"""Uploading a patch to the Hub: card and file in one commit, then verified by download.

In: a patch and the name of a repo. Out: a `Pushed`, with the commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as the client's version has it
)

from pave.errors import PatchError
from pave.files.locks import scratch
from pave.hub.card import OURS, card, refuse_private
from pave.hub.client import TIMEOUT, download, hub_errors
from pave.hub.locate import PatchLocation, locate
from pave.patch.filenames import HUB_NAME, WEIGHTS

if TYPE_CHECKING:  # torch is imported when a patch is opened, not when its name is resolved
    from pave.patch.file import Patch

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, uploaded."""

    repo: str
    commit: str  # empty for a dry run
    files: Mapping[str, int]  # sizes in bytes by name
    card: str
    url: str = ""
    kept_card: bool = False


def push(
    source: str | Path | Patch,
    repo: str,
    *,
    private: bool = False,
    example: Mapping[str, Any] | None = None,
    message: str = "",
    dry_run: bool = False,
) -> Pushed:
    """Upload a patch: card and file in one commit. A card that a user has edited is kept."""
    if not HUB_NAME.fullmatch(repo) or "@" in repo:
        raise PatchError(repo, "is not a repo name of the Hub", "pass user/repo")
    patch = locate(source).load() if isinstance(source, str | Path) else source
    text = card(patch, repo, example)
    with scratch() as folder:
        data = patch.save(folder / WEIGHTS).read_bytes()
    refuse_private(text + patch.text + json.dumps(patch.certificate), repo)
    files = {CARD: len(text.encode()), WEIGHTS: len(data)}
    if dry_run:
        return Pushed(repo, "", files, text)
    api = HfApi()
    with hub_errors(repo, None):
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        head = api.model_info(repo, timeout=TIMEOUT, files_metadata=True)
        kept = _foreign_card(repo, head)
        added = [] if kept else [CommitOperationAdd(CARD, text.encode())]
        added.append(CommitOperationAdd(WEIGHTS, data))
        title = message or f"{patch.config.name}, sha256 {patch.sha256[:16]}"
        try:
            commit = api.create_commit(repo, added, commit_message=title, parent_commit=head.sha).oid
        except HTTPError:  # the response was lost: the commit may exist
            commit = api.model_info(repo, timeout=TIMEOUT).sha or ""
            if commit == head.sha:
                raise
    back = PatchLocation(Path(download(repo, WEIGHTS, commit)), repo, repo=repo, commit=commit).load()
    if back.sha256 != patch.sha256:
        raise PatchError(repo, f"commit {commit[:12]} has another patch than the one pushed", "push again")
    return Pushed(repo, commit, files, text, url, kept)


def _foreign_card(repo: str, head: Any) -> bool:
    """Whether the repo has a card that a user has edited, without the line that PAVE writes."""
    if CARD not in {file.rfilename for file in head.siblings or []}:
        return False
    return OURS not in Path(download(repo, CARD, head.sha)).read_text("utf-8")
