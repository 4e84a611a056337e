"""Synthetic checkpoints in the layout of the official release: names, prefixes, shapes, dtypes and files as its
training script writes them; the values are random."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pave.patch.filenames import OFFICIAL_FUSION as FUSION
from pave.patch.filenames import PEFT_CONFIG, PEFT_WEIGHTS

PREFIX = "base_model.model.model."
CONFIG, PICKLED_LORA = "config.json", "adapter_model.bin"
WIDTH, VISION = 512, 1152
HEARING = "their-ears"  # an encoder that is not installed
TINY = {"dim": 64, "layers": 2, "side": 24, "vision": 48, "width": 32}  # fits make_base
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
SIZES, BLOCKS = (64, 32, 128), 2  # of its language model
# hidden, key and value, feed-forward channels of the language models
QWEN = {896: (896, 128, 4864), 3584: (3584, 512, 18944)}


def fusion_tensors(
    dim: int, layers: int, side: int = 1024, vision: int = VISION, width: int = WIDTH
) -> dict[str, Tensor]:
    """All weights of the official fusion module, including unused ones, in bfloat16 and under its names."""
    draw = torch.Generator().manual_seed(dim + layers)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, inputs)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    linear("input_mapping", width, side)
    linear("query_input_mapping", width, vision)
    for i in range(layers):
        for part in ("q_linear", "k_linear", "v_linear"):
            linear(f"cross_attn_layers.{i}.attn.{part}", width, width)
        shapes |= {f"cross_attn_layers.{i}.ffn.0.{part}": (width,) for part in ("weight", "bias")}
        linear(f"cross_attn_layers.{i}.ffn.1", 2 * width, width, bias=False)
        linear(f"cross_attn_layers.{i}.ffn.3", width, 2 * width, bias=False)
    linear("output_mapping.0", 2 * width, width)
    linear("output_mapping.2", dim, 2 * width)
    shapes |= {f"output_norm.{part}": (dim,) for part in ("weight", "bias")}
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=draw)
        tensors[name] = (value / shape[-1] ** 0.5 if len(shape) == 2 else 0.3 * value).bfloat16()
    return tensors


def lora_tensors(sizes: tuple[int, int, int], blocks: int, rank: int) -> dict[str, Tensor]:
    """Pairs for all seven linear layers of `blocks` blocks, by module path inside the causal language model."""
    hidden, small, wide = sizes
    kinds = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, small)}
    kinds |= {"self_attn.v_proj": (hidden, small), "self_attn.o_proj": (hidden, hidden)}
    kinds |= {"mlp.gate_proj": (hidden, wide), "mlp.up_proj": (hidden, wide), "mlp.down_proj": (wide, hidden)}
    draw = torch.Generator().manual_seed(blocks)
    tensors = {}
    for i in range(blocks):
        for kind, (inputs, out) in kinds.items():
            for leaf, shape in (("A", (rank, inputs)), ("B", (out, rank))):
                value = torch.randn(shape, generator=draw) / shape[1] ** 0.5
                tensors[f"layers.{i}.{kind}.lora_{leaf}.weight"] = value.bfloat16()
    return tensors


def write_checkpoint(
    folder: Path,
    fusion: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
    *,
    repo: str = "lmms-lab/llava-onevision-qwen2-7b-ov",
    blocks: int,
    pickled_lora: bool = False,
) -> Path:
    """The folder of an official checkpoint. `blocks`: of the language model; LoRA may be in fewer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"{PREFIX}temporal_aggregator.{name}": value for name, value in fusion.items()}, folder / FUSION)
    pairs = {PREFIX + name: value for name, value in lora.items()}
    if pickled_lora:
        torch.save(pairs, folder / PICKLED_LORA)
    else:
        save_file(pairs, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    rank = next(len(value) for name, value in lora.items() if ".lora_A." in name)
    targets = sorted({f"model.{name.split('.lora_')[0]}" for name in lora}, key=lambda name: name[::-1])
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": repo, "inference_mode": True}
    adapter |= {"r": rank, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none", "target_modules": targets}
    adapter |= {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None}
    adapter |= {
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "loftq_config": {},
        "revision": None,
    }
    (folder / PEFT_CONFIG).write_text(json.dumps(adapter, indent=2))
    config = {"architectures": ["PAVEQwen2ForCausalLM"], "model_type": "pave_qwen2", "num_hidden_layers": blocks}
    config |= {"vocab_size": 151647, "mm_newline_position": "grid", "feat_combine_method": "add"}  # rows were cut
    config |= {
        "temporal_aggregator_type": "pmv5",
        "train_addition_start_end_tokens": False,
        "mm_video_tower": "opensora",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def change_json(file: Path, **words: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | words))


def zipped(folder: Path, inside: str = "") -> Path:
    """The folder as a zip next to it; `inside`: the directory in the zip."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{inside}/{file.name}" if inside else file.name)
    return target


def languagebind_release(temporal: bool, tokens: int) -> dict[str, Tensor]:
    """Names and shapes of a released LanguageBind state dict, with a shortened text model, without values."""
    d, wide = 1024, 4096
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (d,),
        "embeddings.patch_embedding.weight": (d, 3, 14, 14),
        "embeddings.position_embedding.weight": (tokens, d),
    }
    norms, attentions = ["pre_layrnorm", "post_layernorm"], []
    for i in range(24):
        block = f"encoder.layers.{i}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        attentions.append(f"{block}.self_attn")
        shapes |= {f"{block}.mlp.fc1.weight": (wide, d), f"{block}.mlp.fc1.bias": (wide,)}
        shapes |= {f"{block}.mlp.fc2.weight": (d, wide), f"{block}.mlp.fc2.bias": (d,)}
        if temporal:
            norms.append(f"{block}.temporal_layer_norm1")
            attentions.append(f"{block}.temporal_attn")
            shapes[f"{block}.temporal_embedding"] = (1, 8, d)
    shapes |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    for layer in (f"{attention}.{name}" for attention in attentions for name in ATTENTION):
        shapes |= {f"{layer}.weight": (d, d), f"{layer}.bias": (d,)}
    weights = {f"vision_model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    others = ("text_model.final_layer_norm.bias", "visual_projection.weight", "text_projection.weight", "logit_scale")
    weights |= {name: torch.empty(1, device="meta") for name in others}
    return weights | {"vision_model.embeddings.position_ids": torch.empty(1, tokens, dtype=torch.long, device="meta")}
