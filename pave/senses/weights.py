"""Weights that others have released, in a network that was built without any.

In: a `Release` (a repo of the Hub, a folder, or a file in it), and a network. Out: the network with what the release
has for it, each weight of which has found its place. Knows nothing of clips.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BeforeValidator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pave.errors import EncoderError, PatchError, nearest, raised_as
from pave.files import json_text, pickled
from pave.hub.locate import fetch
from pave.patch.filenames import HUB_NAME

INDEX = "model.safetensors.index.json"  # of a release in several files
WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = (WHOLE[0], INDEX, WHOLE[1])
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Where the weights of a network lie, and which part of the files is the network's. Of `given`, `place` and `repo`,
    the first that says something counts."""

    given: str = ""  # the option `weights` of an encoder: a repo of the Hub, a folder or a file
    place: str = ""  # the environment variable that may say the same
    repo: str = ""
    revision: str = "main"  # of a repo
    prefixes: Sequence[str] = ("",)  # of the part's names, by the class that was saved; each ends with the last one
    others: str = "(?!)"  # regular expression for the beginnings of names in other parts; by default there are none
    again: str  # what to give instead of a wrong release

    @property
    def source(self) -> str:
        return self.given or os.environ.get(self.place) or self.repo

    def find(self, *names: str) -> Path:
        """The first of these files that there is; the source may be one itself."""
        source, place = self.source, Path(self.source)
        if place.is_file():
            return place
        if place.is_dir():
            there = [place / name for name in names if (place / name).is_file()]
            if not there:
                raise EncoderError(f"{source}: holds no {' or '.join(names)}; {self.again}")
            return there[0]
        repo = HUB_NAME.fullmatch(source)
        if repo is None:
            raise EncoderError(f"{source}: no such folder or file, and no repo of the Hub (user/name); {self.again}")
        for name in names[:-1]:
            with suppress(PatchError):  # the last one tells what is wrong, when more than one file is not there
                return fetch(repo["repo"], name, repo["revision"] or self.revision)
        return fetch(repo["repo"], names[-1], repo["revision"] or self.revision)

    def beside(self, name: str) -> Path:
        """A further file of the release; where the source is a file, in its folder."""
        place = Path(self.source)
        return replace(self, given=str(place.parent)).find(name) if place.is_file() else self.find(name)


def one_of(releases: Mapping[str, object]) -> BeforeValidator:
    """For an option: the name of a release whose sizes are known."""

    def known(release: object) -> object:
        if not isinstance(release, str) or release not in releases:
            raise ValueError(
                f"knows no release {release!r}; {nearest(str(release), releases)}; for weights of your own name the "
                "release that they began with, and their place by the option weights"
            )
        return release

    return BeforeValidator(known)


def opened(network: N, release: Release) -> N:
    """`network` with its part of a release, in float32 and on the GPU where there is one; no other part is loaded."""
    source = release.source
    try:
        with raised_as(EncoderError, source):
            found = _part(release)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{source}: cannot be read ({error}); fetch it again") from None
    refuse_broken(found, source)
    return fill(network, found, source, release.again).float().to("cuda" if torch.cuda.is_available() else "cpu")


def refuse_broken(tensors: Mapping[str, Tensor], source: str) -> None:
    """Weights that are not finite come of a damaged file."""
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise EncoderError(f"{source}: {len(broken)} of its weights are not finite ({broken[0]} …); fetch it again")


def fill(network: N, tensors: Mapping[str, Tensor], source: str, again: str) -> N:
    """`network`, frozen, with these tensors in place of its own: all of them, and nothing else."""
    want = network.state_dict()
    for what, names in (("are missing", want.keys() - tensors.keys()), ("have no place", tensors.keys() - want.keys())):
        if names:
            raise EncoderError(f"{source}: {len(names)} of its weights {what} ({min(names)} …); {again}")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape or tensor.is_floating_point() != want[name].is_floating_point():
            got = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise EncoderError(f"{source}: {name} is {got}, the network needs {tuple(want[name].shape)}; {again}")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _part(release: Release) -> dict[str, Tensor]:
    path = release.find(*FILES)
    if path.suffix == ".bin":
        found = pickled.read(path, inside=release.prefixes[-1])
        return {name: found[full] for name, full in _names(found, release).items()}
    if path.suffix != ".json":
        with safe_open(path, "pt") as file:
            return _taken(file, _names(file.keys(), release))
    shards = _shards(path)
    names = _names(shards, release)
    part: dict[str, Tensor] = {}
    for shard in sorted({shards[full] for full in names.values()}):
        with safe_open(release.beside(shard), "pt") as file:
            part |= _taken(file, {name: full for name, full in names.items() if shards[full] == shard})
    return part


def _taken(file: safe_open, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies: where a weight lies in a mapped file would change the last bits of what is computed with it."""
    return {name: file.get_tensor(full).clone() for name, full in names.items()}


def _shards(path: Path) -> dict[str, str]:
    """Which file beside an index holds each weight."""
    shards = json_text.parse_json(path, path.read_bytes(), "text").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) and SHARD.fullmatch(s) for s in shards.values()):
        raise EncoderError(f"{path}: its weight_map does not name safetensors files beside it; fetch it again")
    return shards


def _names(names: Iterable[str], release: Release) -> dict[str, str]:
    """Each name of the part and each name of no part, without the first of the prefixes that occurs, and whole."""
    names, prefixes = list(names), release.prefixes
    prefix = next((each for each in prefixes if any(name.startswith(each) for name in names)), prefixes[-1])
    ours = (name for name in names if (prefix and name.startswith(prefix)) or not re.match(release.others, name))
    return {name.removeprefix(prefix): name for name in ours}
