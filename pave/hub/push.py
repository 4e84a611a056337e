"""Uploading a patch to the Hub: card and file in one commit, then verified by download.

In: a patch and the name of a repo. Out: a `Pushed`, with the commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as the client's version has it
)

from pave.config import commercial
from pave.errors import PatchError
from pave.files.locks import scratch
from pave.hub.card import COMMON, LICENCES, OURS, base_facts, card, public_base, refuse_private
from pave.hub.client import TIMEOUT, download, hub_errors
from pave.hub.locate import PatchLocation, locate
from pave.patch.certificate import rebound, standing
from pave.patch.filenames import HUB_NAME, WEIGHTS
from pave.text.shown import quoted

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
    warnings: tuple[str, ...] = ()  # what others will trip over


def push(
    source: str | Path | Patch,
    repo: str,
    *,
    private: bool = False,
    example: Mapping[str, Any] | None = None,
    message: str = "",
    dry_run: bool = False,
    licence: str = "",
    uncertified: bool = False,
) -> Pushed:
    """Upload a patch: card and file in one commit. A card that a user has edited is kept.

    licence: short name of the Hub, as apache-2.0; recorded in the uploaded patch. Without it, the patch must have one.
    uncertified: upload it though no certificate shows that it uses its senses; the card says so. Else a PatchError.
    """
    if not HUB_NAME.fullmatch(repo) or "@" in repo:
        raise PatchError(repo, "is not a repo name of the Hub", "pass user/repo")
    patch = locate(source).load() if isinstance(source, str | Path) else source
    patch = licensed(patch, licence)
    if not uncertified:
        refuse_uncertified(patch)
    warnings = tuple(_warnings(patch))
    text = card(patch, repo, example)
    with scratch() as folder:
        data = patch.save(folder / WEIGHTS).read_bytes()
    refuse_private(text + patch.text + json.dumps(patch.certificate), patch.source)
    files = {CARD: len(text.encode()), WEIGHTS: len(data)}
    if dry_run:
        return Pushed(repo, "", files, text, warnings=warnings)
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
    return Pushed(repo, commit, files, text, url, kept, warnings)


def licensed(patch: Patch, licence: str) -> Patch:
    """The patch with a licence: the given one, or its own. Nothing is assumed."""
    named = patch.config.name if patch.source == "memory" else patch.source
    if licence and licence.lower() not in LICENCES:
        near = get_close_matches(licence.lower(), sorted(LICENCES), n=3) or COMMON
        cause = f"--license {quoted(licence)} is no licence that the Hub knows"
        raise PatchError(named, cause, f"{_choice(near)}; or `other`")
    if not licence and not patch.config.licence.strip():
        cause = "says no licence, and only its owner can choose one"
        raise PatchError(named, cause, f"pass --license ID; common: {', '.join(COMMON)}")
    if not licence or licence.lower() == patch.config.licence:
        return patch
    return rebound(patch, patch.config.model_copy(update={"licence": licence.lower()}))


def refuse_uncertified(patch: Patch) -> None:
    """Raise unless a certificate shows that the patch uses its senses. LoRA alone has none to use."""
    found = standing(patch)
    if patch.config.senses and found.kind != "certified":
        named = patch.config.name if patch.source == "memory" else patch.source
        remedy = "run `pave patch certify`, or say --uncertified (uncertified=True)"
        raise PatchError(named, f"nothing shows that it uses its sense: {found.why}", remedy)


def _choice(near: Sequence[str]) -> str:
    return f"common: {', '.join(near)}" if near is COMMON else f"did you mean {' or '.join(near)}?"


def _warnings(patch: Patch) -> Iterator[str]:
    if not public_base(patch.config.base):
        yield f"{base_facts(patch.config.base)} Publish the base too, or say in the card where it is"
    for sense, facts in patch.config.senses.items():
        if commercial(patch.config.licence) and not commercial(facts.licence):
            yield (
                f"the licence {patch.config.licence} allows commercial use, but the weights of {facts.encoder}, which "
                f"its sense {sense} was trained on, are under {facts.licence}"
            )


def _foreign_card(repo: str, head: Any) -> bool:
    """Whether the repo has a card that a user has edited, without the line that PAVE writes."""
    if CARD not in {file.rfilename for file in head.siblings or []}:
        return False
    return OURS not in Path(download(repo, CARD, head.sha)).read_text("utf-8")
