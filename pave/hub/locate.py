"""Resolving the name of a patch to a file, and downloads from the Hugging Face Hub.

In: a catalogue name, an alias, a folder, a file, or `user/repo@revision`. Out: the location of a patch, or the patch. A
Hub name is first resolved to one commit, from which every file is downloaded; downloads are checked against the patch's
own sha256, since the Hub's client checks sizes only. Mirrors (HF_ENDPOINT), tokens, the cache and offline mode
(HF_HUB_OFFLINE) are those of `huggingface_hub`.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from pave.errors import PatchDamaged, PatchError, PatchMismatch, PatchNotFound, raised_as
from pave.hub import catalogue
from pave.hub.aliases import aliases
from pave.hub.client import TIMEOUT, commit_of, download, first_line, hub_errors, repo_of, retried
from pave.patch import filenames
from pave.patch.filenames import HUB_NAME, OFFICIAL_BASE, PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS

if TYPE_CHECKING:  # torch is imported when a patch is opened, not when its name is resolved
    from pave.patch.file import Patch
    from pave.recipe import Recipe


@dataclass(frozen=True)
class PatchLocation:
    """The local path of a patch, and its source."""

    path: Path  # a patch file, or a folder of a PEFT adapter
    source: str  # for reports: a catalogue name, a path, or user/repo@commit
    remark: str = ""
    repo: str = ""
    commit: str = ""

    def load(self) -> Patch:
        """Load and check the patch. A damaged copy in the cache of the Hub is downloaded once more."""
        from pave.patch.file import Patch

        try:
            return Patch.load(self.path, self.source)
        except PatchError as error:
            if not self.repo:
                if isinstance(error, PatchDamaged) and self.path.is_relative_to(constants.HF_ASSETS_CACHE):
                    self.path.unlink()
                    remedy = "the cached conversion was deleted; try again to convert it again"
                    raise type(error)(self.path, error.cause, remedy) from None
                raise
            if constants.HF_HUB_OFFLINE or not isinstance(error, PatchDamaged):
                raise type(error)(self.source, error.cause, error.remedy) from None
        download(self.repo, self.path.name, self.commit, force_download=True)
        with raised_as(file=self.source, remedy="the file on the Hub itself is damaged: report it to its owner"):
            return Patch.load(self.path, self.source)


def locate(
    source: str | Path, revision: str | None = None, dim: int | None = None, model_type: str = OFFICIAL_BASE
) -> PatchLocation:
    """Resolve a name as catalogue name, alias, folder or file, or Hub repo, in this order. Downloads if needed.
    dim, model_type: channels and family of the base, to choose among the official checkpoints of the catalogue."""
    text = str(source)
    if isinstance(source, str) and not catalogue.named(source):
        text = source = aliases().get(source, source)
    if catalogue.named(source):
        refuse_revision(text, "is part of PAVE", revision)
        if (file := catalogue.folder_of(text) / WEIGHTS).is_file():
            return PatchLocation(file, text)
        recipe = catalogue.recipe(text)
        return _released(recipe, dim, model_type) if recipe.released else PatchLocation(catalogue.file_of(text), text)
    if text and os.path.exists(text):  # unlike Path.exists, False for names too long for a file system
        refuse_revision(text, "is a local path", revision)
        path = catalogue.file_of(Path(text))
        if not os.path.exists(path) and filenames.is_half_peft(path.parent):
            cause = f"file not found, though {PEFT_WEIGHTS} or its pickle is there"
            remedy = "copy it beside the weights, or save the adapter again with PEFT's save_pretrained"
            raise PatchNotFound(path.parent / PEFT_CONFIG, cause, remedy)
        return PatchLocation(path.parent if not path.exists() and filenames.is_peft(path.parent) else path, text)
    repo, version = repo_of(text, [*catalogue.names(), *aliases()])
    return pull(repo, revision or version)


def refuse_revision(name: str, where: str, revision: str | None) -> None:
    """Raise for a revision: only Hub repos have them."""
    if revision:
        raise PatchNotFound(name, f"{where} and has no revision {revision!r}", "omit revision=")


def _released(recipe: Recipe, dim: int | None, model_type: str) -> PatchLocation:
    """An official checkpoint: downloaded, converted once, and cached in HF_ASSETS_CACHE."""
    from pave.encoder import load_encoder, missing
    from pave.patch.official import LICENCE, as_authors, cached_name, convert

    remedy = f"apply it to a base that fits, or train it: pave-train {recipe.name}"
    if model_type != OFFICIAL_BASE:
        raise PatchMismatch(recipe.name, f"was released for {OFFICIAL_BASE}, this base is {model_type}", remedy)
    fitting = [each for each in recipe.released if dim in (None, each.dim)]
    if len(fitting) != 1:
        widths = " or ".join(f"{each.dim} channels" for each in recipe.released)
        cause = f"was released for a base of {widths}, " + (f"this one has {dim}" if dim else "and no base is given")
        if dim is None:
            remedy = f"choose with {' or '.join(f'--dim {each.dim}' for each in recipe.released)}"
        raise PatchNotFound(recipe.name, cause, remedy)
    (found,), ((sense, config),) = fitting, recipe.senses.items()
    cache = Path(constants.HF_ASSETS_CACHE, "pave", found.repo.replace("/", "--"))
    options = as_authors(config.encoder, config.options)
    built = None if missing(config.encoder) else load_encoder(config.encoder, **options)
    encoder = config.encoder if built is None else built.spec
    name = cached_name(recipe.name, found.file, sense, encoder)
    try:
        try:
            commit, remark = commit_of(found.repo, found.revision, [found.file])
        except PatchNotFound:  # offline without the zip in the cache; its conversion may be cached
            copies = sorted(cache.glob(f"*/{name}"), key=lambda copy: copy.stat().st_mtime)
            if not copies:
                raise
            commit, remark = copies[-1].parent.name, "the Hub was not contacted: using the cached conversion"
        path = cache / commit / name
        if not path.is_file():
            for lacking in built.lacking() if built else ():  # said before the download, not after it
                warnings.warn(f"{recipe.name}: {lacking}", stacklevel=2)
            archive = download(found.repo, found.file, commit)
            convert(archive, sense, encoder, name=recipe.name).save(path)
    except PatchError as error:
        raise type(error)(recipe.name, f"{error.file} {error.cause}", error.remedy) from None
    origin = f"converted from the official {found.file}; licence: {LICENCE}"
    return PatchLocation(path, f"{found.repo}@{commit[:12]}", "; ".join(filter(None, (origin, remark))))


def pull(repo: str, revision: str | None = None) -> PatchLocation:
    """Download a patch from the Hub into its cache. revision: branch, tag or commit; None: main."""
    commit, remark = commit_of(repo, revision)
    try:
        path = Path(download(repo, WEIGHTS, commit))
    except PatchNotFound as missing:
        try:
            download(repo, PEFT_CONFIG, commit)
            path = Path(download(repo, PEFT_WEIGHTS, commit)).parent
        except PatchNotFound:
            raise missing from None
    return PatchLocation(path, f"{repo}@{commit[:12]}", remark, repo, commit)


def fetch(repo: str, name: str, revision: str | None = None) -> Path:
    """Any file of a repo, from the cache or the Hub."""
    commit, _ = commit_of(repo, revision, [name])
    return Path(download(repo, name, commit))


def info(source: str | Path, revision: str | None = None, dim: int | None = None) -> tuple[Patch, PatchLocation]:
    """A patch without its tensors, and its location. From the Hub, only the header comes. dim: as in `locate`."""
    from pave.patch.file import facts_of, read_facts

    text = aliases().get(str(source), str(source))
    name = HUB_NAME.fullmatch(text)
    if name is None or text in catalogue.names() or os.path.exists(text):
        place = locate(source, revision, dim)
        return read_facts(place.path), place
    repo = name["repo"]
    commit, remark = commit_of(repo, revision or name["revision"])
    place = PatchLocation(Path(repo) / WEIGHTS, f"{repo}@{commit[:12]}", remark, repo, commit)
    cached = try_to_load_from_cache(repo, WEIGHTS, revision=commit)
    if isinstance(cached, str):
        return read_facts(cached), replace(place, path=Path(cached))
    with hub_errors(repo, commit):
        try:
            found = retried(
                lambda: HfApi().parse_safetensors_file_metadata(repo, WEIGHTS, revision=commit, timeout=TIMEOUT)
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # the client trusts what it gets
            raise PatchDamaged(
                place.source, f"its header cannot be read ({first_line(error)})", "report it to its owner"
            ) from None
    return facts_of(Path(place.source), found.metadata), place


def search(words: str = "", *, sense: str = "", base: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Patches on the Hub by text, sense and base: id, downloads, tags, and whether they are gated."""
    tags = ["pave", *([sense] if sense else []), *([f"base_model:{base}"] if base else [])]
    with hub_errors("search", None):
        found = retried(lambda: list(HfApi().list_models(filter=tags, search=words or None, limit=limit, full=True)))
    return [
        {"id": each.id, "downloads": each.downloads or 0, "tags": list(each.tags or []), "gated": bool(each.gated)}
        for each in found
    ]


def downloaded() -> list[PatchLocation]:
    """Hub patches in the local cache, newest first; they work offline."""
    copies = [copy for copy in Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{WEIGHTS}") if copy.exists()]
    places = []
    for copy in sorted(copies, key=lambda copy: copy.lstat().st_mtime, reverse=True):
        repo, commit = copy.parents[2].name.removeprefix("models--").replace("--", "/"), copy.parent.name
        places.append(PatchLocation(copy, f"{repo}@{commit[:12]}", repo=repo, commit=commit))
    return places
