"""Weights that others have released, in a network that was built without any.

In: where a release lies (a repo of the Hub, a folder, or a file in it), and a network. Out: the network with what the
release has for it, each weight of which has found its place. Knows nothing of clips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pave.errors import EncoderError, PatchError, raised_as
from pave.files import json_text, pickled
from pave.hub.locate import fetch
from pave.patch.filenames import HUB_NAME

INDEX = "model.safetensors.index.json"  # of a release in several files
WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = (WHOLE[0], INDEX, WHOLE[1])
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
N = TypeVar("N", bound=nn.Module)


def opened(
    network: N, source: str, revision: str, *, prefixes: Sequence[str], others: re.Pattern[str], again: str
) -> N:
    """`network` with its part of a release, in float32 and on the GPU where there is one; no other part is loaded.

    prefixes: what stands before the part's names; the class that was saved decides which. Each ends with the last.
    others: the names of other parts. again: what to give instead of a wrong release."""
    try:
        with raised_as(EncoderError, source):
            found = _part(source, revision, prefixes, others, again)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{source}: cannot be read ({error}); fetch it again") from None
    refuse_broken(found, source)
    return fill(network, found, source, again).float().to("cuda" if torch.cuda.is_available() else "cpu")


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


def find(source: str, names: Sequence[str], revision: str, again: str) -> Path:
    """The first of these files that there is; `source` may be one itself."""
    place = Path(source)
    if place.is_file():
        return place
    if place.is_dir():
        there = [place / name for name in names if (place / name).is_file()]
        if not there:
            raise EncoderError(f"{source}: holds no {' or '.join(names)}; {again}")
        return there[0]
    repo = HUB_NAME.fullmatch(source)
    if repo is None:
        raise EncoderError(f"{source}: no such folder or file, and no repo of the Hub (user/name); {again}")
    for name in names[:-1]:
        with suppress(PatchError):  # the last one tells what is wrong, when more than one file is not there
            return fetch(repo["repo"], name, repo["revision"] or revision)
    return fetch(repo["repo"], names[-1], repo["revision"] or revision)


def _part(
    source: str, revision: str, prefixes: Sequence[str], others: re.Pattern[str], again: str
) -> dict[str, Tensor]:
    path = find(source, FILES, revision, again)
    if path.suffix == ".bin":
        found = pickled.read(path, inside=prefixes[-1])
        return {name: found[full] for name, full in _names(found, prefixes, others).items()}
    if path.suffix != ".json":
        with safe_open(path, "pt") as file:
            return _taken(file, _names(file.keys(), prefixes, others))
    shards = _shards(path)
    names = _names(shards, prefixes, others)
    beside = str(path.parent) if Path(source).exists() else source
    part: dict[str, Tensor] = {}
    for shard in sorted({shards[full] for full in names.values()}):
        with safe_open(find(beside, (shard,), revision, again), "pt") as file:
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


def _names(names: Iterable[str], prefixes: Sequence[str], others: re.Pattern[str]) -> dict[str, str]:
    """Each name of the part and each name of no part, without the first of the prefixes that occurs, and whole."""
    names = list(names)
    prefix = next((each for each in prefixes if any(name.startswith(each) for name in names)), prefixes[-1])
    ours = (name for name in names if (prefix and name.startswith(prefix)) or not others.match(name))
    return {name.removeprefix(prefix): name for name in ours}
