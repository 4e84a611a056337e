"""Claims about PEFT adapters: equal logits after import and export, and all but plain LoRA is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small import awaken, make_clip, make_config
from transformers import PreTrainedTokenizerFast

from pave.errors import PatchError
from pave.model.patched import PatchedModel
from pave.patch.filenames import PEFT_CONFIG as CONFIG
from pave.patch.filenames import PEFT_WEIGHTS as WEIGHTS
from pave.patch.peft import export_peft, load_peft

WORDS = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model: PatchedModel, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(model.prepare([make_clip(0), make_clip(1, sound=False)], ["Well?", "And?"], **how)).logits


@pytest.fixture
def adapter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """A folder written by PEFT itself, with random weights."""

    def make(**options: Any) -> Path:
        torch.manual_seed(0)
        modules = r"model\.language_model\.layers\.\d\.self_attn\.(q|v)_proj"
        config = PeftConfig(**{"r": 4, "lora_alpha": 6, "target_modules": modules} | options)
        model = get_peft_model(make_base(tokenizer).model, config)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(tmp_path / "Their LoRA"))
        return tmp_path / "Their LoRA"

    return make


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_lora_is_a_patch_without_senses_with_the_logits_of_peft(
    one: PatchedModel, adapter: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, rslora: bool
) -> None:
    folder, before = adapter(use_rslora=rslora), logits(one)
    report = one.apply_patch(folder)
    assert (report.name, dict(report.senses), report.fusion_params) == ("their-lora", {}, 0)
    assert report.base_match.startswith("unknown") and "no sense" in str(report)
    assert one.host._fingerprint is None, "the base must not be hashed"
    after = logits(one)
    assert not torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1]), "with and without a sound"
    assert torch.equal(logits(one, patches=[]), before)
    inputs = one.prepare([make_clip(0)], ["Well?"])
    theirs: Any = PeftModel.from_pretrained(make_base(tokenizer).model, str(folder)).eval()
    tokens = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    pixels = one.host.pixels(make_clip(0))[None]
    with torch.no_grad():
        expected = theirs(**tokens, pixel_values_videos=pixels).logits
        torch.testing.assert_close(one.forward(inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_exported_lora_is_imported_unchanged(one: PatchedModel, tmp_path: Path) -> None:
    one.attach("ears", make_config(one.host), trainable=False)
    awaken(one, "ears")
    patch = one.export("ears")
    one.host.repo = "somebody/base"
    export_peft(patch, one.host, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {CONFIG, WEIGHTS}
    adapter = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "somebody/base"
    back = load_peft(tmp_path / "out", one.host)
    lora = {name: value for name, value in patch.tensors.items() if name.startswith("lora.")}
    assert back.tensors.keys() == lora.keys() and all(torch.equal(back.tensors[name], lora[name]) for name in lora)
    assert back.config.lora is not None and patch.config.lora is not None
    assert back.config.lora.scaling == patch.config.lora.scaling
    saved = one.swap_patch("ears", back)
    assert saved.senses == {}
    assert one.export("ears").save(tmp_path / "again.safetensors").stat().st_size > 1000


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (lambda folder: set_config(folder, peft_type="IA3"), "peft_type is 'IA3'"),
    "DoRA": (lambda folder: set_config(folder, use_dora=True), "use_dora=True is not a plain LoRA"),
    "biases": (lambda folder: set_config(folder, bias="all"), "bias='all'"),
    "whole modules": (lambda folder: set_config(folder, modules_to_save=["lm_head"]), "modules_to_save"),
    "ranks by layer": (lambda folder: set_config(folder, rank_pattern={"q_proj": 2}), "rank_pattern"),
    "a start that changes the base": (
        lambda folder: set_config(folder, init_lora_weights="pissa"),
        "init_lora_weights",
    ),
    "another rank": (lambda folder: set_config(folder, r=3), "expected rank 3"),
    "config that is not JSON": (lambda folder: (folder / CONFIG).write_text("{"), "is not JSON"),
    "no rank": (lambda folder: set_config(folder, r="many"), "r='many'"),
    "pickle only": (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "pickles are never opened"),
    "layers of the vision tower": (
        lambda folder: rename(folder, "model.language_model", "model.vision_tower"),
        "is not a layer of the base's language model",
    ),
    "other tensors": (lambda folder: rename(folder, "lora_A", "ia3_l"), "is not the weight of a LoRA pair"),
    "half a pair": (lambda folder: rename(folder, "lora_A", None), "is not one of a pair"),
    "not finite": (lambda folder: fill_with_nan(folder), "not finite"),
    "damaged": (lambda folder: (folder / WEIGHTS).write_bytes(b"version https://git-lfs"), "is a Git LFS pointer"),
}


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


def rename(folder: Path, old: str, new: str | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    renamed = {name.replace(old, new or ""): value for name, value in tensors.items() if new or old not in name}
    save_file(renamed, folder / WEIGHTS)


def fill_with_nan(folder: Path) -> None:
    save_file({name: value * float("nan") for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.mark.parametrize("kind", REFUSED)
def test_all_but_a_plain_lora_is_refused(one: PatchedModel, adapter: Callable[..., Path], kind: str) -> None:
    change, cause = REFUSED[kind]
    folder, before = adapter(), logits(one)
    change(folder)
    with pytest.raises((PatchError, Exception), match=cause) as refused:
        one.apply_patch(folder)
    assert type(refused.value).__module__ == "pave.errors" and "Their LoRA" in str(refused.value)
    assert not one.patches and torch.equal(logits(one), before)
