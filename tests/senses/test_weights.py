"""Of a release, the part that is wanted finds its network, and everything else is refused for a reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save_file
from torch import Tensor, nn

from pave.errors import EncoderError
from pave.senses.weights import INDEX, Release, opened

EAR = {"weight": torch.tensor([[1.0, 2], [3, 4], [5, 6]]), "bias": torch.tensor([7.0, 8, 9])}
MOUTH = {"mouth.weight": torch.zeros(5, 5)}


def inside(prefix: str, tensors: dict[str, Tensor] = EAR) -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


def network() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(2, 3)


def listen(source: Path | str) -> nn.Linear:
    prefixes, others = ("model.ear.", "ear."), r"mouth\."
    release = Release(repo=str(source), prefixes=prefixes, others=others, again="give a release with ears")
    return opened(network(), release)


@pytest.mark.parametrize(
    ("prefix", "name"),
    [("model.ear.", "model.safetensors"), ("ear.", "model.safetensors"), ("model.ear.", "pytorch_model.bin")],
)
def test_the_part_is_found_under_any_of_its_names_in_both_formats(tmp_path: Path, prefix: str, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(inside(prefix) | MOUTH, tmp_path / name)
    found = listen(tmp_path)
    assert all(torch.equal(found.state_dict()[key].cpu(), value) for key, value in EAR.items())
    assert not found.training and not any(weight.requires_grad for weight in found.parameters())


def test_a_release_may_be_named_by_its_file(tmp_path: Path) -> None:
    save_file(inside("ear."), tmp_path / "mine.safetensors")
    assert torch.equal(listen(tmp_path / "mine.safetensors").bias.cpu(), EAR["bias"])


def test_what_is_given_counts_before_the_environment_and_that_before_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release(place="PAVE_EARS", repo="them/ears", again="")
    monkeypatch.delenv("PAVE_EARS", raising=False)
    assert release.source == "them/ears"
    monkeypatch.setenv("PAVE_EARS", "/somewhere")
    assert release.source == "/somewhere"
    assert replace(release, given="/mine").source == "/mine"
    monkeypatch.setenv("PAVE_EARS", "")
    assert release.source == "them/ears"


def test_of_two_copies_the_first_name_counts(tmp_path: Path) -> None:
    """PE-AV ties two; a copy under a name that is not known is not overlooked."""
    save_file(inside("model.ear.") | inside("ear."), tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"2 of its weights have no place \(ear.bias …\)"):
        listen(tmp_path)
    release = Release(repo=str(tmp_path), prefixes=("model.ear.", "ear."), others=r"ear\.", again="")
    found = opened(network(), release)
    assert torch.equal(found.bias.cpu(), EAR["bias"])


def write_shards(folder: Path) -> dict[str, str]:
    """A release of one part in two files, and another part in a third one that is not there."""
    first, second = inside("ear.", {"weight": EAR["weight"]}), inside("ear.", {"bias": EAR["bias"]}) | MOUTH
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    shards = dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(second, "model-2.safetensors")
    shards["mouth.bias"] = "model-3.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    return shards


def test_of_a_release_in_several_files_those_with_the_part_are_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("them/ears", {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})
        for source in (tmp_path, tmp_path / INDEX, "them/ears"):
            found = listen(source).state_dict()
            assert all(torch.equal(found[name].cpu(), value) for name, value in EAR.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"ear.bias": "../model-2.safetensors"}), "does not name safetensors files beside it"),
        (lambda s: s.update({"ear.bias": "model.bin"}), "does not name safetensors files beside it"),
        (lambda s: s.update({"ear.bias": 3}), "does not name safetensors files beside it"),
        (lambda s: s.update({"ear.bias": "model-1.safetensors"}), "cannot be read .*; fetch it again"),
        (lambda s: s.update({"ear.bias": "model-3.safetensors"}), "holds no model-3.safetensors"),
        (lambda s: s.pop("ear.bias"), r"1 of its weights are missing \(bias …\)"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    change(shards := write_shards(tmp_path))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(EncoderError, match=message):
        listen(tmp_path)


def test_half_precision_becomes_float32_and_nothing_hangs_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in inside("ear.").items()}, path)
    found = listen(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert found.weight.dtype == torch.float32 and torch.equal(found.weight.cpu(), EAR["weight"])


def test_a_release_of_the_hub_gives_what_its_file_gives(tmp_path: Path) -> None:
    torch.save(inside("ear.") | MOUTH, tmp_path / "pytorch_model.bin")
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("them/ears", {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
        assert torch.equal(listen("them/ears").weight.cpu(), EAR["weight"])
        server.create("them/nothing", {"README.md": b""})
        for repo, cause in (("nothing", "has no such file"), ("nobody", "not a repo")):
            with pytest.raises(EncoderError, match=f"them/{repo}: .*{cause}"):
                listen(f"them/{repo}")


class Deed:
    """What a pickle does when it is opened as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_release_runs_no_code(tmp_path: Path) -> None:
    torch.save({**inside("ear."), "ear.more": Deed(tmp_path / "done")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"would call (posix|nt)\.mkdir"):
        listen(tmp_path)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ear.bias"), r"1 of its weights are missing \(bias …\); give a release with ears"),
        (lambda w: w.clear(), "2 of its weights are missing"),
        (lambda w: w.update({"ear.drum": torch.ones(1)}), r"1 of its weights have no place \(drum …\)"),
        (lambda w: w.update({"nose.bias": torch.ones(1)}), r"1 of its weights have no place \(nose.bias …\)"),
        (lambda w: w.update({"ear.bias": torch.ones(4)}), r"bias is \(4,\) of torch.float32, the network needs \(3,\)"),
        (lambda w: w.update({"ear.bias": torch.ones(3, dtype=torch.int8)}), "bias is .* of torch.int8"),
        (lambda w: w.update({"ear.bias": torch.tensor([1, torch.nan, 1])}), r"1 of its weights are not finite \(bias"),
    ],
)
def test_a_damaged_release_is_refused(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    change(weights := inside("ear.") | MOUTH)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=f"{re.escape(str(tmp_path))}: {message}"):
        listen(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"<!doctype html>", "cannot be read .*; fetch it again"),
        ("model.safetensors", b"", "cannot be read"),
        ("pytorch_model.bin", b"PK\x03\x04", "is cut short, or not a file of torch.save"),
        ("other.bin", b"", "holds no model.safetensors or .* or pytorch_model.bin; give a release with ears"),
    ],
)
def test_a_folder_without_a_release_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EncoderError, match=message):
        listen(tmp_path)
    with pytest.raises(EncoderError, match="no such folder or file, and no repo of the Hub"):
        listen(tmp_path / "gone")
