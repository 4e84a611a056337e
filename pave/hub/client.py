"""Access to the Hugging Face Hub: commits and files of a repo, and its errors as PatchErrors.

In: a repo and a revision. Out: a commit, or a file in the cache. Mirrors (HF_ENDPOINT), tokens, the cache and offline
mode (HF_HUB_OFFLINE) are those of `huggingface_hub`. Knows nothing of patches' contents.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
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

from pave.errors import PatchDamaged, PatchError, PatchNotFound, nearest
from pave.patch.filenames import HUB_NAME, PEFT_WEIGHTS, WEIGHTS

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds per request; some calls of the client have no timeout by default
ATTEMPTS = 3  # of a download; the client itself resumes after some kinds of interruption only
T = TypeVar("T")


def repo_of(text: str, known: Iterable[str]) -> tuple[str, str | None]:
    """Repo and revision of a Hub name; its existence is not checked. `known`: other names, to suggest the nearest."""
    name = HUB_NAME.fullmatch(text)
    if name is None:
        raise PatchNotFound(
            text or "''",
            "no patch, folder or file with this name",
            nearest(text, known, "pass user/repo of the Hub"),
        )
    refuse_impossible(name["repo"])
    return name["repo"], name["revision"]


def refuse_impossible(repo: str) -> None:
    """Raise if this cannot be a repo name on the Hub."""
    with hub_errors(repo, None):
        validate_repo_id(repo)


def commit_of(repo: str, revision: str | None, files: Sequence[str] = (WEIGHTS, PEFT_WEIGHTS)) -> tuple[str, str]:
    """The commit of a revision, and a remark if the Hub was not contacted: then it is a cached commit with one of
    `files`."""
    refuse_impossible(repo)
    if revision and COMMIT.fullmatch(revision):
        return revision, ""
    reason = "offline"
    if not constants.HF_HUB_OFFLINE:
        with hub_errors(repo, revision):
            try:
                return retried(lambda: HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)).sha or "", ""
            except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
                raise
            except (HTTPError, HfHubHTTPError, OSError, ValueError) as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
                    raise
                reason = f"the Hub cannot be reached: {type(error).__name__}"
    commit = cached_commit(repo, revision, files)
    if commit is None:
        name = f"{repo}@{revision or 'main'}"
        raise PatchNotFound(name, f"is not in the cache ({reason})", "go online once, or pass a folder")
    return commit, f"{reason}; using the cached copy of commit {commit[:12]}"


def cached_commit(repo: str, revision: str | None, files: Sequence[str]) -> str | None:
    """The commit of a cached copy of this revision; without a revision, that of main, else the newest copy."""
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


def download(repo: str, name: str, commit: str, **options: Any) -> str:
    """A file of a commit, from the cache or the Hub."""
    options = {"revision": commit, "library_name": "pave", "etag_timeout": TIMEOUT, **options}
    with hub_errors(repo, commit):
        return retried(lambda: hf_hub_download(repo, name, **options))


def retried(call: Callable[[], T]) -> T:
    """Call, and retry if the connection breaks or a file has the wrong length."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except HTTPError:
            pass
        except OSError as error:
            # The client reports a wrong length as a plain OSError without errno; all others are not retried.
            if type(error) is not OSError or error.errno is not None:
                raise
        time.sleep(attempt)
    return call()


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Re-raise errors of the client as PatchErrors with cause and remedy."""
    name = f"{repo}@{revision[:12]}" if revision else repo
    try:
        yield
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        raise PatchError(name, "this repo is gated", f"accept its terms at {page}, then run `hf auth login`") from None
    except HFValidationError as error:
        raise PatchNotFound(name, f"cannot be on the Hub ({first_line(error)})", "check the name") from None
    except RepositoryNotFoundError:
        remedy = "check the name; for a private repo, run `hf auth login`"
        raise PatchNotFound(name, "not a local folder, and not a repo on the Hub, or a private one", remedy) from None
    except RevisionNotFoundError:
        raise PatchNotFound(
            name, f"the repo has no revision {revision!r}", "pass a branch, a tag or a commit"
        ) from None
    except LocalEntryNotFoundError as error:
        cause = f"cannot be downloaded, and is not in the cache ({first_line(error)})"
        raise PatchError(name, cause, "check the connection and HF_HUB_OFFLINE, and try again") from None
    except EntryNotFoundError as error:
        raise PatchNotFound(
            name, f"has no such file ({first_line(error)})", f"check the name; a patch repo has {WEIGHTS}"
        ) from None
    except SafetensorsParsingError as error:
        raise PatchDamaged(name, f"its header cannot be read ({first_line(error)})", "report it to its owner") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "run `hf auth login` with a token that has access" if status in (401, 403) else "try again later"
        raise PatchError(name, f"the Hub responds with status {status} ({first_line(error)})", remedy) from None
    except (HTTPError, json.JSONDecodeError) as error:
        cause = f"the connection to {constants.ENDPOINT} fails ({type(error).__name__})"
        raise PatchError(name, cause, "check the connection, and try again") from None
    except OfflineModeIsEnabled:
        raise PatchError(name, "needs the Hub, but offline mode is on", "unset HF_HUB_OFFLINE") from None
    except OSError as error:
        raise PatchError(name, f"cannot be downloaded ({first_line(error)})", "try again") from None


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
