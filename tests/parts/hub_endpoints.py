"""The endpoints of a Hugging Face Hub, over repositories in memory.

In: requests. Out: responses for the `huggingface_hub` client. As on the Hub, large files are on another host: `resolve`
redirects to a second origin, which takes no tokens. Knows nothing of sockets, nor of Xet, pull requests, data sets and
spaces.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml

NOW = "2026-01-01T00:00:00.000Z"  # the date of everything: ids must depend on content only
LARGE = (".safetensors", ".bin", ".npz", ".mp4")  # stored in LFS, unless empty
PART = 1 << 20  # bytes; larger uploads are split into parts of this size. The Hub's are larger, but slow in tests


class File:
    """A file as in git: for a large one, git has a pointer with the sha256 of its content."""

    def __init__(self, path: str, data: bytes) -> None:
        self.data, self.large, self.sha256 = data, bool(data) and path.endswith(LARGE), hashlib.sha256(data).hexdigest()
        self.pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
        blob = self.pointer.encode() if self.large else data
        oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        self.etag = self.sha256 if self.large else oid
        # A tree has `path` and `oid` where the siblings of a model have `rfilename` and `blobId`: here are both.
        self.facts: dict[str, Any] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
        self.facts |= {"rfilename": path, "blobId": oid}
        if self.large:
            self.facts["lfs"] = {"oid": self.sha256, "sha256": self.sha256, "size": len(data)}
            self.facts["lfs"]["pointerSize"] = len(self.pointer)


@dataclass
class Commit:
    parent: str | None
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    """Commits by id, and names for them: branches and tags. Setting `repo.branches["main"] = id` moves the branch."""

    name: str
    private: bool = False  # for others it does not exist
    gated: bool = False  # others see its file names, but only `readers` get the content
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def find(self, revision: str) -> str:
        """The commit id of a branch or tag; else the revision itself."""
        return self.branches.get(revision) or self.tags.get(revision) or revision

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.commits[self.find(revision)].files.items()}

    def commit(self, changes: Mapping[str, bytes | None], title: str = "commit", branch: str = "main") -> str:
        """Add a commit to a branch, which may be new; None deletes a file. Returns the commit's id."""
        parent = self.branches.get(branch)
        files = dict(self.commits[parent].files) if parent else {}
        for path, data in changes.items():
            files.pop(path, None)
            if data is not None:
                files[path] = File(path, data)
        files = dict(sorted(files.items()))
        text = json.dumps([self.name, parent, title, [(path, file.etag) for path, file in files.items()]])
        commit = self.branches[branch] = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = Commit(parent, title, files)
        return commit


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: File | None = None  # the file in the body, if any


def reply(value: object, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


class Refusal(Exception):
    def __init__(self, status: int, text: str, code: str = "", **headers: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self.response = reply({"error": text}, status, X_Error_Message=text, **named, **headers)


class Hub:
    """The state of the Hub. Tests may read and write it."""

    def __init__(self, url: str, store: str) -> None:
        self.url, self.store = url, store  # two names of one host: for the client, large files are on another host
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_test": "tester", "hf_other": "other"}
        self.uploads: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}

    def create(self, name: str, files: Mapping[str, bytes] | None = None, **facts: Any) -> Repo:
        repo = self.repos[name] = Repo(name, **facts)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"} if files is None else files, "initial commit")
        return repo

    def objects(self) -> dict[str, bytes]:
        """Large files by sha256: those in commits, and uploads for the next commit."""
        commits = [commit for repo in self.repos.values() for commit in repo.commits.values()]
        files = [file for commit in commits for file in commit.files.values() if file.large]
        return self.uploads | {file.sha256: file.data for file in files}


@dataclass
class Request:
    """A logged request, with the permissions of its sender; its methods are the endpoints."""

    method: str
    path: str
    range: str | None  # the header
    hub: Hub = field(repr=False)
    query: dict[str, list[str]] = field(repr=False)
    token: str = field(repr=False)
    body: bytes = field(repr=False)
    status: int = 0
    sent: int = 0  # bytes of body in the response

    @property
    def user(self) -> str | None:
        if self.token and self.token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(self.token)

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    def repo(self, name: str, write: bool = False) -> Repo:
        user, found = self.user, self.hub.repos.get(name)
        if found is None or (found.private and user != found.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != found.owner:
            raise Refusal(403 if user else 401, f"{user or 'nobody'} may not write to {name}")
        return found

    def at(self, name: str, revision: str) -> tuple[Repo, str]:
        repo = self.repo(name)
        if (commit := repo.find(revision)) not in repo.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit

    def files(self, name: str, revision: str) -> dict[str, File]:
        repo, commit = self.at(name, revision)
        return repo.commits[commit].files

    def whoami(self) -> Response:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return reply({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    def create_repo(self) -> Response:
        asked = self.json()
        owner = asked.get("organization") or self.user
        if self.user is None or self.user != owner:
            raise Refusal(403 if self.user else 401, f"{self.user or 'nobody'} may not create models of {owner}")
        name = f"{owner}/{asked['name']}"
        said = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return reply({"error": "You already created this model repo", **said}, 409)
        self.hub.create(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return reply(said)

    def delete_repo(self) -> Response:
        asked = self.json()
        del self.hub.repos[self.repo(f"{asked.get('organization') or self.user}/{asked['name']}", write=True).name]
        return reply({})

    def validate_card(self) -> Response:
        try:
            warnings = [] if front_matter(self.json()["content"]) else [{"message": "empty or missing yaml metadata"}]
        except (yaml.YAMLError, ValueError) as error:
            return reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return reply({"errors": [], "warnings": warnings})

    def list_models(self) -> Response:
        """Models with every tag of `filter`; without `full`, with only the fields that the Hub returns."""
        said = {name: values[0] for name, values in self.query.items()}
        secret = () if self.flag("full") else ("author", "sha", "lastModified", "siblings", "gated")
        secret = secret if self.flag("cardData") else (*secret, "cardData")
        found = []
        for repo in self.hub.repos.values():
            facts = described(repo, repo.branches["main"])
            if said.get("search", "").lower() not in repo.name.lower() or (repo.private and self.user != repo.owner):
                continue
            if said.get("author", repo.owner) == repo.owner and set(self.query.get("filter", ())) <= set(facts["tags"]):
                found.append(self.expanded(facts) or {name: facts[name] for name in facts if name not in secret})
        return reply(found[: int(said.get("limit", len(found)))])

    def model_info(self, repo: str, rev: str = "main") -> Response:
        facts = described(*self.at(repo, rev))
        if not self.flag("blobs"):
            facts["siblings"] = [{"rfilename": file["rfilename"]} for file in facts["siblings"]]
        return reply(self.expanded(facts) or facts)

    def expanded(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The fields named in `expand`, if any; else all."""
        return {name: facts[name] for name in ["id", *self.query["expand"]]} if "expand" in self.query else {}

    def tree(self, repo: str, rev: str) -> Response:
        """Files only; the client skips folders when it downloads."""
        deep, files = self.flag("recursive"), self.files(repo, rev).items()
        return reply([file.facts for path, file in files if deep or "/" not in path])

    def paths_info(self, repo: str, rev: str) -> Response:
        files = self.files(repo, rev)
        return reply([files[path].facts for path in parse_qs(self.body.decode()).get("paths", []) if path in files])

    def refs(self, repo: str) -> Response:
        found, rows = self.repo(repo), {"branches": [], "tags": [], "converts": []}
        for kind, ref, table in ("branches", "heads", found.branches), ("tags", "tags", found.tags):
            rows[kind] = [{"name": n, "ref": f"refs/{ref}/{n}", "targetCommit": id} for n, id in table.items()]
        return reply(rows)

    def commits(self, repo: str, rev: str) -> Response:
        found, rows = self.repo(repo), []
        id: str | None = self.at(repo, rev)[1]
        while id:
            row = {"id": id, "title": found.commits[id].title, "message": "", "date": NOW}
            rows.append(row | {"authors": [{"user": found.owner}]})
            id = found.commits[id].parent
        return reply(rows)

    def label(self, repo: str, kind: str, rev: str) -> Response:
        """Create or delete a tag or a branch."""
        table = self.repo(repo, write=True).tags if kind == "tag" else self.repo(repo, write=True).branches
        if self.method == "DELETE":
            table.pop(rev, None)
            return reply({})
        asked = self.json()
        name, start = (asked["tag"], rev) if kind == "tag" else (rev, asked.get("startingPoint", "main"))
        if name in table:
            raise Refusal(409, f"Reference already exists: {name}")
        table[name] = self.at(repo, start)[1]
        return reply({})

    def preupload(self, repo: str, rev: str) -> Response:
        files, rows = self.files(self.repo(repo, write=True).name, rev), []
        for path in [asked["path"] for asked in self.json()["files"]]:
            row = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            rows.append(row | ({"oid": files[path].etag} if path in files else {}))
        return reply({"files": rows})

    def lfs_batch(self, repo: str) -> Response:
        self.repo(repo, write=True)
        stored, rows = self.hub.objects(), []
        for oid, size in [(asked["oid"], asked["size"]) for asked in self.json()["objects"]]:
            place: dict[str, Any] = {"href": f"{self.hub.store}/{oid}"}
            if size > PART:
                parts = {str(n): f"{place['href']}/{n}" for n in range(1, -(-size // PART) + 1)}
                place = {"href": f"{self.hub.url}/lfs/{oid}", "header": {"chunk_size": str(PART), **parts}}
            actions = {"upload": place, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            rows.append({"oid": oid, "size": size} | ({} if oid in stored else {"actions": actions}))
        return reply({"transfer": "basic", "objects": rows})

    def put(self, oid: str, part: str = "") -> Response:
        self.hub.parts.setdefault(oid, {})[int(part or 1)] = self.body
        return reply({}, ETag=hashlib.md5(self.body).hexdigest()) if part else self.complete(oid)

    def complete(self, oid: str) -> Response:
        data = b"".join(data for _, data in sorted(self.hub.parts.pop(oid, {}).items()))
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, f"{len(data)} bytes came, and they are not those of {oid}")
        self.hub.uploads[oid] = data
        return reply({})

    def verify(self) -> Response:
        if len(self.hub.objects().get(self.json()["oid"], b"")) != self.json()["size"]:
            raise Refusal(404, "the object is not there")
        return reply({})

    def commit(self, repo: str, rev: str) -> Response:
        found, title, objects = self.repo(repo, write=True), "", self.hub.objects()
        if rev not in found.branches or "create_pr" in self.query:
            raise Refusal(404, f"no branch {rev}; pull requests are not spoken here", "RevisionNotFound")
        head = found.branches[rev]
        files, changes = found.commits[head].files, dict[str, bytes | None]()
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            path = value.get("path", "")
            match line["key"]:
                case "header":
                    title = value["summary"]
                    if not head.startswith(value.get("parentCommit", "")):
                        raise Refusal(412, f"{rev} has moved on to {head}")
                case "file":
                    changes[path] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in objects:
                    changes[path] = objects[value["oid"]]
                case "deletedFile" if path in files:
                    changes[path] = None
                case "deletedFolder" if inside := [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                    changes |= dict.fromkeys(inside)
                case key:
                    raise Refusal(404, f"{key}: {path} is not there", "EntryNotFound")
        id = found.commit(changes, title, rev)
        return reply({"commitOid": id, "commitUrl": f"{self.hub.url}/{repo}/commit/{id}", "pullRequestUrl": None})

    def resolve(self, repo: str, rev: str, path: str) -> Response:
        found, commit = self.at(repo, rev)
        if found.gated and self.user not in {found.owner, *found.readers}:
            raise Refusal(403 if self.user else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        file = found.commits[commit].files.get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
        headers = {"X-Repo-Commit": commit}
        if not file.large:
            return self.content(file, headers)
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        headers["Location"] = f"{self.hub.store}/{repo}/{commit}/{quote(path)}"
        return Response(302, headers=headers, file=file)

    def stored(self, repo: str, rev: str, path: str) -> Response:
        if self.token:
            raise Refusal(400, "a token was sent to a stranger")
        return self.content(self.hub.repos[repo].commits[rev].files[path], {})

    def content(self, file: File, headers: dict[str, str]) -> Response:
        """The file, or the requested Range of it."""
        size, wanted = len(file.data), re.fullmatch(r"bytes=(\d+)-(\d*)", self.range or "")
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if not wanted:
            return Response(200, file.data, headers, file)
        begin, end = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if begin >= size:
            raise Refusal(416, "the range is beyond the end", Content_Range=f"bytes */{size}")
        return Response(
            206, file.data[begin : end + 1], headers | {"Content-Range": f"bytes {begin}-{end}/{size}"}, file
        )


def front_matter(text: str) -> dict[str, Any]:
    """The metadata at the head of a card."""
    found = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    card = yaml.safe_load(found[1]) if found else {}
    if not isinstance(card, dict):
        raise ValueError("the metadata is not a mapping")
    return card


def described(repo: Repo, commit: str) -> dict[str, Any]:
    """The Hub's metadata of a model; much of it comes from the card."""
    files, card = repo.commits[commit].files, dict[str, Any]()
    with suppress(KeyError, ValueError, yaml.YAMLError):
        card = front_matter(files["README.md"].data.decode())
    bases = card.get("base_model") or []
    tags = [card.get("library_name"), *(card.get("tags") or []), card.get("license") and f"license:{card['license']}"]
    for base in [bases] if isinstance(bases, str) else bases:
        relation = f"{card['base_model_relation']}:" if "base_model_relation" in card else ""
        tags += dict.fromkeys([f"base_model:{base}", f"base_model:{relation}{base}"])
    facts = {"id": repo.name, "modelId": repo.name, "author": repo.owner, "sha": commit, "private": repo.private}
    facts |= {"gated": "auto" if repo.gated else False, "lastModified": NOW, "createdAt": NOW, "cardData": card}
    facts |= {"library_name": card.get("library_name"), "tags": [tag for tag in tags if tag], "downloads": 0}
    return facts | {"likes": 0, "siblings": [file.facts for file in files.values()]}


ENDPOINTS: dict[str, Callable[..., Response]] = {
    "GET /api/whoami-v2": Request.whoami,
    "POST /api/repos/create": Request.create_repo,
    "DELETE /api/repos/delete": Request.delete_repo,
    "POST /api/validate-yaml": Request.validate_card,
    "GET /api/models": Request.list_models,
    "GET /api/models/{repo}": Request.model_info,
    "GET /api/models/{repo}/revision/{rev}": Request.model_info,
    "GET /api/models/{repo}/tree/{rev}": Request.tree,
    "POST /api/models/{repo}/paths-info/{rev}": Request.paths_info,
    "GET /api/models/{repo}/refs": Request.refs,
    "GET /api/models/{repo}/commits/{rev}": Request.commits,
    "POST /api/models/{repo}/{kind}/{rev}": Request.label,
    "DELETE /api/models/{repo}/{kind}/{rev}": Request.label,
    "POST /api/models/{repo}/preupload/{rev}": Request.preupload,
    "POST /api/models/{repo}/commit/{rev}": Request.commit,
    "POST /{repo}.git/info/lfs/objects/batch": Request.lfs_batch,
    "PUT /store/{oid}": Request.put,
    "PUT /store/{oid}/{part}": Request.put,
    "POST /lfs/verify": Request.verify,
    "POST /lfs/{oid}": Request.complete,
    "GET /{repo}/resolve/{rev}/{path}": Request.resolve,
    "GET /store/{repo}/{rev}/{path}": Request.stored,
}
SHAPES = {"repo": r"[\w.-]+/[\w.-]+", "path": ".+", "kind": "tag|branch"}  # all else is one path component


def respond(request: Request, quoted: str) -> Response:
    """The response of the endpoint for a path."""
    for template, endpoint in ENDPOINTS.items():
        pattern = re.sub(r"{(\w+)}", lambda part: f"(?P<{part[1]}>{SHAPES.get(part[1], '[^/]+')})", template)
        found = re.fullmatch(pattern, f"{request.method.replace('HEAD', 'GET')} {quoted}")
        if found:
            try:
                return endpoint(request, **{name: unquote(text) for name, text in found.groupdict().items()})
            except Refusal as refusal:
                return refusal.response
    return Refusal(404, f"this hub has no {request.method} {request.path}").response
