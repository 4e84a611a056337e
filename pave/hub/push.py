"""A patch onto the Hub: repo, card and file in one commit, then read back.

In: a patch and the name of a repo. Out: a `Pushed`, with the commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
)
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as the client's version has it
)

from pave.errors import PatchError
from pave.hub.card import OURS, card, refuse_private
from pave.hub.client import TIMEOUT, download, in_our_words
from pave.hub.locate import PatchLocation, locate
from pave.patch.filenames import HUB_NAME, WEIGHTS

if TYPE_CHECKING:  # torch comes when a patch is opened, not when its name is looked up
    from pave.patch.file import Patch

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, put on the Hub."""

    repo: str
    commit: str  # empty for a dry run
    files: Mapping[str, int]  # bytes by name
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
    """Put a patch on the Hub: repo, card and file, in one commit. A card that somebody has made their own is kept."""
    if not HUB_NAME.fullmatch(repo) or "@" in repo:
        raise PatchError(repo, "is no name of a repo on the Hub", "give user/repo")
    patch = locate(source).load() if isinstance(source, str | Path) else source
    text = card(patch, repo, example)
    with TemporaryDirectory() as folder:
        data = patch.save(Path(folder) / WEIGHTS).read_bytes()
    refuse_private(text + patch.text + json.dumps(patch.certificate), repo)
    files = {CARD: len(text.encode()), WEIGHTS: len(data)}
    if dry_run:
        return Pushed(repo, "", files, text)
    api = HfApi()
    with in_our_words(repo, None):
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        head = api.model_info(repo, timeout=TIMEOUT, files_metadata=True)
        kept = _foreign_card(repo, head)
        added = [] if kept else [CommitOperationAdd(CARD, text.encode())]
        added.append(CommitOperationAdd(WEIGHTS, data))
        said = message or f"{patch.config.name}, sha256 {patch.sha256[:16]}"
        try:
            commit = api.create_commit(repo, added, commit_message=said, parent_commit=head.sha).oid
        except HTTPError:  # the answer was lost: the commit may be there
            commit = api.model_info(repo, timeout=TIMEOUT).sha or ""
            if commit == head.sha:
                raise
    back = PatchLocation(Path(download(repo, WEIGHTS, commit)), repo, repo=repo, commit=commit).load()
    if back.sha256 != patch.sha256:
        raise PatchError(repo, f"commit {commit[:12]} holds another patch than was pushed", "push again")
    return Pushed(repo, commit, files, text, url, kept)


def _foreign_card(repo: str, head: Any) -> bool:
    """Whether the repo has a card that somebody has made their own."""
    if CARD not in {file.rfilename for file in head.siblings or []}:
        return False
    return OURS not in Path(download(repo, CARD, head.sha)).read_text("utf-8")
