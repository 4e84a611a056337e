"""Claims about modified checkpoints: refused by name, nothing in them is executed, no file remains."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released import (
    CONFIG,
    FUSION,
    HEARING,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    PREFIX,
    change_json,
    zipped,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from pave.errors import (
    PatchDamaged,
    PatchError,
    PatchFormatError,
    PatchMismatch,
    PatchNotFound,
    RecipeError,
)
from pave.model.patched import PatchedModel
from pave.patch import official
from pave.patch.official import _shape, convert

Damage = Callable[[Path], object]


class Program:
    """Its pickle runs a program when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


def fused(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The fusion with other tensors."""

    def damage(folder: Path) -> None:
        tensors = torch.load(folder / FUSION, weights_only=True)
        change(tensors)
        torch.save(tensors, folder / FUSION)

    return damage


def spoken(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """The LoRA with other tensors."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / PEFT_WEIGHTS)
        change(tensors)
        save_file(tensors, folder / PEFT_WEIGHTS)

    return damage


def program(folder: Path) -> None:
    torch.save({"x": Program(folder.parent / "executed")}, folder / FUSION)


def other_shapes(tensors: dict[str, Any]) -> None:
    tensors[f"{KEY}cross_attn_layers.0.attn.k_linear.weight"] = torch.zeros(32, 30)
    del tensors[f"{KEY}output_mapping.0.bias"]
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2)


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


Q = f"{PREFIX}layers.0.self_attn.q_proj.lora_A.weight"
KEY = f"{PREFIX}temporal_aggregator."
# Refused before the pickle is opened, then by the child process, then by its result.
REFUSED: dict[str, tuple[type[PatchError], str, Damage]] = {
    "no fusion": (PatchNotFound, f"no {FUSION}", lambda folder: (folder / FUSION).unlink()),
    "no LoRA": (PatchNotFound, f"no {PEFT_WEIGHTS}", lambda folder: (folder / PEFT_WEIGHTS).unlink()),
    "long config": (
        PatchDamaged,
        "has 3,000,004 bytes, but such a file has at most 1,048,576",
        lambda folder: (folder / CONFIG).write_text("[" + "{}," * 10**6 + "{}]"),
    ),
    "long config of the LoRA": (
        PatchDamaged,
        "has 3,000,004 bytes, but such a file has at most 1,048,576",
        lambda folder: (folder / PEFT_CONFIG).write_text("[" + "{}," * 10**6 + "{}]"),
    ),
    "newlines of two kinds": (
        PatchFormatError,
        r"mm_newline_position=\['grid'\]",
        lambda folder: change_json(folder / CONFIG, mm_newline_position=["grid"]),
    ),
    "no config of the LoRA": (PatchNotFound, f"no {PEFT_CONFIG}", lambda folder: (folder / PEFT_CONFIG).unlink()),
    "no config": (PatchNotFound, f"no {CONFIG}", lambda folder: (folder / CONFIG).unlink()),
    "config that is not JSON": (PatchDamaged, "is not JSON", cut(CONFIG)),
    "newline per frame": (
        PatchFormatError,
        "mm_newline_position='frame'",
        lambda folder: change_json(folder / CONFIG, mm_newline_position="frame"),
    ),
    "merged flat": (
        PatchFormatError,
        "mm_patch_merge_type='flat'; supported: spatial_unpad",
        lambda folder: change_json(folder / CONFIG, mm_patch_merge_type="flat"),
    ),
    "pooled by averages": (
        PatchFormatError,
        "mm_spatial_pool_mode='average'; supported: bilinear",
        lambda folder: change_json(folder / CONFIG, mm_spatial_pool_mode="average"),
    ),
    "another model": (
        PatchFormatError,
        "model_type='bert'; supported: pave_qwen2",
        lambda folder: change_json(folder / CONFIG, model_type="bert"),
    ),
    "LoRA of more than its config names": (
        PatchDamaged,
        f"12 layers are only here or only in {PEFT_CONFIG}, the first is layers.0.mlp.down_proj",
        lambda folder: change_json(folder / PEFT_CONFIG, target_modules=["q_proj"]),
    ),
    "LoRA of numbers": (
        PatchDamaged,
        f"16 layers are only here or only in {PEFT_CONFIG}, the first is 1",
        lambda folder: change_json(folder / PEFT_CONFIG, target_modules=[1, 2]),
    ),
    "concatenation": (
        PatchFormatError,
        "feat_combine_method='concat'",
        lambda folder: change_json(folder / CONFIG, feat_combine_method="concat"),
    ),
    "DoRA": (PatchFormatError, "use_dora=True", lambda folder: change_json(folder / PEFT_CONFIG, use_dora=True)),
    "rank that is a word": (PatchDamaged, "r='many'", lambda folder: change_json(folder / PEFT_CONFIG, r="many")),
    "LoRA cut short": (PatchDamaged, "cut short", cut(PEFT_WEIGHTS)),
    "LoRA of the vision tower": (
        PatchMismatch,
        "model.vision_tower.q is not a layer",
        spoken(lambda tensors: tensors.update({f"{PREFIX}vision_tower.q.lora_A.weight": tensors.pop(Q)})),
    ),
    "LoRA lacks a layer": (
        PatchDamaged,
        "1 layers are only here or only in adapter_config.json, the first is layers.0.self_attn.q_proj",
        spoken(lambda tensors: [tensors.pop(Q), tensors.pop(Q.replace("lora_A", "lora_B"))]),
    ),
    "program": (PatchDamaged, r"would call \w+\.system when opened", program),
    "fusion cut short": (PatchDamaged, "is cut short", cut(FUSION)),
    "other tensors": (
        PatchMismatch,
        r"k_linear.weight is \(32, 30\), expected .*; .*0.bias is missing.*; .*lm_head.weight is unexpected",
        fused(other_shapes),
    ),
    "tensor by the name of a header": (
        PatchDamaged,
        "__metadata__ is not a mapping of strings",
        fused(lambda tensors: tensors.update({"__metadata__": torch.zeros(2)})),
    ),
    "not a number": (
        PatchDamaged,
        "not finite",
        fused(lambda tensors: tensors[f"{KEY}output_norm.bias"].fill_(math.nan)),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_is_not_as_released_is_refused_and_runs_nothing(
    released: Callable[..., Path], scratch: Path, kind: str
) -> None:
    error, cause, damage = REFUSED[kind]
    folder = released()
    damage(folder)
    source = zipped(folder, "inside")
    with pytest.raises(error, match=cause) as refused:
        convert(source, "audio", HEARING)
    assert str(source) in str(refused.value) and str(scratch) not in str(refused.value)
    assert not list(scratch.iterdir()) and not (folder.parent / "executed").exists()


def test_the_program_of_these_tests_runs_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Program(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_sense_with_a_reserved_name_is_refused(released: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"^senses\.keys: torch reserves this name; rename it to keys_signal$"):
        convert(released(), "keys", HEARING)


@pytest.mark.parametrize("found", [{}, {"query_input_mapping.weight": torch.zeros(4)}])
def test_a_fusion_without_its_first_matrix_is_refused(found: dict[str, Tensor]) -> None:
    with pytest.raises(PatchMismatch, match=r"x.bin: its widths cannot be read"):
        _shape(Path("x.bin"), found)


def packed(change: Callable[[zipfile.ZipFile], object], **how: Any) -> Callable[[Path], bytes]:
    """A zip to which something is added."""

    def damaged(source: Path) -> bytes:
        with zipfile.ZipFile(source, "a", **how) as archive:
            change(archive)
        return source.read_bytes()

    return damaged


def link(kind: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("inside/config2.json")
    member.external_attr = (kind | 0o777) << 16
    return member


def encrypted(source: Path) -> bytes:
    data = bytearray(source.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    return bytes(data)


def spoilt(source: Path) -> bytes:
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        place = archive.getinfo(f"inside/{FUSION}").header_offset
    data[place + 5000] ^= 1
    return bytes(data)


ZIPS: dict[str, tuple[type[PatchError], str, Callable[[Path], bytes]]] = {
    "above": (PatchDamaged, "would be written outside", packed(lambda zip: zip.writestr("inside/../../up", b"x"))),
    "absolute": (PatchDamaged, "would be written outside", packed(lambda zip: zip.writestr("/etc/up", b"x"))),
    "of another system": (
        PatchDamaged,
        "would be written outside",
        packed(lambda zip: zip.writestr("a\\..\\up", b"x")),
    ),
    "of a drive": (PatchDamaged, "would be written outside", packed(lambda zip: zip.writestr("C:up", b"x"))),
    "link": (PatchDamaged, "is a link", packed(lambda zip: zip.writestr(link(), b"/etc/passwd"))),
    "twice": (PatchDamaged, "is a duplicate", packed(lambda zip: zip.writestr("inside/CONFIG.json", b"x"))),
    "bomb": (
        PatchDamaged,
        "would unpack to 1",
        packed(lambda zip: zip.writestr("x", bytes(10**8)), compression=zipfile.ZIP_DEFLATED),
    ),
    "rare packing": (
        PatchDamaged,
        "unsupported compression method",
        packed(lambda zip: zip.writestr("x", b"x"), compression=zipfile.ZIP_BZIP2),
    ),
    "encrypted": (PatchDamaged, "is encrypted", encrypted),
    "cut short": (PatchDamaged, "is not a zip", lambda source: source.read_bytes()[:-1]),
    "one bit": (PatchDamaged, "Bad CRC-32", spoilt),
    "empty": (PatchDamaged, "is not a zip", lambda source: b""),
    "patch": (PatchDamaged, "is not a zip", lambda source: b"\x10\0\0\0\0\0\0\0{}"),
    "two checkpoints": (
        PatchNotFound,
        f"has 2 {FUSION}: inside/{FUSION}, other/deep/{FUSION}; pass the folder of one",
        packed(lambda zip: zip.writestr(f"./other/deep/{FUSION}", b"x")),
    ),
    "the same place": (PatchDamaged, "is a duplicate", packed(lambda zip: zip.writestr(f"./inside//{FUSION}", b"x"))),
    "accent twins": (
        PatchDamaged,
        "is a duplicate",
        packed(lambda zip: [zip.writestr(name, b"x") for name in ("e\u0301/x", "\u00e9/x")]),
    ),
    "device": (PatchDamaged, "is a link or a device", packed(lambda zip: zip.writestr(link(stat.S_IFIFO), b""))),
}


@pytest.mark.parametrize("kind", ZIPS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_not_as_released_is_refused_and_unpacks_nothing(
    released: Callable[..., Path], scratch: Path, kind: str
) -> None:
    error, cause, damaged = ZIPS[kind]
    source = zipped(released(), "inside")
    source.write_bytes(damaged(source))
    before = sorted(scratch.parent.rglob("*"))
    with pytest.raises(error, match=cause) as refused:
        convert(source, "audio", HEARING)
    assert refused.value.file == str(source) and sorted(scratch.parent.rglob("*")) == before


def test_a_zip_or_folder_around_another_zip_names_it(released: Callable[..., Path], tmp_path: Path) -> None:
    made = zipped(released(), "inside")
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(made, "deep/inner.ZIP")
    with pytest.raises(PatchNotFound, match=f"outer.zip: has no {FUSION}, but holds deep/inner.ZIP: unpack it"):
        convert(outer, "audio", HEARING)
    (tmp_path / "around").mkdir()
    made.rename(tmp_path / "around" / made.name)
    with pytest.raises(PatchNotFound, match=f"around: has no {FUSION}, but holds .*{made.name}: unpack it"):
        convert(tmp_path / "around", "audio", HEARING)


def test_a_folder_with_two_checkpoints_names_them(released: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("all/first", "all/more/second"):
        released(name)
    with pytest.raises(PatchNotFound, match=f"has 2 {FUSION}: .*all/first/{FUSION}, .*all/more/second/{FUSION}"):
        convert(tmp_path / "all", "audio", HEARING)
    shutil.rmtree(tmp_path / "all" / "first")
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")  # neither endless nor a second one
    assert convert(tmp_path / "all", "audio", HEARING).config.lora


def test_a_folder_of_very_many_files_is_not_searched_to_its_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(official, "ENTRIES", 20)
    for number in range(21):
        (tmp_path / str(number)).touch()
    with pytest.raises(PatchError, match="has more than 20 files; pass the folder of the checkpoint itself"):
        convert(tmp_path, "audio", HEARING)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(PatchFormatError, match=r"pipe\.zip: is neither a file nor a folder"):
        convert(tmp_path / "pipe.zip", "audio", HEARING)


def test_missing_sources_are_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing.zip", tmp_path):
        with pytest.raises(PatchNotFound, match="pass an official zip"):
            convert(source, "audio", HEARING)


def test_an_official_folder_is_not_applied_as_a_plain_lora(released: Callable[..., Path], one: PatchedModel) -> None:
    with pytest.raises(PatchFormatError, match="holds a fusion; convert an official PAVE checkpoint with `pave patch"):
        one.apply_patch(released())
