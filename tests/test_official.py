"""Claims about the authors' checkpoints: a converted one computes what theirs computes, and nothing in one is run."""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_base, make_clip
from peft import PeftModel
from released import (
    CONFIG,
    FUSION,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    PICKLED_LORA,
    PREFIX,
    QWEN,
    VISION,
    change_json,
    fusion_tensors,
    lora_tensors,
    write_checkpoint,
    zipped,
)
from safetensors.torch import load_file, save_file
from test_cli import command  # noqa: F401 (a fixture)
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from pave import pickled
from pave.config import PatchConfig
from pave.encoder import EncoderSpec, load_encoder
from pave.errors import EncoderError, PatchDamaged, PatchError, PatchFormatError, PatchMismatch, PatchNotFound
from pave.errors import RecipeError, SignalError
from pave.fusion import Official
from pave.model import PatchedModel
from pave.official import LICENCE, convert
from pave.patch import Patch, fusion_of
from pave.sidechannel import SideTokens, align

HEARING = "imagebind-audio"
# The released checkpoints by the channels and blocks of their base, and their own layers.
RELEASED = {
    "ScanQA 0.5B": (896, 2),
    "ScanQA 7B": (3584, 2),
    "SQA3D 7B": (3584, 2),
    "AVSD 7B": (3584, 2),
    "Music-AVQA 7B": (3584, 3),
    "enhanced video 7B": (3584, 2),
}
# Features (τ h w) for 32 key frames: as many steps, more that share out evenly or not, fewer.
FEATURES = [
    ("ScanQA 0.5B", (32, 24, 24)),
    ("ScanQA 0.5B", (20, 3, 3)),
    ("ScanQA 7B", (32, 6, 6)),
    ("SQA3D 7B", (64, 3, 3)),
    ("AVSD 7B", (33, 1, 1)),
    ("AVSD 7B", (1, 1, 1)),
    ("Music-AVQA 7B", (59, 1, 1)),
    ("Music-AVQA 7B", (7, 1, 1)),
    ("enhanced video 7B", (240, 2, 2)),
]
Damage = Callable[[Path], object]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# a converted fusion is the authors' fusion


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], tuple[dict[str, Tensor], Patch]]:
    """The authors' tensors and the patch made of them, by channels and layers of a released checkpoint."""
    made: dict[tuple[int, int], tuple[dict[str, Tensor], Patch]] = {}

    def get(dim: int, layers: int) -> tuple[dict[str, Tensor], Patch]:
        if (dim, layers) not in made:
            fusion = fusion_tensors(dim, layers)
            folder = tmp_path_factory.mktemp("released") / f"pave_{dim}_{layers}"
            write_checkpoint(folder, fusion, lora_tensors(QWEN[dim], 1, 64), blocks=1)
            made[dim, layers] = fusion, convert(zipped(folder, "pave_lora"), "side", "the-features")
        return made[dim, layers]

    return get


def authors_update(weights: Mapping[str, Tensor], vision: Tensor, x: Tensor) -> Tensor:
    """The update of visual tokens (t s q) by side tokens (τ h w c) as the paper's code computes it, in float64, written
    down literally, one key frame and one head after the other."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(value: Tensor) -> Tensor:
        return value * (1 + torch.erf(value / math.sqrt(2))) / 2

    frames, layers = len(vision), len([name for name in w if name.endswith("attn.q_linear.weight")])
    m = linear("input_mapping", x.double())
    if len(m) < frames:
        size = (frames, *m.shape[1:3])
        m = F.interpolate(m.permute(3, 0, 1, 2)[None], size=size, mode="trilinear", align_corners=True)
        m = m[0].permute(1, 2, 3, 0)
    steps, longer = divmod(len(m), frames)
    updates, begin = [], 0
    for i in range(frames):
        end = begin + steps + (i < longer)
        own, begin = m[begin:end].flatten(0, 2), end
        z = linear("query_input_mapping", vision[i].double())
        for layer in (f"cross_attn_layers.{n}" for n in range(layers)):
            q, k = linear(f"{layer}.attn.q_linear", z), linear(f"{layer}.attn.k_linear", own)
            heads = [slice(128 * h, 128 * (h + 1)) for h in range(4)]
            z = z + torch.cat([(q[:, h] @ k[:, h].T / math.sqrt(128)).softmax(-1) @ k[:, h] for h in heads], -1)
            z = z + linear(f"{layer}.ffn.3", gelu(linear(f"{layer}.ffn.1", norm(f"{layer}.ffn.0", z))))
        updates.append(norm("output_norm", linear("output_mapping.2", gelu(linear("output_mapping.0", z)))))
    return torch.stack(updates)


@pytest.mark.parametrize(("checkpoint", "shape"), FEATURES)
def test_a_converted_fusion_computes_what_the_paper_computes(
    converted: Callable[..., Any], checkpoint: str, shape: tuple[int, int, int]
) -> None:
    dim, layers = RELEASED[checkpoint]
    weights, patch = converted(dim, layers)
    fusion = fusion_of(patch.config, "side")
    assert isinstance(fusion, Official)
    mine = {name.removeprefix("fusion.side."): value for name, value in patch.weights().items() if "fusion" in name}
    fusion.load_state_dict(mine)
    vision, x = random(32, 4, VISION), random(*shape, 1024, seed=1)
    side = align([SideTokens.regular(x, rate=1)], [torch.arange(32.0)], patch.config.senses["side"].align)
    with torch.no_grad():
        got = fusion.float()(vision[None], torch.zeros(1, 32, 4, dim), side)[0]
    want = authors_update(weights, vision, x)
    assert want.abs().max() > 0.1
    print("ERR", ((got - want).abs().max() / want.abs().max()).item())
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("checkpoint", RELEASED)
def test_a_converted_patch_says_what_it_is(converted: Callable[..., Any], checkpoint: str) -> None:
    dim, layers = RELEASED[checkpoint]
    weights, patch = converted(dim, layers)
    config = patch.config
    dead = {f"cross_attn_layers.{i}.attn.v_linear.{part}" for i in range(layers) for part in ("weight", "bias")}
    kept = {f"fusion.side.{name}" for name in weights.keys() - dead}
    assert {name for name in patch.tensors if name.startswith("fusion.")} == kept
    assert {value.dtype for value in patch.tensors.values()} == {torch.bfloat16}
    size = sum(value.numel() for name, value in patch.tensors.items() if name in kept)
    dead_values = layers * (512 * 512 + 512)
    assert size == {(896, 2): 6_235_776, (3584, 2): 8_996_352, (3584, 3): 10_833_920}[dim, layers] - dead_values
    base = config.base
    assert (base.dim, base.vision_dim, base.tokens_per_frame, base.frames) == (dim, 1152, 196, 32)
    assert (base.repo, base.fingerprint) == ("lmms-lab/llava-onevision-qwen2-7b-ov", "")
    assert config.fusion.layers == layers and config.newline == "grid" and config.licence == LICENCE
    assert config.lora is not None and (config.lora.r, config.lora.lora_alpha, config.lora.scaling) == (64, 16, 0.25)
    assert "q_proj" in config.lora.target_modules and len(config.lora.target_modules) == 7
