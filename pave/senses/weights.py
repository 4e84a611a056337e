"""Loads released weights into a network.

In: a `Release` (a Hub repository, a folder or a file), and a network on the meta device. Out: the network with its part
of the release; every weight must match. Knows nothing of clips.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import constants
from pydantic import BeforeValidator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pave.errors import EncoderError, PatchError, nearest, raised_as
from pave.files import json_text, pickled, tensorfile
from pave.files.atomic import read_bytes
from pave.hub.client import cached_commit
from pave.hub.locate import fetch
from pave.patch.filenames import HUB_NAME

INDEX = "model.safetensors.index.json"  # of a release in several files
WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = (WHOLE[0], INDEX, WHOLE[1])
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Location of a network's weights, and the network's part of the files. The first non-empty of `given`, the
    environment variable and `repo` is used."""

    given: str = ""  # the option `weights` of an encoder: a Hub repository, a folder or a file
    variable: str = ""  # environment variable with the same meaning
    repo: str = ""
    revision: str = "main"  # of a repository
    prefixes: Sequence[str] = ("",)  # of the part's names, by the class that was saved; each ends with the last one
    others: str = "(?!)"  # regular expression for the beginnings of names in other parts; by default there are none
    remedy: str  # what to use instead of a wrong release, for errors
    # For `pave weights get`, which keeps the part alone:
    encoder: str = ""  # whose weights these are
    what: str = ""  # in words
    licence: str = ""
    address: str = ""  # of a file of torch.save outside the Hub
    size: str = ""  # of the download, as far as it is known, in words
    inside: str = ""  # text in the names of the part; empty: the whole release is needed
    sha256: str = ""  # of the kept tensors; empty: nobody publishes one
    shapes: Callable[[], Mapping[str, Tensor]] | None = None  # the part's tensors by short name, on the meta device

    @property
    def source(self) -> str:
        chosen = self.given or os.environ.get(self.variable)
        return chosen or (str(self.kept) if self.kept and self.kept.is_file() else self.repo)

    @property
    def kept(self) -> Path | None:
        """Where `pave weights get` keeps the part; None for a release that the Hub's cache holds as a whole."""
        if not self.inside:
            return None
        return Path(constants.HF_ASSETS_CACHE, "pave", "weights", f"{self.encoder}.safetensors")

    @property
    def present(self) -> bool:
        """Whether the weights are on this machine, or named by the user."""
        if self.given or os.environ.get(self.variable):
            return True  # the user's own choice; whether it fits is seen when it is loaded
        if self.kept:
            return self.kept.is_file()
        revision = None if self.revision == "main" else self.revision
        return any(cached_commit(self.repo, revision, [name]) for name in FILES)

    @property
    def lacking(self) -> str:
        """What is missing, its licence and size, and the command that gets it; empty if nothing is."""
        if not self.encoder or self.present:
            return ""
        return (
            f"the weights of {self.what}, for {self.encoder}, are not on this machine: {self.licence}, "
            f"{self.size}; get them with `pave weights get {self.encoder}`"
        )

    def find(self, *names: str) -> Path:
        """The first of these files that exists; the source may be a file itself."""
        source, path = self.source, Path(self.source)
        if os.path.isfile(path):
            return path
        if os.path.isdir(path):
            existing = [path / name for name in names if (path / name).is_file()]
            if not existing:
                raise EncoderError(f"{source}: holds no {' or '.join(names)}; {self.remedy}")
            return existing[0]
        repo = HUB_NAME.fullmatch(source)
        if repo is None:
            cause = f"{source}: not a local folder or file, and not the name of a Hub repository (user/name)"
            raise EncoderError(f"{cause}; {self.remedy}")
        for name in names[:-1]:
            with suppress(PatchError):  # if all are missing, the error about the last one is raised
                return fetch(repo["repo"], name, repo["revision"] or self.revision)
        return fetch(repo["repo"], names[-1], repo["revision"] or self.revision)

    def beside(self, name: str) -> Path:
        """Another file of the release; if the source is a file, from its folder."""
        path = Path(self.source)
        return replace(self, given=str(path.parent)).find(name) if os.path.isfile(path) else self.find(name)


def one_of(releases: Mapping[str, object]) -> BeforeValidator:
    """For an option: the name of a release with known sizes."""

    def known(release: object) -> object:
        if not isinstance(release, str) or release not in releases:
            raise ValueError(
                f"has no release {release!r}; {nearest(str(release), releases)}; for your own weights, set release to "
                "the one they were trained from, and weights to their location"
            )
        return release

    return BeforeValidator(known)


def opened(network: N, release: Release) -> N:
    """`network` with its part of a release, in float32 and on the GPU if there is one; no other part is loaded."""
    source = release.source
    try:
        with raised_as(EncoderError, source):
            tensors = _part(release)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{source}: cannot be read ({error}); download it again") from None
    refuse_broken(tensors, source)
    return fill(network, tensors, source, release.remedy).float().to("cuda" if torch.cuda.is_available() else "cpu")


def refuse_broken(tensors: Mapping[str, Tensor], source: str) -> None:
    """EncoderError for weights that are not finite: the file is damaged."""
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise EncoderError(f"{source}: {len(broken)} of its weights are not finite ({broken[0]} …); download it again")


def fill(network: N, tensors: Mapping[str, Tensor], source: str, remedy: str) -> N:
    """`network`, frozen, with exactly these tensors as its weights."""
    want = network.state_dict()
    missing, unexpected = want.keys() - tensors.keys(), tensors.keys() - want.keys()
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise EncoderError(f"{source}: {len(names)} of its weights are {what} ({min(names)} …); {remedy}")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape or tensor.is_floating_point() != want[name].is_floating_point():
            got = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise EncoderError(f"{source}: {name} is {got}, the network needs {tuple(want[name].shape)}; {remedy}")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _part(release: Release) -> dict[str, Tensor]:
    path = release.find(*FILES)
    if path == release.kept:
        tensors = whole(path, release)
        return {name: tensors[full] for name, full in _names(tensors, release).items()}
    if path.suffix == ".bin":
        tensors = pickled.read(path, inside=release.prefixes[-1])
        return {name: tensors[full] for name, full in _names(tensors, release).items()}
    if path.suffix != ".json":
        with safe_open(path, "pt") as file:
            return _copies(file, _names(file.keys(), release))
    shards = _shards(path)
    names = _names(shards, release)
    part: dict[str, Tensor] = {}
    for shard in sorted({shards[full] for full in names.values()}):
        with safe_open(release.beside(shard), "pt") as file:
            part |= _copies(file, {name: full for name, full in names.items() if shards[full] == shard})
    return part


def whole(path: Path, release: Release) -> dict[str, Tensor]:
    """The tensors that `pave weights get` kept, if every bit is as it was fetched."""
    with raised_as(remedy=f"run `pave weights get {release.encoder} --again`"):
        return tensorfile.read_sealed(path)[0]


def misfit(release: Release, tensors: Mapping[str, Tensor]) -> str:
    """Why these are not the part of a release, as text; empty if they are."""
    if not tensors:
        return f"has no weight with {release.inside!r} in its name"
    names, want = _names(tensors, release), release.shapes() if release.shapes else {}
    for what, some in (("missing", want.keys() - names.keys()), ("unexpected", names.keys() - want.keys())):
        if some and release.shapes:
            return f"{len(some)} of its weights are {what} ({min(some)} …)"
    for name, full in names.items():
        shape = tuple(tensors[full].shape)
        if release.shapes and shape != tuple(want[name].shape):
            return f"{full} is {shape}, and must be {tuple(want[name].shape)}"
        if not tensors[full].isfinite().all():
            return f"{full} has values that are not finite"
    return ""


def _copies(file: safe_open, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies: the alignment of a weight in a memory-mapped file would change the last bits of the outputs."""
    return {name: file.get_tensor(full).clone() for name, full in names.items()}


def _shards(path: Path) -> dict[str, str]:
    """For each weight, the file beside the index that holds it."""
    shards = json_text.parse_json(path, read_bytes(path), "text").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) and SHARD.fullmatch(s) for s in shards.values()):
        raise EncoderError(f"{path}: its weight_map does not name safetensors files beside it; download it again")
    return shards


def _names(names: Iterable[str], release: Release) -> dict[str, str]:
    """Names of the network's part, and of no known part, from short (without the first prefix that occurs) to full."""
    names, prefixes = list(names), release.prefixes
    prefix = next((each for each in prefixes if any(name.startswith(each) for name in names)), prefixes[-1])
    ours = (name for name in names if (prefix and name.startswith(prefix)) or not re.match(release.others, name))
    return {name.removeprefix(prefix): name for name in ours}
