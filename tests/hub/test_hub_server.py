"""Claims about the test Hub: the real client works with it, and each fault has its documented effect.

How the client reacts to a fault is its own behaviour, specified here because `pave` depends on it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hub_server import FAULTS, HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save

EARS, PATCH = "tester/ears", "patch.safetensors"
WEIGHTS = save({"w": np.arange(600_000, dtype=np.float32)}, metadata={"kind": "audio"})  # 2.4 MB: three parts
CARD = "---\nlibrary_name: pave\nbase_model: some/base\nbase_model_relation: adapter\ntags: [audio]\n---\n# Ears\n"
FILES = {"README.md": CARD.encode(), PATCH: WEIGHTS, "notes/a.txt": b"a", "notes/b.txt": b"b"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def api(hub: HubServer, tmp_path: Path) -> Iterator[HfApi]:
    with hub.client(tmp_path) as api:
        yield api


def folder(path: str | Path) -> dict[str, bytes]:
    root = Path(path)
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def fetch(api: HfApi, path: str = PATCH, revision: str = "main") -> bytes:
    return Path(api.hf_hub_download(EARS, path, revision=revision)).read_bytes()


def status(url: str, method: str = "GET", body: bytes | None = None, token: str = "") -> int:
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc)
    connection.request(method, address.path, body, {"Authorization": f"Bearer {token}"} if token else {})
    return connection.getresponse().status


# ---- the endpoints


def test_an_uploaded_folder_is_downloaded_unchanged(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    for name, data in (FILES | {"empty.safetensors": b""}).items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    assert api.whoami()["name"] == "tester"
    assert api.create_repo(EARS, private=True).repo_id == EARS and hub.repos[EARS].private
    pushed = api.upload_folder(repo_id=EARS, folder_path=tmp_path / "mine", commit_message="first")
    assert [one.path[-2:] for one in hub.asked("PUT")] == ["/1", "/2", "/3"]
    assert hub.repos[EARS].files() == folder(tmp_path / "mine") | {".gitattributes": b"*.safetensors filter=lfs\n"}
    assert folder(api.snapshot_download(EARS)) == hub.repos[EARS].files()
    again = api.upload_folder(repo_id=EARS, folder_path=tmp_path / "mine")
    assert again.oid == pushed.oid and len(hub.asked("PUT")) == 3
    assert [commit.title for commit in api.list_repo_commits(EARS)] == ["first", "initial commit"]


def test_an_upload_that_does_not_match_its_hash_is_refused(hub: HubServer) -> None:
    name = hashlib.sha256(WEIGHTS).hexdigest()
    assert status(f"{hub.store}/{name}", "PUT", WEIGHTS[:-1]) == 400
    assert not hub.objects()
    assert status(f"{hub.store}/{name}", "PUT", WEIGHTS) == 200
    assert hub.objects() == {name: WEIGHTS}


def test_a_commit_on_an_outdated_parent_is_refused(hub: HubServer, api: HfApi) -> None:
    old = hub.create(EARS, FILES).branches["main"]
    new = hub.repos[EARS].commit({"notes/a.txt": b"another"})
    with pytest.raises(HfHubHTTPError, match="412") as caught:
        api.create_commit(EARS, [CommitOperationAdd("x", b"x")], commit_message="late", parent_commit=old)
    assert caught.value.response.status_code == 412
    assert hub.repos[EARS].branches == {"main": new}
    api.create_commit(EARS, [CommitOperationAdd("x", b"x")], commit_message="in time", parent_commit=new)
    assert hub.repos[EARS].files()["x"] == b"x"


def test_files_and_folders_are_deleted(hub: HubServer, api: HfApi) -> None:
    hub.create(EARS, FILES)
    gone = [CommitOperationDelete("notes/"), CommitOperationDelete("README.md")]
    api.create_commit(EARS, gone, commit_message="tidy")
    assert set(hub.repos[EARS].files()) == {PATCH}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("README.md", EARS)


def test_tags_are_fixed_and_branches_move(hub: HubServer, api: HfApi) -> None:
    first = hub.create(EARS, FILES).branches["main"]
    api.create_tag(EARS, tag="v1")
    third = hub.repos[EARS].commit({"notes/b.txt": None})
    api.create_branch(EARS, branch="try/it", revision="v1")
    second = api.upload_file(repo_id=EARS, path_or_fileobj=b"new", path_in_repo="notes/a.txt", revision="try/it").oid
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(EARS, tag="v1", revision=second)
    refs = api.list_repo_refs(EARS)
    named = {ref.name: ref.target_commit for ref in refs.tags + refs.branches}
    assert named == {"v1": first, "main": third, "try/it": second}
    assert [fetch(api, "notes/a.txt", revision=name) for name in ("v1", "try/it", second)] == [b"a", b"new", b"new"]
    assert set(hub.repos[EARS].files("try/it")) == set(FILES)
    api.delete_tag(EARS, tag="v1")
    assert not api.revision_exists(EARS, "v1") and api.revision_exists(EARS, first)


def test_commit_ids_depend_on_content_only(hub: HubServer) -> None:
    with HubServer() as other:
        ids = [one.create(EARS, files).branches["main"] for one in (hub, other) for files in (FILES, {"a": b""})]
    assert ids[:2] == ids[2:] and ids[0] != ids[1] and all(re.fullmatch("[0-9a-f]{40}", id) for id in ids)


def test_model_info_is_of_the_commit_and_its_card(hub: HubServer, api: HfApi) -> None:
    repo = hub.create(EARS, FILES)
    first, second = repo.branches["main"], repo.commit({"notes/b.txt": None})
    info = api.model_info(EARS, revision=first, files_metadata=True)
    sizes = {file.rfilename: (file.size, file.lfs and file.lfs.sha256) for file in info.siblings or ()}
    assert info.sha == first and "base_model:adapter:some/base" in (info.tags or ())
    assert sizes[PATCH] == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert sizes["notes/b.txt"] == (1, None)
    now = api.model_info(EARS)
    assert now.sha == second != first and all(file.size is None for file in now.siblings or ())
    assert api.list_repo_files(EARS) == ["README.md", "notes/a.txt", PATCH]
    assert [file.path for file in api.list_repo_tree(EARS)] == ["README.md", PATCH]
    assert [file.path for file in api.get_paths_info(EARS, ["notes/a.txt", "notes/b.txt"])] == ["notes/a.txt"]
    assert api.file_exists(EARS, "notes/b.txt", revision=first) and not api.file_exists(EARS, "notes/b.txt")
    assert ModelCard.load(EARS).data.to_dict()["library_name"] == "pave"
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(repo_id=EARS, path_or_fileobj=b"---\ntags: [\n---\n", path_in_repo="README.md")


def test_models_are_found_by_text_tag_and_author(hub: HubServer, api: HfApi) -> None:
    hub.create(EARS, FILES)
    hub.create("tester/eyes", {"README.md": CARD.replace("audio", "depth").encode()})
    hub.create("other/ears", FILES, private=True)
    hub.create("other/base", {"README.md": b"no metadata"})

    def found(**query: Any) -> list[str]:
        return [model.id for model in api.list_models(**query)]

    assert found() == [EARS, "tester/eyes", "other/base"]
    assert found(search="EARS") == found(filter=["pave", "audio"]) == found(author="tester", limit=1) == [EARS]
    assert found(author="other", token="hf_other") == ["other/ears", "other/base"]
    (brief,), (full,) = api.list_models(filter="audio"), api.list_models(filter="audio", full=True)
    assert brief.sha is None and full.sha == hub.repos[EARS].branches["main"]


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (RepositoryNotFoundError, lambda api: api.model_info("tester/none")),
        (RepositoryNotFoundError, lambda api: api.model_info("other/secret")),
        (RepositoryNotFoundError, lambda api: api.model_info("other/secret", token=False)),
        (RepositoryNotFoundError, lambda api: api.delete_repo("tester/none")),
        (RevisionNotFoundError, lambda api: api.snapshot_download("other/gated", revision="v9")),
        (EntryNotFoundError, lambda api: api.hf_hub_download("tester/ears", "none.txt")),
        (GatedRepoError, lambda api: api.hf_hub_download("other/gated", "README.md")),
        (GatedRepoError, lambda api: api.hf_hub_download("other/gated", "README.md", token=False)),
        (HfHubHTTPError, lambda api: api.create_repo("other/mine")),
        (HfHubHTTPError, lambda api: api.create_repo(EARS)),
        (HfHubHTTPError, lambda api: api.upload_file(repo_id="other/gated", path_or_fileobj=b"", path_in_repo="x")),
        (HfHubHTTPError, lambda api: api.model_info(EARS, token="hf_forged")),
    ],
)
def test_unavailable_repos_and_files_have_the_errors_of_the_hub(
    hub: HubServer, api: HfApi, error: type[Exception], ask: Callable[[HfApi], object]
) -> None:
    hub.create(EARS, FILES)
    hub.create("other/secret", FILES, private=True)
    hub.create("other/gated", FILES, gated=True)
    with pytest.raises(error) as caught:
        ask(api)
    assert type(caught.value) is error or error is EntryNotFoundError


def test_authorised_users_have_access(hub: HubServer, api: HfApi) -> None:
    hub.create("other/secret", FILES, private=True)
    hub.create("other/gated", FILES, gated=True, readers={"tester"})
    assert api.model_info("other/secret", token="hf_other").private
    assert Path(api.hf_hub_download("other/gated", "README.md")).read_text() == CARD
    assert api.create_repo("tester/x", exist_ok=True).repo_id == api.create_repo("tester/x", exist_ok=True).repo_id
    api.delete_repo("tester/x")
    assert "tester/x" not in hub.repos


def test_a_header_is_read_without_its_tensors(hub: HubServer, api: HfApi) -> None:
    hub.create(EARS, FILES)
    assert api.parse_safetensors_file_metadata(EARS, PATCH).metadata == {"kind": "audio"}
    requests = [(one.range, one.status, one.sent) for one in hub.asked("GET", "*.safetensors")]
    assert requests == [("bytes=0-100000", 302, 0), ("bytes=0-100000", 206, 100_001)]
    assert status(f"{hub.store}/{EARS}/{hub.repos[EARS].find('main')}/{PATCH}", token="hf_test") == 400


def test_a_complete_cache_needs_no_request_for_a_commit(hub: HubServer, api: HfApi) -> None:
    commit = hub.create(EARS, FILES).branches["main"]
    snapshot = api.snapshot_download(EARS)
    hub.log.clear()
    assert api.snapshot_download(EARS, revision=commit) == snapshot and hub.log == []
    assert api.snapshot_download(EARS) == snapshot
    assert [one.path for one in hub.log] == [f"/api/models/{EARS}/revision/main"]


def test_a_new_process_is_a_client_too(hub: HubServer, tmp_path: Path) -> None:
    hub.create(EARS, FILES)
    code = f"""
        import json, huggingface_hub as hub
        print(json.dumps([len(open(hub.hf_hub_download("{EARS}", "{PATCH}"), "rb").read()), hub.get_token()]))
    """
    assert hub.run(tmp_path, code) == [len(WEIGHTS), "hf_test"]
    requests = len(hub.log)
    assert hub.run(tmp_path, code, HF_HUB_OFFLINE="1", HF_TOKEN="") == [len(WEIGHTS), None]
    assert len(hub.log) == requests > 0


# ---- the faults


GOOD, OTHER, SIZE = "the file", "other bytes", r"OSError: .*should be of size \d+ but has size \d+"
LOST, NOWHERE = "RemoteProtocolError: peer closed connection", "LocalEntryNotFoundError: "
OUTCOMES: list[tuple[str, dict[str, Any], str]] = [
    ("flip", {}, OTHER),  # without an error
    ("lfs_pointer", {"method": "*", "times": 2}, OTHER),
    ("lfs_pointer", {}, SIZE),
    ("short", {}, SIZE),
    ("long", {}, SIZE),
    ("html", {}, SIZE),
    ("html", {"method": "HEAD"}, NOWHERE + ".*missing the 'X-Repo-Commit' header"),
    ("noetag", {}, NOWHERE + ".*does not have an ETag"),
    ("etag_change", {}, GOOD),  # cached under the wrong name
    ("lie_length", {}, GOOD),
    ("lie_length", {"times": 6}, LOST),
    ("cut", {"at": 1, "times": 5}, GOOD),
    ("cut", {"times": 6}, LOST),
    ("reset", {"at": 1}, "ReadError: .*reset"),  # not retried, and neither OSError nor HfHubHTTPError
    ("slow", {"seconds": 0.2}, GOOD),
    ("hang", {}, GOOD),
    ("hang", {"method": "HEAD"}, GOOD),
    ("hang", {"method": "HEAD", "seconds": 0.1}, "RemoteProtocolError: Server disconnected"),  # even if cached
    ("status", {"code": 500}, "HfHubHTTPError: .*500 Internal Server Error"),  # not retried
    ("status", {"code": 429, "times": 5}, GOOD),
    ("status", {"code": 429, "times": 6}, "HfHubHTTPError: .*429 Too Many Requests"),
    ("status", {"code": 503, "method": "HEAD", "times": 6}, GOOD),
    ("status", {"code": 503, "method": "HEAD", "times": 7}, NOWHERE + ".*error happened while trying to locate"),
    ("moved", {"method": "HEAD"}, GOOD),
]


@pytest.mark.parametrize("path", [PATCH, "README.md"])
@pytest.mark.parametrize(("kind", "options", "outcome"), OUTCOMES)
def test_how_the_client_reacts_to_a_fault(
    hub: HubServer, tmp_path: Path, path: str, kind: str, options: dict[str, Any], outcome: str
) -> None:
    hub.create(EARS, FILES)
    fault = hub.fail(kind, f"*/{path}", **options)
    with hub.client(tmp_path, timeout=1 if kind == "hang" else 60) as api:
        try:
            found = GOOD if fetch(api, path) == FILES[path] else OTHER
        except Exception as error:
            found = f"{type(error).__name__}: {error}".replace("\n", " ")
        assert re.match(outcome, found)
        assert fault.times == 0
        assert (
            fetch(api, path) == FILES[path] or found == OTHER
        )  # the fault is over, but a damaged copy stays in the cache


def test_every_fault_is_tested() -> None:
    assert {kind for kind, _, _ in OUTCOMES} == FAULTS


def test_a_fault_occurs_where_and_as_often_as_configured(hub: HubServer) -> None:
    hub.create(EARS, FILES)
    hub.fail("status", match="*/a.txt", times=2, code=418)
    hub.fail("status", match="*.safetensors", code=418)
    a, b, patch = (f"{hub.url}/{EARS}/resolve/main/{name}" for name in ("notes/a.txt", "notes/b.txt", PATCH))
    assert [status(b), status(a, "HEAD"), status(a), status(a), status(a)] == [200, 200, 418, 418, 200]
    stored = f"{hub.store}/{EARS}/{hub.repos[EARS].find('main')}/{PATCH}"
    assert [status(patch), status(stored), status(stored)] == [302, 418, 200]
    with pytest.raises(AssertionError, match="flop"):
        hub.fail("flop")
    with pytest.raises(TypeError, match="tiems"):
        hub.fail("flip", tiems=2)


def test_retry_after_is_recorded_but_not_slept_in_tests(hub: HubServer, api: HfApi) -> None:
    hub.create(EARS, FILES)
    hub.fail("status", "*.safetensors", code=429, retry_after=3600)
    hub.fail("cut", "*.safetensors", at=1)
    hub.fail("slow", "*.safetensors", seconds=0.3)
    begin = time.monotonic()
    assert fetch(api) == WEIGHTS
    assert hub.waits == [3601, 1] and 0.3 <= time.monotonic() - begin < 60


def test_a_changed_etag_is_another_file_to_the_client(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    hub.create(EARS, FILES)
    name = hashlib.sha256(WEIGHTS).hexdigest()
    hub.fail("etag_change")
    assert fetch(api) == WEIGHTS
    assert name not in {file.name for file in tmp_path.glob("hub/*/blobs/*")}


def test_an_interrupted_download_is_resumed(hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # by default 10 MB: shorter parts are downloaded again
    hub.create(EARS, FILES)
    hub.fail("cut", "*.safetensors", at=2500, times=2)
    assert fetch(api) == WEIGHTS
    requests = [(one.range, one.status, one.sent) for one in hub.asked("GET", "*.safetensors")]
    assert requests == [(None, 200, 2500), ("bytes=2000-", 206, 2500), ("bytes=4000-", 206, len(WEIGHTS) - 4000)]


def test_a_snapshot_is_of_one_commit_though_the_branch_moves(hub: HubServer, api: HfApi) -> None:
    repo = hub.create(EARS, FILES)
    newer = {"notes/a.txt": b"newer", PATCH: WEIGHTS[::-1]}
    hub.fail("moved", "*/revision/main", move=lambda: repo.commit(newer))
    assert folder(api.snapshot_download(EARS)) == FILES != repo.files()
    assert folder(api.snapshot_download(EARS)) == repo.files()


def test_single_files_are_of_different_commits_when_the_branch_moves(hub: HubServer, api: HfApi) -> None:
    repo = hub.create(EARS, FILES)
    hub.fail("moved", "*/patch.safetensors", move=lambda: repo.commit({"notes/a.txt": b"newer"}))
    assert [fetch(api), fetch(api, "notes/a.txt")] == [WEIGHTS, b"newer"]


def test_a_commit_with_a_lost_response_is_made_and_a_refused_one_is_not(hub: HubServer, api: HfApi) -> None:
    repo = hub.create(EARS, FILES)
    for kind, made in (("status", False), ("cut", True)):
        before = repo.branches["main"]
        hub.fail(kind, "*/commit/main", method="POST")
        with pytest.raises(Exception, match=r"500 Internal|peer closed"):
            api.upload_file(repo_id=EARS, path_or_fileobj=b"new", path_in_repo="notes/a.txt")
        assert (repo.branches["main"] != before) == made


def test_without_the_hub_only_the_cache_works(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    hub.create(EARS, FILES)
    snapshot = api.snapshot_download(EARS)
    hub.close()
    assert api.snapshot_download(EARS) == snapshot and fetch(api) == WEIGHTS
    with pytest.raises(LocalEntryNotFoundError):
        api.snapshot_download(EARS, cache_dir=tmp_path / "empty")
