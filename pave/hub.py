"""Patches on the Hugging Face Hub, and what any name of a patch stands for.

In: a name of the catalogue, an alias, a folder, a file, or `user/repo@revision`. Out: a checked patch; or, the other
way, a repo with a card and `patch.safetensors`. A name of the Hub is resolved to one commit first, and every file comes
from that commit; what arrives is checked against the patch's own sha256, since the Hub's client checks sizes only.
Mirrors (HF_ENDPOINT), tokens, the cache and offline mode (HF_HUB_OFFLINE) are those of `huggingface_hub`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, as the client's version has it
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import validate_repo_id

from pave import catalogue
from pave.card import OURS, card, refuse_private
from pave.catalogue import HUB_NAME as NAME
from pave.catalogue import OFFICIAL_BASE, PEFT_CONFIG, PEFT_WEIGHTS
from pave.catalogue import WEIGHTS as FILE
from pave.errors import PatchDamaged, PatchError, PatchMismatch, PatchNotFound, nearest

if TYPE_CHECKING:  # torch comes when a patch is opened, not when its name is looked up
    from pave.config import PatchConfig
    from pave.patch import Patch
    from pave.recipe import Recipe

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds for an answer of the Hub; some calls of its client would wait for ever
ATTEMPTS = 3  # of a download whose connection breaks; the client itself goes on where some kinds of break happened
CARD = "README.md"
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a patch lies on this machine, and where it came from."""

    path: Path  # a patch file, or a folder of PEFT's
    source: str  # for people: a name of the catalogue, a path, or user/repo@commit
    remark: str = ""
    repo: str = ""
    commit: str = ""

    def load(self) -> Patch:
        """The patch, checked. A damaged copy in the cache of the Hub is fetched once more."""
        from pave.patch import Patch

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
        _fetch(self.repo, self.path.name, self.commit, force_download=True)
        try:
            return Patch.load(self.path, self.source)
        except PatchError as error:
            remedy = "it arrives like this from the Hub: ask its authors"
            raise type(error)(self.source, error.cause, remedy) from None


def locate(
    source: str | Path, revision: str | None = None, dim: int | None = None, model_type: str = OFFICIAL_BASE
) -> Place:
    """What a name stands for: catalogue, alias, folder or file, Hub; in this order. Fetches what is on the Hub only.
    dim, model_type: channels of the base and its family, for checkpoints of the authors that the catalogue knows."""
    text = str(source)
    if isinstance(source, str) and not catalogue.named(source):
        text = source = aliases().get(source, source)
    if catalogue.named(source):
        refuse_revision(text, "is part of PAVE", revision)
        recipe = catalogue.recipe(text)
        if recipe.released and not (catalogue.find(text) / FILE).is_file():
            return _released(recipe, dim, model_type)
        return Place(catalogue.locate(text), text)
    if text and os.path.exists(text):  # unlike Path.exists, not startled by a name too long for a file system
        refuse_revision(text, "lies on this machine", revision)
        path = catalogue.locate(Path(text))
        return Place(path.parent if not path.exists() and catalogue.is_peft(path.parent) else path, text)
    repo, version = _on_hub(text)
    return pull(repo, revision or version)


def refuse_revision(name: str, where: str, revision: str | None) -> None:
    """Only what is on the Hub has revisions."""
    if revision:
        raise PatchNotFound(name, f"{where} and has no revision {revision!r}", "leave out revision=")


def _on_hub(text: str) -> tuple[str, str | None]:
    """Repo and revision of a name of the Hub, which need not be there."""
    name = NAME.fullmatch(text)
    if name is None:
        known = nearest(text, [*catalogue.names(), *aliases()])
        raise PatchNotFound(
            text or "''", "no patch, folder or file of this name", f"{known}; or give user/repo of the Hub"
        )
    _refuse_impossible(name["repo"])
    return name["repo"], name["revision"]


def _refuse_impossible(repo: str) -> None:
    """Refuse what no repo of the Hub can be called."""
    with _told(repo, None):
        validate_repo_id(repo)


def _released(recipe: Recipe, dim: int | None, model_type: str) -> Place:
    """A checkpoint of the authors: fetched, converted once, and kept beside the cache of the Hub."""
    from pave.encoder import load_encoder, missing
    from pave.official import LICENCE, convert, kept_as

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
            commit, remark = _commit(found.repo, found.revision, [found.file])
        except PatchNotFound:  # the zip is not in the cache any more; what was made of it may be
            copies = sorted(kept.glob(f"*/{name}"), key=lambda copy: copy.stat().st_mtime)
            if not copies:
                raise
            commit, remark = copies[-1].parent.name, "the Hub was not asked: this is the copy that was kept"
        path = kept / commit / name
        if not path.is_file():
            fetched = _fetch(found.repo, found.file, commit)
            convert(fetched, sense, encoder, name=recipe.name).save(path)
    except PatchError as error:
        raise type(error)(recipe.name, f"{error.file} {error.cause}", error.remedy) from None
    origin = f"converted from the authors' {found.file}; licence: {LICENCE}"
    return Place(path, f"{found.repo}@{commit[:12]}", "; ".join(filter(None, (origin, remark))))


def pull(repo: str, revision: str | None = None) -> Place:
    """Fetch a patch of the Hub into its cache. revision: branch, tag or commit; None: main."""
    commit, remark = _commit(repo, revision)
    try:
        path = Path(_fetch(repo, FILE, commit))
    except PatchNotFound as lacking:
        try:
            _fetch(repo, PEFT_CONFIG, commit)
            path = Path(_fetch(repo, PEFT_WEIGHTS, commit)).parent
        except PatchNotFound:
            raise lacking from None
    return Place(path, f"{repo}@{commit[:12]}", remark, repo, commit)


def fetch(repo: str, name: str, revision: str | None = None) -> Path:
    """Any file of a repo, from the cache or the Hub."""
    commit, _ = _commit(repo, revision, [name])
    return Path(_fetch(repo, name, commit))


def info(source: str | Path, revision: str | None = None, dim: int | None = None) -> tuple[PatchConfig, Place]:
    """What a patch says of itself. On the Hub, only the header is read. dim: as of `locate`."""
    from pave.patch import config_of, read_config

    text = aliases().get(str(source), str(source))
    name = NAME.fullmatch(text)
    if name is None or text in catalogue.names() or os.path.exists(text):
        place = locate(source, revision, dim)
        return read_config(place.path), place
    repo = name["repo"]
    commit, remark = _commit(repo, revision or name["revision"])
    place = Place(Path(repo) / FILE, f"{repo}@{commit[:12]}", remark, repo, commit)
    cached = try_to_load_from_cache(repo, FILE, revision=commit)
    if isinstance(cached, str):
        return read_config(cached), replace(place, path=Path(cached))
    with _told(repo, commit):
        found = _again(lambda: HfApi().parse_safetensors_file_metadata(repo, FILE, revision=commit, timeout=TIMEOUT))
    return config_of(place.path, found.metadata), place


def search(words: str = "", *, sense: str = "", base: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Patches on the Hub by words, sense and base: id, downloads, tags, and whether their authors ask for consent."""
    tags = ["pave", *([sense] if sense else []), *([f"base_model:{base}"] if base else [])]
    with _told("search", None):
        found = _again(lambda: list(HfApi().list_models(filter=tags, search=words or None, limit=limit, full=True)))
    return [
        {"id": each.id, "downloads": each.downloads or 0, "tags": list(each.tags or []), "gated": bool(each.gated)}
        for each in found
    ]


def downloaded() -> list[Place]:
    """Patches of the Hub that lie in its cache, the newest first; they work offline."""
    copies = [copy for copy in Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{FILE}") if copy.exists()]
    places = []
    for copy in sorted(copies, key=lambda copy: copy.lstat().st_mtime, reverse=True):
        repo, commit = copy.parents[2].name.removeprefix("models--").replace("--", "/"), copy.parent.name
        places.append(Place(copy, f"{repo}@{commit[:12]}", repo=repo, commit=commit))
    return places


# ---------------------------------------------------------------- out


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
    if not NAME.fullmatch(repo) or "@" in repo:
        raise PatchError(repo, "is no name of a repo on the Hub", "give user/repo")
    patch = locate(source).load() if isinstance(source, str | Path) else source
    text = card(patch, repo, example)
    with TemporaryDirectory() as folder:
        data = patch.save(Path(folder) / FILE).read_bytes()
    refuse_private(text + patch.text + json.dumps(patch.certificate), repo)
    files = {CARD: len(text.encode()), FILE: len(data)}
    if dry_run:
        return Pushed(repo, "", files, text)
    api = HfApi()
    with _told(repo, None):
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        head = api.model_info(repo, timeout=TIMEOUT, files_metadata=True)
        kept = _foreign_card(repo, head)
        added = [] if kept else [CommitOperationAdd(CARD, text.encode())]
        added.append(CommitOperationAdd(FILE, data))
        said = message or f"{patch.config.name}, sha256 {patch.sha256[:16]}"
        try:
            commit = api.create_commit(repo, added, commit_message=said, parent_commit=head.sha).oid
        except HTTPError:  # the answer was lost: the commit may be there
            commit = api.model_info(repo, timeout=TIMEOUT).sha or ""
            if commit == head.sha:
                raise
    back = Place(Path(_fetch(repo, FILE, commit)), repo, repo=repo, commit=commit).load()
    if back.sha256 != patch.sha256:
        raise PatchError(repo, f"commit {commit[:12]} holds another patch than was pushed", "push again")
    return Pushed(repo, commit, files, text, url, kept)


def _foreign_card(repo: str, head: Any) -> bool:
    """Whether the repo has a card that somebody has made their own."""
    if CARD not in {file.rfilename for file in head.siblings or []}:
        return False
    return OURS not in Path(_fetch(repo, CARD, head.sha)).read_text("utf-8")


# ---------------------------------------------------------------- names of one's own


def aliases() -> dict[str, str]:
    """Names of one's own: alias -> what it stands for."""
    try:
        found = json.loads(_alias_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(target) for name, target in found.items()} if isinstance(found, dict) else {}


def set_alias(name: str, target: str | None) -> None:
    """Give `target` the short name `name`; None takes the name away."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name in catalogue.names():
        raise PatchError(
            name, "cannot be an alias", "take small letters, digits, dots and dashes, and no catalogue name"
        )
    known = aliases()
    if target is None and known.pop(name, None) is None:
        raise PatchNotFound(name, "is no alias", nearest(name, known))
    if target is not None:
        target = known.get(target, target)
        if not catalogue.named(target) and os.path.exists(target):
            target = str(Path(target).resolve())
        elif not catalogue.named(target):
            _on_hub(target)
        known[name] = target
    from pave.storage import replacing

    with replacing(_alias_file()) as file:
        file.write(json.dumps(known, indent=1, sort_keys=True).encode())


def _alias_file() -> Path:
    return Path(os.environ.get("PAVE_HOME") or Path.home() / ".config" / "pave") / "aliases.json"


# ---------------------------------------------------------------- the client, made clear


def _commit(repo: str, revision: str | None, files: Sequence[str] = (FILE, PEFT_WEIGHTS)) -> tuple[str, str]:
    """The commit that a revision names, and a remark when it could not be asked for: then it is one whose copy in the
    cache has one of `files`."""
    _refuse_impossible(repo)
    if revision and COMMIT.fullmatch(revision):
        return revision, ""
    reason = "offline"
    if not constants.HF_HUB_OFFLINE:
        with _told(repo, revision):
            try:
                return _again(lambda: HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)).sha or "", ""
            except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
                raise
            except (HTTPError, HfHubHTTPError, OSError, ValueError) as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
                    raise
                reason = f"the Hub cannot be reached: {type(error).__name__}"
    commit = _cached_commit(repo, revision, files)
    if commit is None:
        name = f"{repo}@{revision or 'main'}"
        raise PatchNotFound(name, f"is not in the cache ({reason})", "go online once, or give a folder")
    return commit, f"{reason}; this is the copy of commit {commit[:12]} in the cache"


def _cached_commit(repo: str, revision: str | None, files: Sequence[str]) -> str | None:
    """The commit of a complete copy: of this revision; without one, the newest copy there is."""
    for name in files:
        found = try_to_load_from_cache(repo, name, revision=revision or "main")
        if isinstance(found, str):
            return Path(found).parent.name
    if revision is not None:
        return None
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots")
    copies = [copy for copy in snapshots.glob(f"*/{files[0]}") if copy.exists()]
    newest = max(copies, key=lambda copy: copy.lstat().st_mtime, default=None)
    return newest.parent.name if newest else None


def _fetch(repo: str, name: str, commit: str, **options: Any) -> str:
    """A file of a commit, from the cache or the Hub."""
    words = {"revision": commit, "library_name": "pave", "etag_timeout": TIMEOUT, **options}
    with _told(repo, commit):
        return _again(lambda: hf_hub_download(repo, name, **words))


def _again(call: Callable[[], T]) -> T:
    """Call, and call again where the connection broke or a file came in the wrong length."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except HTTPError:
            pass
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:  # the client's own check of lengths has neither
                raise
        time.sleep(attempt)
    return call()


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[None]:
    """What the client raises, in the words of PAVE."""
    name = f"{repo}@{revision[:12]}" if revision else repo
    try:
        yield
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        raise PatchError(name, "its authors ask for your consent", f"agree on {page}, then `hf auth login`") from None
    except HFValidationError as error:
        raise PatchNotFound(name, f"cannot be on the Hub ({_first_line(error)})", "check the name") from None
    except RepositoryNotFoundError:
        remedy = "check the name; for a private repo, `hf auth login`"
        raise PatchNotFound(
            name, "no such folder here, and no such repo on the Hub, or it is private", remedy
        ) from None
    except RevisionNotFoundError:
        raise PatchNotFound(
            name, f"the repo has no revision {revision!r}", "give a branch, a tag or a commit"
        ) from None
    except LocalEntryNotFoundError as error:
        cause = f"cannot be fetched, and is not in the cache ({_first_line(error)})"
        raise PatchError(name, cause, "check the connection and HF_HUB_OFFLINE, and try again") from None
    except EntryNotFoundError as error:
        raise PatchNotFound(
            name, f"lacks a file ({_first_line(error)})", f"check the name; a patch is a repo with {FILE}"
        ) from None
    except SafetensorsParsingError as error:
        raise PatchDamaged(name, f"its header cannot be read ({_first_line(error)})", "ask its authors") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "`hf auth login` with a token that may" if status in (401, 403) else "try again later"
        raise PatchError(name, f"the Hub answers {status} ({_first_line(error)})", remedy) from None
    except (HTTPError, json.JSONDecodeError) as error:
        cause = f"the connection to {constants.ENDPOINT} breaks ({type(error).__name__})"
        raise PatchError(name, cause, "check the connection, and try again") from None
    except OfflineModeIsEnabled:
        raise PatchError(name, "needs the Hub, and this is offline mode", "unset HF_HUB_OFFLINE") from None
    except OSError as error:
        raise PatchError(name, f"cannot be fetched ({_first_line(error)})", "try again") from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
