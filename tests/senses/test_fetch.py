"""Claims about `pave weights get`: only the needed part is fetched, kept with its hash, and found by its encoder; the
consent is asked for once; whatever goes wrong, nothing wrong is kept."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from places import GOLDEN
from ranges import Web
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from pave.encoder import CONSENT, agreed, module_of
from pave.errors import EncoderError, FileDamaged, FileError
from pave.files import torchzip
from pave.senses import fetch
from pave.senses.weights import INDEX, Release

module: Any = module_of("imagebind-audio")
geometry: Any = module_of("rgbd-geometry")
WEIGHTS = listening.golden("imagebind_audio")[1]
OTHERS = {f"modality_trunks.vision.blocks.{i}.mlp.weight": torch.zeros(400, 500) + i for i in range(8)}
Answer = Callable[..., tuple[int, str, str]]


def saved(tensors: dict[str, Any], **how: Any) -> bytes:
    file = BytesIO()
    torch.save(tensors, file, **how)
    return file.getvalue()


WHOLE = saved({**OTHERS, **WEIGHTS})


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and no consents."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "Sizes", lambda: listening.IMAGEBIND)
    monkeypatch.setenv("PAVE_HOME", str(tmp_path / "home"))
    for name in (CONSENT, module.PLACE, geometry.PLACE, geometry.CLIP_PLACE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with Web(WHOLE) as web:
        monkeypatch.setattr(module, "SOURCE", web.address)
        yield web


@pytest.fixture
def ears(web: Web) -> Release:
    (release,) = fetch.releases("imagebind-audio")
    return release


def kept(release: Release) -> dict[str, Tensor]:
    assert release.kept
    return load_file(release.kept) if release.kept.is_file() else {}


def same(release: Release) -> bool:
    found = kept(release)
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in found)


# what arrives


def test_only_the_part_is_fetched_and_the_encoder_finds_it(web: Web, ears: Release, monkeypatch: Any) -> None:
    assert "4.8 GB, of which 345 MB" in ears.lacking and "`pave weights get imagebind-audio`" in ears.lacking
    got = fetch.get(ears)
    part = sum(tensor.nbytes for tensor in WEIGHTS.values())
    assert same(ears) and part < got.fetched < part + 100_000 and len(WHOLE) > 2 * part
    assert ears.lacking == "" and ears.present and not ears.kept.with_suffix(".part").exists()  # type: ignore[union-attr]
    monkeypatch.setenv(CONSENT, "1")
    network = module.ImageBindAudio("", listening.IMAGEBIND).network
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in network.state_dict().items())
    seen = len(web.seen)
    assert fetch.get(ears).fetched == 0 and len(web.seen) == seen
    data = bytearray(ears.kept.read_bytes())  # type: ignore[union-attr]
    data[-5] ^= 1
    ears.kept.write_bytes(data)  # type: ignore[union-attr]
    with pytest.raises(EncoderError, match=r"its sha256; run `pave weights get imagebind-audio --again`"):
        _ = module.ImageBindAudio("", listening.IMAGEBIND).network
    assert fetch.get(ears, again=True).fetched and same(ears)


def test_an_interrupted_download_goes_on_where_it_stopped(web: Web, ears: Release) -> None:
    web.calm, web.faults = 20, [lambda handler: handler.send(cut=0)] * 5
    with pytest.raises(FileError, match="5 times in a row; try again: what has arrived is kept"):
        fetch.get(ears)
    assert not kept(ears)
    before = {asked for _, asked, _ in web.seen[:19]}
    web.seen, web.calm = [], 0
    fetch.get(ears)
    again = {asked for _, asked, _ in web.seen}
    assert same(ears) and len(before & again) <= 4  # only the size, the first bytes, the directory and the pickle
    shutil.rmtree(Path(constants.HF_ASSETS_CACHE))
    web.faults = [lambda handler: handler.send(cut=0)] * 5
    web.seen, web.calm = [], 20
    with pytest.raises(FileError):
        fetch.get(ears)
    web.etag, web.data = '"two"', saved({**WEIGHTS, **OTHERS})  # another version: nothing of the first is used
    assert fetch.get(ears).fetched > sum(tensor.nbytes for tensor in WEIGHTS.values()) and same(ears)


@pytest.mark.parametrize("kind", ["no ranges", "not a zip", "a file here", "safetensors here"])
def test_a_file_that_cannot_be_cut_from_afar_is_cut_here(web: Web, ears: Release, tmp_path: Path, kind: str) -> None:
    source = ""
    if kind == "no ranges":
        web.ranges = False
    elif kind == "not a zip":
        web.data = saved({**OTHERS, **WEIGHTS}, _use_new_zipfile_serialization=False)
        web.calm, web.faults = 3, [lambda handler: handler.send(cut=10_000)]
    else:
        source = str(tmp_path / ("all.safetensors" if "safe" in kind else "all.pth"))
        (save_file if "safe" in kind else torch.save)({**OTHERS, **WEIGHTS}, source)
    got = fetch.get(ears, source=source)
    assert same(ears) and (got.fetched == 0) == bool(source)
    assert str(tmp_path) not in str(json.loads(ears.kept.read_bytes()[8:2000].split(b"}")[0] + b"}}"))  # type: ignore[union-attr]


class Deed:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def flipped(data: bytes) -> bytes:
    """One bit of one weight of the part."""
    place = data.index(WEIGHTS["modality_heads.audio.2.weight"].numpy().tobytes()[:64])
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


STEM = "modality_preprocessors.audio.rgbt_stem.proj.weight"
BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "one bit": ("arrived damaged .*CRC", lambda: flipped(WHOLE)),
    "cut short": ("arrived damaged", lambda: WHOLE[:-4000]),
    "another model": ("has no weight with '.audio.' in its name", lambda: saved(OTHERS)),
    "one less": ("1 of its weights are missing", lambda: saved({k: v for k, v in WEIGHTS.items() if k != STEM})),
    "another shape": (r"is \(96, 16\), and must be", lambda: saved({**WEIGHTS, STEM: torch.zeros(96, 16)})),
    "not finite": ("not finite", lambda: saved({**WEIGHTS, STEM: WEIGHTS[STEM] / 0})),
    "a web page": (r"is cut short, or not a file of torch.save", lambda: b"<html>sign in</html>"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_wrong_file_is_refused_and_nothing_is_kept(web: Web, ears: Release, kind: str) -> None:
    cause, make = BROKEN[kind]
    web.data = make()
    with pytest.raises(FileDamaged, match=cause):
        fetch.get(ears)
    assert not kept(ears)


def test_a_program_in_the_pickle_is_named_and_not_run(web: Web, ears: Release, tmp_path: Path) -> None:
    web.data = saved({**WEIGHTS, "x.audio.y": Deed(tmp_path / "done")})
    with pytest.raises(FileDamaged, match=r"would call (posix|nt)\.mkdir when opened"):
        fetch.get(ears)
    assert not kept(ears) and not (tmp_path / "done").exists()


def test_another_sha256_than_the_published_one_is_refused(ears: Release) -> None:
    with pytest.raises(FileDamaged, match=r"its tensors have sha256 .*, published is 000"):
        fetch.get(replace(ears, sha256="0" * 64))
    assert not kept(ears)
    known = fetch.get(ears).sha256
    assert fetch.get(replace(ears, sha256=known), again=True).sha256 == known


def test_a_full_disk_is_noticed_before_the_download(web: Web, ears: Release, monkeypatch: Any) -> None:
    free = namedtuple("free", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(FileError, match=r"has 1,000 bytes free, .* are needed; free some, or set HF_HOME"):
        fetch.get(ears)
    assert web.sent() < 2 << 20


def test_the_mlp_of_llava3d_is_fetched_by_ranges_from_the_hub(tmp_path: Path) -> None:
    prefix, head = "weights.positional_embedding.position_embedding_head.", geometry.HEADS[0]
    golden = load_file(GOLDEN / "llava3d_geometry.safetensors")
    mlp = {head + name.removeprefix(prefix): each for name, each in golden.items() if name.startswith(prefix)}
    save_file({**mlp, "model.layers.0.weight": torch.ones(3_000_000)}, tmp_path / "b.safetensors")
    index = {"weight_map": {**dict.fromkeys(mlp, "b.safetensors"), "model.x": "a.safetensors"}}
    files = {INDEX: json.dumps(index).encode(), "b.safetensors": (tmp_path / "b.safetensors").read_bytes()}
    release, clip = fetch.releases("rgbd-geometry")
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create(geometry.LLAVA_3D, files)
        got = fetch.get(release)
        assert sum(one.sent for one in server.asked("GET", "*")) < 6_000_000 < len(files["b.safetensors"])
        assert got.path == release.kept and release.present and not clip.present
        assert "CLIP's ViT-L/14 at 336 pixels, for rgbd-geometry, are not on this machine: MIT" in clip.lacking
        assert torch.equal(geometry.position("")[3].weight, mlp[f"{head}3.weight"].float())
        server.create(geometry.CLIP, {"model.safetensors": save({"x": torch.zeros(2)})})
        assert fetch.get(clip).path.name == "model.safetensors" and clip.present


# the command


def test_the_command_asks_for_consent_once(web: Web, command: Answer) -> None:
    code, out, err = command("weights", "get", "imagebind-audio")
    assert code == 2 and "needs your consent to CC-BY-NC-SA-4.0" in err and "--yes" in err
    for line in ("licence  CC-BY-NC-SA-4.0: research only", "size     4.8 GB", "sha256   none is published", web.root):
        assert line in err
    assert not web.seen and not agreed("imagebind-audio", module.LICENCE)
    code, out, err = command("weights", "path", "imagebind-audio")
    assert code == 2 and out == "" and "get them with `pave weights get imagebind-audio`" in err
    code, out, err = command("weights", "get", "imagebind-audio", "--yes")
    assert code == 0 and "imagebind-audio.safetensors: ImageBind's audio branch, sha256 " in out and "100 %" in err
    assert agreed("imagebind-audio", module.LICENCE) and not agreed("imagebind-audio", "another licence")
    assert not agreed("rgbd-geometry", module.LICENCE)
    assert module.ImageBindAudio("", listening.IMAGEBIND).network, "the consent said once is enough"
    assert "was here" in command("weights", "get", "imagebind-audio")[1]
    assert command("weights", "path", "imagebind-audio")[1].strip().endswith("imagebind-audio.safetensors")
    listed = command("weights", "list")[1]
    assert (
        "imagebind-audio: ImageBind's audio branch, CC-BY-NC-SA-4.0 [on this machine]" in listed
        and "rgbd-geometry" in listed
    )


def test_the_environment_still_says_yes_or_no(monkeypatch: pytest.MonkeyPatch, command: Answer, web: Web) -> None:
    monkeypatch.setenv(CONSENT, "1")
    assert command("weights", "get", "imagebind-audio")[0] == 0
    monkeypatch.setenv(CONSENT, "no")
    assert not agreed("imagebind-audio", module.LICENCE)


def test_unknown_names_and_places_are_refused(command: Answer, tmp_path: Path, web: Web) -> None:
    assert "did you mean 'imagebind-audio'" in command("weights", "get", "imagebind", "--yes")[2]
    assert "logmel has no weights to get; known: imagebind-audio" in command("weights", "get", "logmel")[2]
    assert "omit it" in command("weights", "get", "languagebind-video", "--yes", "--from", "x.pth")[2]
    code, _, err = command("weights", "get", "imagebind-audio", "--yes", "--from", tmp_path / "none.pth")
    assert code == 2 and "none.pth: cannot be read" in err


# the pickle's outline


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.arange(24).reshape(2, 3, 4)[:, 1:, ::2], "b": torch.zeros(0, 3)},
        {"half": torch.ones(3).half(), "bf": torch.ones(2, 2).bfloat16(), "flag": torch.tensor(True)},
        torch.nn.Linear(3, 4).state_dict(),
        {"p": torch.nn.Parameter(torch.randn(3)), "n": 3, "l": [1, (2, "x")], "d": {"x": None}, "f": 0.5},
    ],
)
def test_an_outline_gives_the_tensors_that_torch_gives(tensors: dict[str, Any]) -> None:
    with zipfile.ZipFile(BytesIO(saved(tensors))) as archive:
        (pickle,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        entries = torchzip.outline(archive.read(pickle), "x")
        found = {n: each.of(archive.read(f"{pickle[:-8]}data/{each.record}")) for n, each in entries.items()}
    want = {name: each for name, each in tensors.items() if isinstance(each, Tensor)}
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) and found[n].dtype == want[n].dtype for n in want)


@pytest.mark.parametrize(
    "pickle",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}.x"[:3],
        b"cos\nsystem\n(S'x'\ntR.",
        b"\x80\x02h\x07.",
        b"\x80\x02]q\x00h\x00a.",
        b"}" * 9,
        b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Q.",  # a tuple of 2^60 parts
    ],
)
def test_an_outline_of_anything_else_is_refused(pickle: bytes) -> None:
    with pytest.raises(FileDamaged, match="x: "):
        torchzip.outline(pickle, "x")
