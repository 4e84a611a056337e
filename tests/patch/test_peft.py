"""Claims about PEFT adapters: equal logits after import and export, and all but plain LoRA is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from patched import hears
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from small import awaken, make_clip, make_config
from transformers import PreTrainedTokenizerFast

from pave.config import LoraConfig
from pave.errors import FileError, PatchError
from pave.model.patched import PatchedModel
from pave.patch import peft
from pave.patch.filenames import PEFT_CONFIG as CONFIG
from pave.patch.filenames import PEFT_WEIGHTS as WEIGHTS
from pave.patch.peft import export_peft, load_peft

WORDS = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(1))
MODULES = r"model\.language_model\.layers\.\d\.self_attn\.(q|v)_proj"


def logits(model: PatchedModel, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(model.prepare([make_clip(0), make_clip(1, sound=False)], ["Well?", "And?"], **how)).logits


@pytest.fixture
def adapter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """A folder written by PEFT itself, with random weights."""

    def make(**options: Any) -> Path:
        torch.manual_seed(0)
        config = PeftConfig(**{"r": 4, "lora_alpha": 6, "target_modules": MODULES} | options)
        model = get_peft_model(make_base(tokenizer).model, config)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(tmp_path / "Their LoRA"))
        return tmp_path / "Their LoRA"

    return make


# Options of PEFT that a patch keeps, or that change no number. (Patterns are sorted, as PEFT's own file sorts them.)
ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
    "exclude by pattern": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ".*vision.*"},
    "exclude by name, some layers, other words": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": [
            f"model.vision_tower.encoder.layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qv"
        ],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "fan_in_fan_out": True,
        "init_lora_weights": "orthogonal",
        "revision": "main",
        "task_type": "CAUSAL_LM",
    },
    "ranks": {"rank_pattern": {r"layers\.1\.self_attn\.[qv]_proj": 8, "nowhere": 3, "q_proj": 2}},
    "alphas": {"alpha_pattern": {r"^model.language_model.layers.0.self_attn.q_proj": 1, "q_proj|v_proj": 9.5}},
    "ranks and alphas, stabilised": {
        "use_rslora": True,
        "rank_pattern": {"1.self_attn.v_proj": 2, "v_proj": 1},
        "alpha_pattern": {".*1.*q_pro.": 7, "0.self_attn.v_proj": 3, "roj": 5},
    },
}


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to True", "ignore:The following .*_pattern keys did not match"
)
@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_peft_lora_is_a_patch_without_senses_with_the_logits_of_peft(
    one: PatchedModel, adapter: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    folder, before = adapter(**ACCEPTED[kind]), logits(one)
    if "revision" in ACCEPTED[kind]:
        set_config(folder, base_model_name_or_path="somebody/another-base")
    report = one.apply_patch(folder)
    assert (report.name, dict(report.senses), report.fusion_params) == ("their-lora", {}, 0)
    assert report.base_match.startswith("unknown") and "no sense" in str(report)
    assert ("made for somebody/another-base" in str(report)) == ("revision" in ACCEPTED[kind])
    assert one.host.weights.known is None, "the base must not be hashed"
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


BY_LAYER = LoraConfig(
    r=4,
    lora_alpha=6,
    use_rslora=True,
    rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 3},
    alpha_pattern={"layers.0.mlp.up_proj": 1.5, "mlp.up_proj": 3, "up_proj": 9},
)


@pytest.mark.parametrize("lora", [LoraConfig(r=4, lora_alpha=8), BY_LAYER], ids=["one rank", "ranks by layer"])
def test_an_exported_lora_is_imported_unchanged(one: PatchedModel, tmp_path: Path, lora: LoraConfig) -> None:
    one.attach("ears", make_config(one.host, lora=lora), trainable=False)
    awaken(one, "ears")
    patch = one.export("ears")
    one.host.repo = "somebody/base"
    export_peft(patch, one.host, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {CONFIG, WEIGHTS}
    adapter = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "somebody/base"
    back = load_peft(tmp_path / "out", one.host)
    stored = {name: value for name, value in patch.tensors.items() if name.startswith("lora.")}
    assert back.tensors.keys() == stored.keys()
    assert all(torch.equal(back.tensors[name], stored[name]) for name in stored)
    assert back.config.lora is not None and back.config.lora.scaling == lora.scaling
    for layer in {name.removeprefix("lora.").rpartition(".")[0] for name in stored}:
        assert back.config.lora.scaling_of(layer) == lora.scaling_of(layer)
    saved = one.swap_patch("ears", back)
    assert saved.senses == {}
    assert one.export("ears").save(tmp_path / "again.safetensors").stat().st_size > 1000


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (lambda folder: set_config(folder, peft_type="IA3"), "peft_type is 'IA3'"),
    "DoRA": (lambda folder: set_config(folder, use_dora=True), "use_dora=True is not a plain LoRA: DoRA also scales"),
    "biases": (lambda folder: set_config(folder, bias="all"), "bias='all'.*trains biases of the base; train a plain"),
    "a bias of the LoRA": (lambda folder: set_config(folder, lora_bias=True), "lora_bias=True"),
    "whole modules": (lambda folder: set_config(folder, modules_to_save=["lm_head"]), "modules_to_save.*whole modules"),
    "tokens": (lambda folder: set_config(folder, trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "parameters": (
        lambda folder: set_config(folder, target_parameters=["experts"]),
        "target_parameters.*fused experts",
    ),
    "repeated layers": (lambda folder: set_config(folder, layer_replication=[[0, 2]]), "layer_replication"),
    "Megatron": (lambda folder: set_config(folder, megatron_config={"a": 1}), "megatron_config.*Megatron"),
    "an option of later": (lambda folder: set_config(folder, use_ddora=True), "use_ddora=True.*is unknown here"),
    "a start that changes the base": (
        lambda folder: set_config(folder, init_lora_weights="pissa"),
        "init_lora_weights.*path_initial_model_for_weight_conversion",
    ),
    "a start on a quantised base": (
        lambda folder: set_config(folder, init_lora_weights="loftq"),
        "init_lora_weights='loftq'.*quantised copy of the base; train a plain LoRA",
    ),
    "another rank": (lambda folder: set_config(folder, r=3), "expected rank 3"),
    "another rank by layer": (lambda folder: set_config(folder, rank_pattern={"v_proj": 2}), "expected rank 2"),
    "no rank": (lambda folder: set_config(folder, r="many"), "r='many'"),
    "a rank that is text": (lambda folder: set_config(folder, rank_pattern={"v_proj": "x"}), "rank_pattern.*='x'"),
    "ranks in a list": (lambda folder: set_config(folder, rank_pattern=["v_proj"]), "rank_pattern=.* is not a mapping"),
    "an alpha of zero": (lambda folder: set_config(folder, alpha_pattern={"v_proj": 0}), "alpha_pattern.*=0"),
    "a pattern that is none": (
        lambda folder: set_config(folder, alpha_pattern={"(": 1}),
        "alpha_pattern is no pattern",
    ),
    "a pattern without end": (
        lambda folder: set_config(folder, alpha_pattern={r"(?:\w|[a-z]|\.|.)*[^ -~]": 1}),
        "alpha_pattern takes more than",
    ),
    "layers left out": (
        lambda folder: set_config(folder, exclude_modules=["v_proj"]),
        r"its exclude_modules leaves out layers\.\d\.self_attn\.v_proj, of which there are weights",
    ),
    "layers not named": (lambda folder: set_config(folder, target_modules=["q_proj"]), "target_modules leaves out"),
    "config that is not JSON": (lambda folder: (folder / CONFIG).write_text("{"), "is not JSON"),
    "pickle only": (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "pickles are never opened"),
    "in parts": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors"),
        "only parts of it",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "file not found; download it again"),
    "layers of the vision tower": (
        lambda folder: rename(folder, "model.language_model", "model.vision_tower.encoder"),
        "is not a layer of the base's language model, nor are 3 more; train with target_modules",
    ),
    **{
        f"a tower named {tower}": (
            lambda folder, tower=tower: rename(folder, "model.language_model.", tower),
            "is not a layer of the base's language model",
        )
        for tower in ("thinker.model.", "audio_tower.", "mtp.", "model.mtp.", "vision.language_model.", "a." * 32_000)
    },
    "two towers": (
        lambda folder: copied(folder, "model.language_model.", "talker.model."),
        r"talker\.model\.layers.* is not a layer of the base's language model, nor are",
    ),
    "two names of one layer": (
        lambda folder: copied(folder, "model.language_model.", "model."),
        r"and another weight are of one layer, layers\.0",
    ),
    "two adapters": (
        lambda folder: copied(folder, "_A.weight", "_A.other.weight"),
        "belongs to an adapter named 'other'",
    ),
    "the same adapter twice": (lambda folder: copied(folder, "_A.weight", "_A.default.weight"), "are of one layer"),
    "an embedding": (
        lambda folder: copied(folder, "layers.0.self_attn.q_proj.lora_A.weight", "embed_tokens.lora_embedding_A"),
        "it adapts an embedding; train with target_modules",
    ),
    "the head": (
        lambda folder: copied(folder, "model.language_model.layers.0.self_attn.q_proj", "lm_head"),
        "lm_head is not a layer of the base's language model",
    ),
    "a magnitude": (lambda folder: copied(folder, "lora_A.weight", "lora_magnitude_vector"), "it belongs to DoRA"),
    "a bias tensor": (lambda folder: copied(folder, "lora_B.weight", "lora_B.bias"), "it is a bias"),
    "weights of the base": (lambda folder: copied(folder, "lora_A.weight", "base_layer.weight"), "of the base itself"),
    "other tensors": (lambda folder: rename(folder, "lora_A", "ia3_l"), "a weight of the base itself"),
    "half a pair": (lambda folder: rename(folder, "lora_A", None), "is not one of a pair"),
    "not finite": (lambda folder: fill_with_nan(folder), "not finite"),
    "whole numbers": (lambda folder: cast(folder, torch.int8), "is torch.int8, and has no scales"),
    "eight bits": (lambda folder: cast(folder, torch.float8_e4m3fn), "unknown dtype 'F8_E4M3'"),
    "damaged": (lambda folder: (folder / WEIGHTS).write_bytes(b"version https://git-lfs"), "is a Git LFS pointer"),
}


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


def rename(folder: Path, old: str, new: str | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    renamed = {
        name.replace(old, new or ""): value for name, value in tensors.items() if new is not None or old not in name
    }
    save_file(renamed, folder / WEIGHTS)


def copied(folder: Path, old: str, new: str) -> None:
    """Add copies of the tensors whose names hold `old`, under other names."""
    tensors = load_file(folder / WEIGHTS)
    more = {name.replace(old, new): value.clone() for name, value in tensors.items() if old in name}
    save_file(tensors | more, folder / WEIGHTS)


def cast(folder: Path, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def fill_with_nan(folder: Path) -> None:
    save_file({name: value * float("nan") for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.fixture(scope="module")
def written(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain adapter to damage copies of."""
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(make_base(tokenizer).model, PeftConfig(r=4, target_modules=MODULES)).save_pretrained(str(folder))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A model that no test changes."""
    return PatchedModel(make_base(tokenizer))


@pytest.mark.parametrize("kind", REFUSED)
def test_all_but_a_plain_lora_is_refused(
    plain: PatchedModel, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(peft, "PATTERN_SECONDS", 0.2)
    change, cause = REFUSED[kind]
    folder = shutil.copytree(written, tmp_path / "Their LoRA")
    change(folder)
    with pytest.raises((PatchError, Exception), match=cause) as refused:
        plain.apply_patch(folder)
    assert type(refused.value).__module__ == "pave.errors" and "Their LoRA" in str(refused.value)
    assert not plain.patches and not any(module._forward_hooks for module in plain.base.modules())


@pytest.mark.parametrize("old", ["language_model.model.", "language_model.", "model.", ""])
def test_a_lora_of_an_older_release_or_of_the_language_model_alone_is_read(
    plain: PatchedModel, written: Path, tmp_path: Path, old: str
) -> None:
    folder = shutil.copytree(written, tmp_path / "old")
    rename(folder, "model.language_model.", old)
    set_config(folder, target_modules=["q_proj", "v_proj"], rank_pattern={rf"^{old}layers.0.*q_proj": 4})
    assert load_peft(folder, plain.host).tensors.keys() == load_peft(written, plain.host).tensors.keys()
    set_config(folder, alpha_pattern={rf"^{old}layers.0.*q_proj": 4})
    with pytest.raises(
        PatchError, match=r"alpha_pattern gives layers.0.self_attn.q_proj 8 or 4, by its old and its new"
    ):
        load_peft(folder, plain.host)


def test_patterns_are_resolved_as_by_peft(written: Path) -> None:
    patterns = {"q_proj": 1, r".*\.1\..*": 2, "(k|v)_proj": 3, "^o_proj": 4, "a.layers.2.o_proj$": 5, "proj": 6, "": 7}
    names = [f"a.layers.{i}.{word}_proj" for i in range(3) for word in "qkvo"] + ["o_proj", "a.q_projx", "proj"]
    ours = peft._Patterns(written / CONFIG, {"rank_pattern": patterns})
    for name in names:
        expected = patterns.get(get_pattern_key(list(patterns), name), 0)
        assert ours.value("rank_pattern", name, (name,), 0) == expected, name


def test_a_lora_with_ranks_by_layer_is_shrunk(one: PatchedModel) -> None:
    one.attach("ears", make_config(one.host, lora=BY_LAYER), trainable=False)
    awaken(one, "ears")
    patch = one.export("ears")
    small = patch.shrink(8, rank=2)
    small.check()
    assert small.config.lora is not None and small.config.lora.r == 2
    for layer in (name[5:-2] for name in patch.tensors if name.startswith("lora.") and name.endswith(".A")):
        assert small.config.lora.rank(layer) == 2
        assert small.config.lora.scaling_of(layer) == pytest.approx(BY_LAYER.scaling_of(layer), rel=1e-15)


def test_an_export_that_fails_leaves_the_old_files(one: PatchedModel, tmp_path: Path) -> None:
    hears(one)
    patch = one.export("ears")
    export_peft(patch, one.host, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == [CONFIG, "adapter_model.safetensors"]
    (tmp_path / CONFIG).unlink()
    (tmp_path / CONFIG).mkdir()  # cannot be replaced by a file
    with pytest.raises(FileError, match="cannot be written"):
        export_peft(patch, one.host, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before["adapter_model.safetensors"]
    assert len(list(tmp_path.iterdir())) == 2, "nothing temporary"
