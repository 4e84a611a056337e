"""Claims about patch files: equal content gives equal bytes, and every damage is detected."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from damage import DAMAGE, with_metadata
from families import make_base
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import awaken, full_disk, make_config
from transformers import PreTrainedTokenizerFast

from pave.config import FusionConfig, LoraConfig
from pave.errors import PatchDamaged, PatchError, PatchFormatError, PatchMismatch, PatchNotFound
from pave.model.patched import PatchedModel
from pave.patch.file import Patch, read_config


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


def test_equal_content_gives_equal_bytes(patch: Patch, file: Path, tmp_path: Path) -> None:
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


def test_a_changed_config_is_saved(patch: Patch, file: Path, tmp_path: Path) -> None:
    renamed = replace(Patch.load(file), config=patch.config.model_copy(update={"name": "renamed"}))
    assert Patch.load(renamed.save(tmp_path / "r.safetensors")).config.name == "renamed"


def test_a_folder_is_accepted_in_place_of_its_patch(patch: Patch, tmp_path: Path) -> None:
    assert patch.save(tmp_path) == tmp_path / "patch.safetensors"
    assert same(Patch.load(tmp_path), patch)
    assert read_config(tmp_path) == patch.config


def test_names_are_those_of_the_format(patch: Patch) -> None:
    assert "lora.layers.0.self_attn.q_proj.A" in patch.tensors
    assert {name.partition(".")[0] for name in patch.tensors} == {"lora", "fusion"}
    assert all(name.startswith(("lora.layers.", "fusion.audio.")) for name in patch.tensors)


# Damage. Each case turns the bytes of a good file into a bad one.


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_by_name(file: Path, kind: str, place: str) -> None:
    expected, damage = DAMAGE[kind]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(expected) as refused:
        Patch.load(file if place == "file" else file.parent)
    assert str(file) in str(refused.value)
    assert refused.value.remedy


def test_newer_format_says_update(file: Path) -> None:
    file.write_bytes(with_metadata(format="2")(file.read_bytes()))
    with pytest.raises(PatchFormatError, match="update pave"):
        read_config(file)


# Wrong content with a valid hash: Patch.save refuses it, so these files are written by hand.


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
    "a sense that torch cannot name": (
        PatchDamaged,
        lambda p: Patch(
            p.config.model_copy(update={"senses": {"keys": p.config.senses["audio"]}}),
            {name.replace("fusion.audio.", "fusion.keys."): tensor for name, tensor in p.tensors.items()},
        ),
    ),
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
    assert same(Patch.load(signed(patch, tmp_path / "good.safetensors")), patch), (
        "a valid patch written by safetensors must load"
    )


def test_damage_is_refused_without_asserts_too(patch: Patch, tmp_path: Path) -> None:
    path = signed(WRONG["NaN"][1](patch), tmp_path / "w.safetensors")
    code = f"import pave; pave.Patch.load({str(path)!r})"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"PatchDamaged: {path}: " in done.stderr and "not finite" in done.stderr


def test_paths_without_a_patch_are_refused(tmp_path: Path) -> None:
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
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def another(patch: Patch) -> Patch:
    return Patch(patch.config, {name: tensor + 1 for name, tensor in patch.tensors.items()})


def test_a_full_disk_keeps_the_old_file(patch: Patch, file: Path) -> None:
    before = file.read_bytes()
    with full_disk(4096), pytest.raises(PatchError, match="unchanged"):
        another(patch).save(file)
    assert file.read_bytes() == before
    assert not leftovers(file.parent)


@contextmanager
def read_only(folder: str) -> Iterator[None]:
    """Within the block nothing can be written there; root, who may write everywhere, is somebody else meanwhile."""
    me = os.geteuid()
    os.chmod(folder, 0o555)
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)
        os.chmod(folder, 0o755)


def test_a_folder_that_is_read_only_keeps_the_old_file(patch: Patch) -> None:
    with TemporaryDirectory() as name:  # pytest's own folders cannot even be entered by others
        file = patch.save(Path(name) / "patch.safetensors")
        with (
            read_only(name),
            pytest.raises(PatchError, match=r"cannot be written \(Permission denied\).*fix the permissions"),
        ):
            another(patch).save(file)
        assert same(Patch.load(file), patch) and os.listdir(name) == [file.name]


def test_a_link_stays_a_link(patch: Patch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.safetensors")
    patch.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(Patch.load(tmp_path / "real.safetensors"), patch)


def test_two_writers_leave_one_whole_file(patch: Patch, file: Path) -> None:
    writers = [threading.Thread(target=patch.save, args=(file,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert same(Patch.load(file), patch)
    assert not leftovers(file.parent)
