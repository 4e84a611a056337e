"""Claims about compressed storage: bounded quantisation errors, patches applied as stored, optimal truncated pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from small import awaken, make_clip, make_config
from transformers import PreTrainedTokenizerFast

from pave.config import LoraConfig
from pave.errors import PatchDamaged, PatchError
from pave.model.patched import PatchedModel
from pave.patch import shrink
from pave.patch.file import Patch


def matrix(seed: int = 0, rows: int = 24, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_packed_codes_unpack_unchanged(seed: int, rows: int, pairs: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, 2 * pairs), generator=draw, dtype=torch.int8)
    packed = shrink.pack(codes)
    assert packed.shape == (rows, pairs)
    assert torch.equal(shrink.dequantise(packed, torch.ones(rows, 1).bfloat16()), codes.float())


@pytest.mark.parametrize("bits", [4, 8])
def test_errors_are_at_most_half_a_step_except_for_clipped_peaks(bits: int) -> None:
    weight = matrix()
    codes, scales = shrink.quantise(weight, bits)
    again = shrink.dequantise(codes, scales)
    step = scales.float().abs().repeat_interleave(shrink.group_of(128), 1)
    inside = weight.abs() < step * (2 ** (bits - 1) - 1)
    assert ((again - weight).abs()[inside] <= step[inside] * 0.5 + 1e-6).all() and inside.float().mean() > 0.9
    assert torch.equal(torch.stack(shrink.quantise(weight, bits)[1:]), scales[None]), "deterministic"
    plain = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)  # one scale per row, symmetric
    rounded = (weight / plain).round() * plain
    assert (again - weight).square().sum() < 0.6 * (rounded - weight).square().sum()


def test_zeros_and_tiny_numbers_survive() -> None:
    weight = matrix()
    weight[0], weight[1], weight[2:] = 0, weight[1] * 1e-12, weight[2:] * 1e6
    again = shrink.dequantise(*shrink.quantise(weight, 4))
    assert (again[0] == 0).all() and again.isfinite().all()
    assert ((again[1] - weight[1]).norm() / weight[1].norm()) < 0.2


def test_groups_run_along_the_longer_side() -> None:
    high = torch.randn(128, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 1e-4])
    codes, scales = shrink.quantise(high, 4)
    assert codes.shape == (64, 3) and scales.shape == (2, 3)
    assert shrink.shapes({"w": codes, "w.scales": scales}) == {"w": (128, 3)}
    assert ((shrink.dequantise(codes, scales) - high).norm(dim=0) < 0.12 * high.norm(dim=0)).all()


def test_a_truncated_pair_is_the_best_of_its_rank_and_full_rank_keeps_the_product() -> None:
    a, b = matrix(1, 8, 40), matrix(2, 30, 8)
    u, s, v = torch.linalg.svd(b.double() @ a.double())
    for rank in (8, 3):
        low, high = shrink.truncated(a, b, rank)
        assert low.shape == (rank, 40) and high.shape == (30, rank)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(high.double() @ low.double(), best, atol=1e-3, rtol=1e-4)


# Patches


@pytest.fixture(scope="module")
def patch(tokenizer: PreTrainedTokenizerFast) -> Patch:
    model = PatchedModel(make_base(tokenizer))
    model.attach("ears", make_config(model.host, lora=LoraConfig(r=8, lora_alpha=4)))
    awaken(model, "ears")
    return model.export("ears")


def logits(model: PatchedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(model.prepare([make_clip(0)], ["What do you hear?"])).logits


def test_a_shrunk_patch_is_applied_as_its_restored_weights(
    patch: Patch, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    small = patch.shrink(bits=4, rank=None)
    assert small.nbytes < 0.2 * patch.nbytes and small.config == patch.config
    loaded = Patch.load(small.save(tmp_path / "small.safetensors"))
    assert loaded.sha256 == small.sha256 != patch.sha256
    assert (tmp_path / "small.safetensors").read_bytes() == loaded.save(tmp_path / "b.safetensors").read_bytes()
    model = PatchedModel(make_base(tokenizer))
    plain = logits(model)
    found = []
    for each in (loaded, Patch(patch.config, small.weights()), patch):
        report = model.apply_patch(each)
        assert report.bytes == each.nbytes
        found.append(logits(model))
        model.remove_patch("ears")
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert (found[0] - found[2]).norm() < 0.25 * (found[2] - plain).norm()


def test_eight_bits_are_more_exact_than_four_and_lower_ranks_smaller(patch: Patch) -> None:
    def error(small: Patch) -> float:
        name = "fusion.audio.out.weight"
        return float((small.weights()[name] - patch.tensors[name]).norm())

    four, eight = patch.shrink(4, None), patch.shrink(8, None)
    assert error(eight) < 0.1 * error(four) and four.nbytes < eight.nbytes
    cut = patch.shrink(4, 3)
    assert cut.nbytes < four.nbytes and cut.config.lora is not None and patch.config.lora is not None
    assert cut.config.lora.r == 3 and cut.config.lora.scaling == patch.config.lora.scaling
    assert patch.shrink(4, 99).config == patch.config
    with pytest.raises(PatchError, match="bits=3"):
        patch.shrink(3)


def some(patch: Patch) -> str:
    return next(name.removesuffix(shrink.SCALES) for name in patch.tensors if name.endswith(shrink.SCALES))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("no scales", "has no scales"),
        ("no codes", "has no codes"),
        ("nan", "not finite"),
        ("huge", r"or beyond 1e\+30"),
        ("rows", "for codes of shape"),
        ("columns", "for codes of shape"),
        ("float codes", "with scales of shape"),
    ],
)
def test_mismatched_codes_and_scales_are_refused(patch: Patch, tmp_path: Path, kind: str, cause: str) -> None:
    small = patch.shrink(4, None)
    tensors: dict[str, Any] = dict(small.tensors)
    name = some(small)
    scales = tensors[name + shrink.SCALES]
    changes = {
        "no scales": lambda: tensors.pop(name + shrink.SCALES),
        "no codes": lambda: tensors.pop(name),
        "nan": lambda: tensors.update({name + shrink.SCALES: scales * float("nan")}),
        "huge": lambda: tensors.update({name + shrink.SCALES: scales * 0 + 1e35}),
        "rows": lambda: tensors.update({name + shrink.SCALES: scales[1:]}),
        "columns": lambda: tensors.update({name + shrink.SCALES: torch.cat([scales] * 7, 1)}),
        "float codes": lambda: tensors.update({name: tensors[name].float()}),
    }
    changes[kind]()
    broken = replace(small, tensors=tensors)
    with pytest.raises(PatchError, match=cause):
        broken.save(tmp_path / "broken.safetensors")
    assert not list(tmp_path.iterdir())


def test_codes_of_a_damaged_file_are_refused(patch: Patch, tmp_path: Path) -> None:
    file = patch.shrink().save(tmp_path / "small.safetensors")
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(PatchDamaged, match="its content has sha256"):
        Patch.load(file)
