"""Claims about original LLaVA-OneVision checkpoints: they load as their `llava-hf` conversions, bit for bit.

The layout is specified here from the released repositories, independently of the code that reads it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FRAMES, make_base
from hub_server import HubServer
from huggingface_hub import constants
from patched import clips, hears, logits
from safetensors.torch import load_file, save_file
from small import SPECIAL, make_tokenizer
from torch import Tensor
from transformers import AddedToken
from transformers import LlavaOnevisionForConditionalGeneration as HuggingFace

from pave.base import Host
from pave.errors import BaseModelError
from pave.loading import lmms_lab
from pave.loading.base import load_base
from pave.model.patched import PatchedModel

RELEASED = {  # of config.json: what differs between the sizes
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "max_window_layers": 24},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "max_window_layers": 28},
}
COMMON = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "image_aspect_ratio": "anyres_max_9",
    "image_token_index": 151646,
    "max_position_embeddings": 32768,
    "mm_hidden_size": 1152,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "bilinear",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tokenizer_model_max_length": 32768,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
SMALL = "tests/siglip-of-two-layers"  # the vision tower of `make_base`
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER |= {"image_size": 56, "patch_size": 14}


def layout(config: dict[str, Any], vision: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a checkpoint."""
    d, inner, v, inner_v = (
        *(config[key] for key in ("hidden_size", "intermediate_size")),
        vision["q"],
        vision["inner"],
    )
    keys = d // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, (rows, columns) in {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (keys, d),
            "self_attn.v_proj": (keys, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (inner, d),
            "mlp.up_proj": (inner, d),
            "mlp.down_proj": (d, inner),
        }.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if name[-6] in "qkv":
                shapes[f"{layer}.{name}.bias"] = (rows,)
        shapes |= {f"{layer}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    shapes |= {"model.mm_projector.0.weight": (d, v), "model.mm_projector.0.bias": (d,)}
    shapes |= {"model.mm_projector.2.weight": (d, d), "model.mm_projector.2.bias": (d,), "model.image_newline": (d,)}
    tower = "model.vision_tower.vision_tower.vision_model"
    patch = {"patch_embedding.weight": (v, 3, 14, 14), "patch_embedding.bias": (v,)}
    patch["position_embedding.weight"] = (vision["patches"], v)
    shapes |= {f"{tower}.embeddings.{name}": shape for name, shape in patch.items()}
    for i in range(vision["layers"]):
        for name, (rows, columns) in {
            **{f"self_attn.{which}_proj": (v, v) for which in ("q", "k", "v", "out")},
            "mlp.fc1": (inner_v, v),
            "mlp.fc2": (v, inner_v),
        }.items():
            shapes |= {f"{tower}.encoder.layers.{i}.{name}.weight": (rows, columns)}
            shapes |= {f"{tower}.encoder.layers.{i}.{name}.bias": (rows,)}
        for part in ("weight", "bias"):
            shapes |= {f"{tower}.encoder.layers.{i}.layer_norm{n}.{part}": (v,) for n in (1, 2)}
    return shapes | {f"{tower}.post_layernorm.{part}": (v,) for part in ("weight", "bias")}


@pytest.mark.parametrize("size", RELEASED)
def test_every_weight_of_the_released_sizes_is_mapped(size: str) -> None:
    described = COMMON | RELEASED[size]
    shapes = layout(described, {"q": 1152, "inner": 4304, "layers": 26, "patches": 27 * 27})
    config = lmms_lab.config_of(described, size)
    opened: Any = HuggingFace.from_pretrained(
        None,
        config=config,
        state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
        key_mapping=lmms_lab.KEYS,
        device_map={"": "meta"},
        output_loading_info=True,
    )
    model, loaded = opened
    assert not any(loaded.values())
    assert len(dict(model.named_parameters())) == len(shapes)
    assert [config.image_token_id, config.video_token_id] == [151646, 151647]
    text: Any = config.text_config
    assert text.rope_parameters["rope_theta"] == 1e6


def original_name(name: str) -> str:
    """The original name of a weight in transformers."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    name = re.sub(r"^model\.vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model.", name)
    name = name.replace("multi_modal_projector.linear_1", "mm_projector.0")
    return name.replace("multi_modal_projector.linear_2", "mm_projector.2")


def describe(base: Host, **changes: Any) -> dict[str, Any]:
    """The config.json in the original layout."""
    text = base.model.config.text_config.to_dict()
    text = {key: text[key] for key in text.keys() & (RELEASED["7B"].keys() | {"max_position_embeddings"})}
    tokens = {"bos_token_id": None, "eos_token_id": 2, "image_token_index": None}
    rope = {"rope_theta": base.model.config.text_config.rope_parameters["rope_theta"]}
    return COMMON | text | tokens | rope | {"mm_vision_tower": SMALL} | changes


def write_tokenizer(folder: Path, special: list[str], *added: str) -> None:
    tokenizer = make_tokenizer(special)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "pave.json").write_text(json.dumps({"frames": FRAMES}))


def write_original(folder: Path, base: Host, **changes: Any) -> Path:
    """A base in the original layout, in two files."""
    tensors = {original_name(name): tensor.contiguous() for name, tensor in base.model.state_dict().items()}
    described = describe(base, **changes)
    vision = {"q": 48, "inner": 96, "layers": 2, "patches": 16}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == layout(described, vision)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "repetition_penalty": 1.05}))
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for shard, part in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
    placed = {name: shard for shard, part in zip(SHARDS, halves, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    write_tokenizer(folder, SPECIAL[:3])
    return folder


def write_converted(folder: Path, base: Host) -> Path:
    """The same base in Hugging Face's layout."""
    base.model.save_pretrained(folder)
    write_tokenizer(folder, SPECIAL[:3], "<image>", "<video>")
    return folder


def make_tiny(dtype: torch.dtype = torch.bfloat16) -> Host:
    """The small base of all tests, with a tokenizer like the converted one and weights that float16 rounds."""
    tokenizer = make_tokenizer(SPECIAL[:3])
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    base = make_base(tokenizer, dtype)
    with torch.no_grad():
        base.language_model.get_parameter("layers.0.mlp.up_proj.weight")[0].mul_(2**-16)
    return base


@pytest.fixture(autouse=True)
def small_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lmms_lab.TOWERS, SMALL, TOWER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_original(tmp_path / "theirs", make_tiny())


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_both_layouts_load_as_the_same_base_bit_for_bit(tmp_path: Path, stored: str, dtype: str) -> None:
    tiny = make_tiny(getattr(torch, stored))
    exact = tiny.fingerprint()
    theirs = load_base(write_original(tmp_path / "theirs", tiny, torch_dtype=stored), dtype=dtype)
    if stored == "bfloat16":
        tiny.model.half()  # as the conversion does
    ours = load_base(write_converted(tmp_path / "ours", tiny), dtype=dtype)
    assert type(theirs.model) is type(ours.model) is HuggingFace
    assert alike(theirs.model.state_dict(), ours.model.state_dict())
    assert alike(dict(theirs.model.named_buffers()), dict(ours.model.named_buffers()))
    assert theirs.fingerprint() == ours.fingerprint()
    assert (theirs.fingerprint() == exact) == (stored == "float32"), "the fingerprint must change when float16 rounds"
    assert theirs.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    assert (
        theirs.placeholder
        == ours.placeholder
        == theirs.tokenizer.convert_tokens_to_ids("<video>")
        == len(ours.tokenizer) - 1
    )
    assert (theirs.prompt("What?"), theirs.stops, theirs.pad) == (ours.prompt("What?"), ours.stops, ours.pad)
    assert theirs.facts() == ours.facts()
    pixels = ours.pixels(clips()[0])
    assert torch.equal(theirs.encode([pixels]).tokens, ours.encode([pixels]).tokens)
    one, other = PatchedModel(theirs), PatchedModel(ours)
    assert torch.equal(logits(one), logits(other))
    inputs = one.prepare(clips(), ["What?", "And where is it?"])
    assert torch.equal(one.generate(inputs, max_new_tokens=8), other.generate(inputs, max_new_tokens=8))


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    same = [one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one]
    return one.keys() == other.keys() and all(same)


def test_a_patch_of_one_layout_fits_the_other(folder: Path, tmp_path: Path) -> None:
    one = PatchedModel(load_base(folder))
    ours = make_tiny()
    ours.model.half()
    other = PatchedModel(load_base(write_converted(tmp_path / "ours", ours)))
    hears(one)
    path = one.export("ears").save(tmp_path / "ears.safetensors")
    assert other.apply_patch(path).base_match == "exact"
    assert torch.equal(logits(other), logits(one))


def test_a_loaded_base_can_be_saved_in_the_layout_of_transformers(folder: Path, tmp_path: Path) -> None:
    opened = load_base(folder)
    opened.model.save_pretrained(tmp_path / "saved")
    opened.tokenizer.save_pretrained(tmp_path / "saved")
    assert alike(load_base(tmp_path / "saved").model.state_dict(), opened.model.state_dict())


def test_single_file_tied_and_unused_weights_load_too(folder: Path) -> None:
    """The 0.5B checkpoint is one file with tied embeddings."""
    whole = load_base(folder)
    tensors = load_file(folder / SHARDS[0]) | load_file(folder / SHARDS[1])
    for file in [*SHARDS, "model.safetensors.index.json", "generation_config.json"]:
        (folder / file).unlink()
    save_file(tensors | LEFTOVERS, folder / "model.safetensors", {"format": "pt"})
    assert load_base(folder).fingerprint() == whole.fingerprint()
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"tie_word_embeddings": True}))
    for head in ({}, {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}):
        rest = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
        save_file(rest | head, folder / "model.safetensors", {"format": "pt"})
        model = load_base(folder).model
        assert model.lm_head.weight is model.get_input_embeddings().weight


LEFTOVERS = {
    "model.vision_tower.vision_tower.vision_model.head.probe": torch.zeros(1, 1, 48),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
}


def change_config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(described | changes))

    return change


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / SHARDS[0])
        change(tensors)
        save_file(tensors, folder / SHARDS[0], {"format": "pt"})

    return changed


NORM = "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard": (lambda folder: (folder / SHARDS[1]).unlink(), rf"{SHARDS[1]}, which .* is missing; download it again"),
    "cut": (lambda folder: (folder / SHARDS[1]).write_bytes(b"\0" * 99), "cannot be read .*download it again"),
    "missing": (change_weights(lambda w: w.pop(NORM)), r"1 of its weights are missing .*language_model\.norm\.weight"),
    "extra": (
        change_weights(lambda w: w.update({"model.vision_resampler.mm.weight": torch.ones(2)})),
        r"1 of its weights are unexpected \(model\.vision_resampler\.mm\.weight",
    ),
    "shape": (
        change_weights(lambda w: w.update({NORM: torch.ones(65)})),
        r"1 of its weights do not fit .*norm\.weight is \(65,\), its config\.json requires \(64,\)",
    ),
    "tower": (
        change_config(mm_vision_tower="google/siglip-so400m-patch14-224"),
        "its mm_vision_tower is .*patch14-384",
    ),
    "no tower": (change_config(mm_vision_tower=None), "its mm_vision_tower is None.*known: google"),
    "projector": (change_config(mm_projector_type="linear"), "its mm_projector_type is 'linear'.*mlp2x_gelu"),
    "pooling": (change_config(mm_spatial_pool_mode="average"), "its mm_spatial_pool_mode is 'average'.*bilinear"),
    "rows": (change_config(vocab_size=299), "has 300 tokens, its embedding 299 rows"),
    "size": (change_config(hidden_size="big"), "cannot be read .*hidden_size"),
    "json": (lambda folder: (folder / "config.json").write_text("{"), "its config.json is not JSON"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "its config.json is not a JSON object"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damaged_checkpoints_are_refused_by_cause(folder: Path, what: str) -> None:
    damage, message = BROKEN[what]
    damage(folder)
    with pytest.raises(BaseModelError, match=message):
        load_base(folder)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_loading_holds_the_weights_in_memory_once(tmp_path: Path, dtype: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not report anonymous memory")
    # Matrices above 32 MB: malloc may not return the memory of smaller ones.
    large = {"hidden_size": 1024, "intermediate_size": 17408, "num_hidden_layers": 2, "num_attention_heads": 4}
    large |= {"num_key_value_heads": 2, "vocab_size": 312, "tie_word_embeddings": False}
    shapes = layout(large, {"q": 48, "inner": 96, "layers": 2, "patches": 16})
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    del tensors
    write_tokenizer(tmp_path, SPECIAL[:3])
    (tmp_path / "config.json").write_text(json.dumps(COMMON | large | {"mm_vision_tower": SMALL}))
    samples, done = [anonymous()], threading.Event()
    watcher = threading.Thread(
        target=lambda: [samples.append(anonymous()) for _ in iter(lambda: done.wait(0.001), True)]
    )
    watcher.start()
    opened = load_base(tmp_path, dtype=dtype)
    done.set()
    watcher.join()
    assert opened.dtype == (torch.float16 if dtype == "auto" else torch.bfloat16)
    assert size > 2e8 and 0.9 < (max(samples) - samples[0]) / size < 1.5


def anonymous() -> int:
    """Bytes of memory not backed by a file."""
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def test_a_checkpoint_from_the_hub_loads_and_is_cached_for_offline_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server, server.client(tmp_path / "cache"):
        repo = server.create("authors/small-ov", {file.name: file.read_bytes() for file in folder.iterdir()})
        opened = load_base("authors/small-ov")
        assert opened.fingerprint() == load_base(folder).fingerprint()
        assert (opened.repo, opened.revision) == ("authors/small-ov", repo.branches["main"])
        server.close()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        again = load_base("authors/small-ov")
        assert (again.fingerprint(), again.revision) == (opened.fingerprint(), opened.revision)
