"""Patches on the Hugging Face Hub, and what any name of a patch stands for.

In: a name of the catalogue, an alias, a folder, a file, or `user/repo@revision`. Out: a checked patch; or, the other
way, a repo with a card and `patch.safetensors`. A name of the Hub is resolved to one commit first, and every file comes
from that commit; what arrives is checked against the patch's own sha256, since the Hub's client checks sizes only.
Mirrors (HF_ENDPOINT), tokens, the cache and offline mode (HF_HUB_OFFLINE) are those of `huggingface_hub`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    HfApi,
    constants,
    try_to_load_from_cache,
)

from pave.errors import PatchDamaged, PatchError, PatchMismatch, PatchNotFound, raised_as
from pave.hub import catalogue
from pave.hub.client import TIMEOUT, commit_of, download, in_our_words, retried
from pave.hub.names import aliases, repo_of
from pave.patch import filenames
from pave.patch.filenames import HUB_NAME, OFFICIAL_BASE, PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS

if TYPE_CHECKING:  # torch comes when a patch is opened, not when its name is looked up
    from pave.config import PatchConfig
    from pave.patch.file import Patch
    from pave.recipe import Recipe


@dataclass(frozen=True)
class PatchLocation:
    """Where a patch lies on this machine, and where it came from."""

    path: Path  # a patch file, or a folder of PEFT's
    source: str  # for people: a name of the catalogue, a path, or user/repo@commit
    remark: str = ""
    repo: str = ""
    commit: str = ""

    def load(self) -> Patch:
        """The patch, checked. A damaged copy in the cache of the Hub is fetched once more."""
        from pave.patch.file import Patch

        try:
            return Patch.load(self.path, self.source)
        except PatchError as error:
            if not self.repo:
                if isinstance(error, PatchDamaged) and self.path.is_relative_to(constants.HF_ASSETS_CACHE):
                    self.path.unlink()
                    raise type(error)(
                        self.path, error.cause, "it is thrown away; ask again, and it is made anew"
                    ) from None
                raise
            if constants.HF_HUB_OFFLINE or not isinstance(error, PatchDamaged):
                raise type(error)(self.source, error.cause, error.remedy) from None
        download(self.repo, self.path.name, self.commit, force_download=True)
        with raised_as(file=self.source, remedy="it arrives like this from the Hub: ask its authors"):
            return Patch.load(self.path, self.source)


def locate(
    source: str | Path, revision: str | None = None, dim: int | None = None, model_type: str = OFFICIAL_BASE
) -> PatchLocation:
    """What a name stands for: catalogue, alias, folder or file, Hub; in this order. Fetches what is on the Hub only.
    dim, model_type: channels of the base and its family, for checkpoints of the authors that the catalogue knows."""
    text = str(source)
    if isinstance(source, str) and not catalogue.named(source):
        text = source = aliases().get(source, source)
    if catalogue.named(source):
        refuse_revision(text, "is part of PAVE", revision)
        if (file := catalogue.find(text) / WEIGHTS).is_file():
            return PatchLocation(file, text)
        recipe = catalogue.recipe(text)
        return _released(recipe, dim, model_type) if recipe.released else PatchLocation(catalogue.locate(text), text)
    if text and os.path.exists(text):  # unlike Path.exists, not startled by a name too long for a file system
        refuse_revision(text, "lies on this machine", revision)
        path = catalogue.locate(Path(text))
        return PatchLocation(path.parent if not path.exists() and filenames.is_peft(path.parent) else path, text)
    repo, version = repo_of(text)
    return pull(repo, revision or version)


def refuse_revision(name: str, where: str, revision: str | None) -> None:
    """Only what is on the Hub has revisions."""
    if revision:
        raise PatchNotFound(name, f"{where} and has no revision {revision!r}", "leave out revision=")


def _released(recipe: Recipe, dim: int | None, model_type: str) -> PatchLocation:
    """A checkpoint of the authors: fetched, converted once, and kept beside the cache of the Hub."""
    from pave.encoder import load_encoder, missing
    from pave.patch.official import LICENCE, convert, kept_as

    remedy = f"apply it to such a base, or train it: pave-train {recipe.name}"
    if model_type != OFFICIAL_BASE:
        raise PatchMismatch(recipe.name, f"was released for {OFFICIAL_BASE}, this base is {model_type}", remedy)
    fitting = [each for each in recipe.released if dim in (None, each.dim)]
    if len(fitting) != 1:
        widths = " or ".join(f"{each.dim} channels" for each in recipe.released)
        cause = f"was released for a base of {widths}, " + (f"this one has {dim}" if dim else "and no base is named")
        if dim is None:
            remedy = f"say which one with {' or '.join(f'--dim {each.dim}' for each in recipe.released)}"
        raise PatchNotFound(recipe.name, cause, remedy)
    (found,), ((sense, config),) = fitting, recipe.senses.items()
    kept = Path(constants.HF_ASSETS_CACHE, "pave", found.repo.replace("/", "--"))
    encoder = config.encoder if missing(config.encoder) else load_encoder(config.encoder, **config.options).spec
    name = kept_as(recipe.name, found.file, sense, encoder)
    try:
        try:
            commit, remark = commit_of(found.repo, found.revision, [found.file])
        except PatchNotFound:  # the zip is not in the cache any more; what was made of it may be
            copies = sorted(kept.glob(f"*/{name}"), key=lambda copy: copy.stat().st_mtime)
            if not copies:
                raise
            commit, remark = copies[-1].parent.name, "the Hub was not asked: this is the copy that was kept"
        path = kept / commit / name
        if not path.is_file():
            fetched = download(found.repo, found.file, commit)
            convert(fetched, sense, encoder, name=recipe.name).save(path)
    except PatchError as error:
        raise type(error)(recipe.name, f"{error.file} {error.cause}", error.remedy) from None
    origin = f"converted from the authors' {found.file}; licence: {LICENCE}"
    return PatchLocation(path, f"{found.repo}@{commit[:12]}", "; ".join(filter(None, (origin, remark))))


def pull(repo: str, revision: str | None = None) -> PatchLocation:
    """Fetch a patch of the Hub into its cache. revision: branch, tag or commit; None: main."""
    commit, remark = commit_of(repo, revision)
    try:
        path = Path(download(repo, WEIGHTS, commit))
    except PatchNotFound as lacking:
        try:
            download(repo, PEFT_CONFIG, commit)
            path = Path(download(repo, PEFT_WEIGHTS, commit)).parent
        except PatchNotFound:
            raise lacking from None
    return PatchLocation(path, f"{repo}@{commit[:12]}", remark, repo, commit)


def fetch(repo: str, name: str, revision: str | None = None) -> Path:
    """Any file of a repo, from the cache or the Hub."""
    commit, _ = commit_of(repo, revision, [name])
    return Path(download(repo, name, commit))


def info(source: str | Path, revision: str | None = None, dim: int | None = None) -> tuple[PatchConfig, PatchLocation]:
    """What a patch says of itself. On the Hub, only the header is read. dim: as of `locate`."""
    from pave.patch.file import config_of, read_config

    text = aliases().get(str(source), str(source))
    name = HUB_NAME.fullmatch(text)
    if name is None or text in catalogue.names() or os.path.exists(text):
        place = locate(source, revision, dim)
        return read_config(place.path), place
    repo = name["repo"]
    commit, remark = commit_of(repo, revision or name["revision"])
    place = PatchLocation(Path(repo) / WEIGHTS, f"{repo}@{commit[:12]}", remark, repo, commit)
    cached = try_to_load_from_cache(repo, WEIGHTS, revision=commit)
    if isinstance(cached, str):
        return read_config(cached), replace(place, path=Path(cached))
    with in_our_words(repo, commit):
        found = retried(
            lambda: HfApi().parse_safetensors_file_metadata(repo, WEIGHTS, revision=commit, timeout=TIMEOUT)
        )
    return config_of(place.path, found.metadata), place


def search(words: str = "", *, sense: str = "", base: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Patches on the Hub by words, sense and base: id, downloads, tags, and whether their authors ask for consent."""
    tags = ["pave", *([sense] if sense else []), *([f"base_model:{base}"] if base else [])]
    with in_our_words("search", None):
        found = retried(lambda: list(HfApi().list_models(filter=tags, search=words or None, limit=limit, full=True)))
    return [
        {"id": each.id, "downloads": each.downloads or 0, "tags": list(each.tags or []), "gated": bool(each.gated)}
        for each in found
    ]


def downloaded() -> list[PatchLocation]:
    """Patches of the Hub that lie in its cache, the newest first; they work offline."""
    copies = [copy for copy in Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{WEIGHTS}") if copy.exists()]
    places = []
    for copy in sorted(copies, key=lambda copy: copy.lstat().st_mtime, reverse=True):
        repo, commit = copy.parents[2].name.removeprefix("models--").replace("--", "/"), copy.parent.name
        places.append(PatchLocation(copy, f"{repo}@{commit[:12]}", repo=repo, commit=commit))
    return places
