"""Claims about patch files: equal content is an equal file, and nothing that is wrong with one goes unnoticed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import awaken, make_base, make_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from pave.config import FusionConfig, LoraConfig
from pave.errors import PatchDamaged, PatchError, PatchFormatError, PatchMismatch, PatchNotFound
from pave.model import PatchedModel
from pave.patch import Patch, read_config


@pytest.fixture(scope="module")
def patch(tokenizer: PreTrainedTokenizerFast) -> Patch:
    model = PatchedModel(make_base(tokenizer))
    torch.manual_seed(0)
    model.attach("ears", make_config(model.host, prompt="<|im_start|>{video}{question}<|im_end|>é"))
    awaken(model, "ears")
    return model.export("ears")


@pytest.fixture
def file(patch: Patch, tmp_path: Path) -> Path:
    return patch.save(tmp_path / "patch.safetensors")


def same(one: Patch, other: Patch) -> bool:
    equal = one.tensors.keys() == other.tensors.keys()
    return equal and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_save_and_load_keep_everything(patch: Patch, tmp_path: Path) -> None:
    proven = Patch(patch.config, patch.tensors, {"listens": 0.5})
    loaded = Patch.load(proven.save(tmp_path / "a.safetensors"))
    assert same(loaded, patch)
    assert (loaded.config, loaded.certificate, loaded.sha256) == (patch.config, {"listens": 0.5}, patch.sha256)


def test_equal_content_is_an_equal_file(patch: Patch, file: Path, tmp_path: Path) -> None:
    shuffled = Patch(patch.config, dict(reversed(list(patch.tensors.items()))))
    assert shuffled.save(tmp_path / "b.safetensors").read_bytes() == file.read_bytes()
    other = {name: tensor + 1e-3 for name, tensor in patch.tensors.items()}
    assert Patch(patch.config, other).save(tmp_path / "c.safetensors").read_bytes() != file.read_bytes()


def test_safetensors_reads_our_file(patch: Patch, file: Path) -> None:
    assert all(torch.equal(tensor, patch.tensors[name]) for name, tensor in load_file(file).items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["pave.sha256"] == patch.sha256


def test_half_precision_and_odd_sizes_survive(patch: Patch, tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in patch.tensors.items()}
    mixed = Patch(patch.config, {**half, "fusion.audio.scale": torch.tensor(2.5)})
    loaded = Patch.load(mixed.save(tmp_path / "m.safetensors"))
    assert same(loaded, mixed)
    assert loaded.tensors["fusion.audio.scale"].dtype == torch.float32
    assert load_file(tmp_path / "m.safetensors").keys() == mixed.tensors.keys()


def test_another_config_is_saved_as_it_is(patch: Patch, file: Path, tmp_path: Path) -> None:
    renamed = replace(Patch.load(file), config=patch.config.model_copy(update={"name": "renamed"}))
    assert Patch.load(renamed.save(tmp_path / "r.safetensors")).config.name == "renamed"


def test_a_folder_stands_for_its_patch(patch: Patch, tmp_path: Path) -> None:
    assert patch.save(tmp_path) == tmp_path / "patch.safetensors"
    assert same(Patch.load(tmp_path), patch)
    assert read_config(tmp_path) == patch.config


def test_names_are_those_of_the_format(patch: Patch) -> None:
    assert "lora.layers.0.self_attn.q_proj.A" in patch.tensors
    assert {name.partition(".")[0] for name in patch.tensors} == {"lora", "fusion"}
    assert all(name.startswith(("lora.layers.", "fusion.audio.")) for name in patch.tensors)


# Damage. Each case turns the bytes of a good file into a bad one.


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def damaged(data: bytes) -> bytes:
        header, body = split(data)
        change(header)
        return join(header, body)

    return damaged


def with_metadata(**values: str) -> Callable[[bytes], bytes]:
    return with_header(
        lambda header: header["__metadata__"].update({f"pave.{key}": text for key, text in values.items()})
    )


def with_config(key: str, value: Any) -> Callable[[bytes], bytes]:
    def change(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["pave.config"])
        config[key] = value
        header["__metadata__"]["pave.config"] = json.dumps(config)

    return with_header(change)


def first(header: dict[str, Any]) -> dict[str, Any]:
    """The entry of the tensor at the beginning of the data."""
    return next(entry for name, entry in header.items() if name != "__metadata__" and entry["data_offsets"][0] == 0)


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGE: dict[str, tuple[type[PatchError], Callable[[bytes], bytes]]] = {
    "empty": (PatchDamaged, lambda data: b""),
    "seven bytes": (PatchDamaged, lambda data: data[:7]),
    "cut in the header": (PatchDamaged, lambda data: data[:100]),
    "cut in the tensors": (PatchDamaged, lambda data: data[:-1]),
    "longer": (PatchDamaged, lambda data: data + b"\0"),
    "LFS pointer": (PatchDamaged, lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "web page": (PatchDamaged, lambda data: b"<!DOCTYPE html><html>404</html>"),
    "zip": (PatchDamaged, lambda data: b"PK\x03\x04" + data),
    "pickle": (PatchDamaged, lambda data: b"\x80\x04\x95" + data),
    "header of 100 MB": (PatchDamaged, lambda data: (10**8).to_bytes(8, "little") + data[8:]),
    "header is a list": (PatchDamaged, lambda data: join("[]", b"")),
    "header is not JSON": (PatchDamaged, lambda data: join("{]", b"")),
    "header is not UTF-8": (PatchDamaged, lambda data: (4).to_bytes(8, "little") + b'{"\xff\xff'),
    "header nests deeply": (PatchDamaged, lambda data: join('{"a":' + "[" * 100_000, b"")),
    "a key twice": (PatchDamaged, lambda data: join('{"__metadata__":{},"__metadata__":{}}', b"")),
    "NaN in the header": (PatchDamaged, lambda data: join('{"a":NaN}', b"")),
    "metadata is a text": (PatchDamaged, with_header(lambda header: header.update(__metadata__="x"))),
    "metadata holds a number": (PatchDamaged, with_header(lambda header: header["__metadata__"].update(a=1))),
    "tensor is a text": (PatchDamaged, with_header(lambda header: header.update(x="y"))),
    "unknown dtype": (PatchDamaged, with_header(lambda header: first(header).update(dtype="F8_E9"))),
    "negative shape": (PatchDamaged, with_header(lambda header: first(header).update(shape=[-1, -8]))),
    "shape of another size": (PatchDamaged, with_header(lambda header: first(header)["shape"].append(2))),
    "huge shape": (PatchDamaged, with_header(lambda header: first(header).update(shape=[2**62, 2**62]))),
    "fractional offset": (PatchDamaged, with_header(lambda header: first(header).update(data_offsets=[0, 1.5]))),
    "overlap": (PatchDamaged, with_header(lambda header: header.update(x=dict(first(header))))),
    "hole": (PatchDamaged, with_header(lambda header: header.pop(next(n for n in header if n != "__metadata__")))),
    "bit of a tensor": (PatchDamaged, flip(-3)),
    "bit of another tensor": (PatchDamaged, flip(-4000)),
    "sha256 of another": (PatchDamaged, with_metadata(sha256="0" * 64)),
    "no sha256": (PatchDamaged, with_header(lambda header: header["__metadata__"].pop("pave.sha256"))),
    "config changed": (PatchDamaged, with_config("licence", "mit")),
    "config has an unknown key": (PatchDamaged, with_config("colour", "red")),
    "config is not JSON": (PatchDamaged, with_metadata(config="{")),
    "config nests deeply": (PatchDamaged, with_metadata(config="[" * 100_000)),
    "no config": (PatchDamaged, with_header(lambda header: header["__metadata__"].pop("pave.config"))),
    "certificate is not JSON": (PatchDamaged, with_metadata(certificate="no")),
    "no metadata": (PatchFormatError, with_header(lambda header: header.pop("__metadata__"))),
    "no format": (PatchFormatError, with_header(lambda header: header["__metadata__"].pop("pave.format"))),
    "newer format": (PatchFormatError, with_metadata(format="2")),
    "strange format": (PatchFormatError, with_metadata(format="one")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_by_name(file: Path, kind: str) -> None:
    expected, damage = DAMAGE[kind]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(expected) as refused:
        Patch.load(file)
    assert str(file) in str(refused.value)
    assert refused.value.remedy


def test_newer_format_says_update(file: Path) -> None:
    file.write_bytes(with_metadata(format="2")(file.read_bytes()))
    with pytest.raises(PatchFormatError, match="update pave"):
        read_config(file)


# Content that is whole but wrong: the writer refuses it too, so these are signed by hand.


def signed(patch: Patch, path: Path) -> Path:
    metadata = {"pave.format": "1", "pave.config": patch.text, "pave.sha256": patch.sha256}
    save_file({name: tensor.contiguous() for name, tensor in patch.tensors.items()}, path, metadata)
    return path


def some(patch: Patch, prefix: str) -> str:
    return next(name for name in patch.tensors if name.startswith(prefix) and patch.tensors[name].ndim == 2)


def changed(patch: Patch, **changes: Any) -> Patch:
    return Patch(patch.config.model_copy(update=changes), patch.tensors)


WRONG: dict[str, tuple[type[PatchError], Callable[[Patch], Patch]]] = {
    "extra": (PatchMismatch, lambda p: Patch(p.config, {**p.tensors, "fusion.audio.extra": torch.zeros(1)})),
    "path": (PatchMismatch, lambda p: Patch(p.config, {**p.tensors, "../../x": torch.zeros(1)})),
    "missing": (
        PatchMismatch,
        lambda p: Patch(p.config, {n: t for n, t in p.tensors.items() if n != some(p, "fusion.")}),
    ),
    "half a pair": (
        PatchMismatch,
        lambda p: Patch(p.config, {n: t for n, t in p.tensors.items() if n != some(p, "lora.")}),
    ),
    "shape": (PatchMismatch, lambda p: Patch(p.config, {**p.tensors, some(p, "fusion."): torch.zeros(1, 2)})),
    "rank": (PatchMismatch, lambda p: changed(p, lora=LoraConfig(r=5))),
    "no lora in the config": (PatchMismatch, lambda p: changed(p, lora=None)),
    "other fusion": (PatchMismatch, lambda p: changed(p, fusion=FusionConfig(kind="official", width=32, heads=2))),
    "a million layers": (PatchDamaged, lambda p: changed(p, fusion=FusionConfig(kind="official", layers=10**6))),
    "no sense": (PatchMismatch, lambda p: changed(p, senses={})),
    "NaN": (
        PatchDamaged,
        lambda p: Patch(p.config, {**p.tensors, some(p, "lora."): p.tensors[some(p, "lora.")] * float("nan")}),
    ),
    "infinite": (
        PatchDamaged,
        lambda p: Patch(p.config, {**p.tensors, some(p, "fusion."): p.tensors[some(p, "fusion.")] / 0}),
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_content_is_refused_on_load_and_on_save(patch: Patch, tmp_path: Path, kind: str) -> None:
    expected, change = WRONG[kind]
    wrong = change(patch)
    with pytest.raises(expected, match=str(tmp_path)):
        Patch.load(signed(wrong, tmp_path / "w.safetensors"))
    with pytest.raises(expected):
        wrong.save(tmp_path / "v.safetensors")
    assert not (tmp_path / "v.safetensors").exists()
    assert same(Patch.load(signed(patch, tmp_path / "good.safetensors")), patch), "what safetensors writes is fine"


def test_places_without_a_patch(tmp_path: Path) -> None:
    with pytest.raises(PatchNotFound):
        Patch.load(tmp_path / "nothing.safetensors")
    with pytest.raises(PatchNotFound):
        Patch.load(tmp_path)
    (tmp_path / "patch.safetensors").mkdir()
    with pytest.raises(PatchDamaged, match="regular"):
        Patch.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PatchDamaged, match="regular"):
        Patch.load(tmp_path / "pipe")


# Saving


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process cannot grow over 4 kB, as on a full disk."""
    import resource
    import signal

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_old_file(patch: Patch, file: Path, small_files: None) -> None:
    before = file.read_bytes()
    with pytest.raises(PatchError, match="untouched"):
        Patch(patch.config, {name: tensor + 1 for name, tensor in patch.tensors.items()}).save(file)
    assert file.read_bytes() == before
    assert not leftovers(file.parent)


def test_a_link_stays_a_link(patch: Patch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.safetensors")
    patch.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(Patch.load(tmp_path / "real.safetensors"), patch)


def test_old_leftovers_are_swept_and_young_ones_stay(patch: Patch, file: Path) -> None:
    old, young = (file.with_name(f".{file.name}.{age}.tmp") for age in ("old", "young"))
    for left in (old, young):
        left.write_bytes(b"x")
    os.utime(old, (0, 0))
    patch.save(file)
    assert leftovers(file.parent) == [young.name]


def test_two_writers_leave_one_whole_file(patch: Patch, file: Path) -> None:
    writers = [threading.Thread(target=patch.save, args=(file,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert same(Patch.load(file), patch)
    assert not leftovers(file.parent)
