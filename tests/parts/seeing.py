"""Small encoders of pictures with seeded weights, read from files where the real ones are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from listening import golden
from places import GOLDEN
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
    VJEPA2Config,
    VJEPA2Model,
)

from pave.encoder import load_encoder, module_of
from pave.senses.languagebind import VIT_L, Tower, tower

FEW: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
PREDICTOR: dict[str, Any] = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
BERT: dict[str, Any] = {"hidden_size": 32, "vocab_size": 20, "max_position_embeddings": 16, "encoder_hidden_size": 48}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "describe", "the", "picture", "."]
SIZES: dict[tuple[str, str], Any] = {
    ("vjepa2-video", "VIT_L"): VJEPA2Config(**FEW, **PREDICTOR),
    ("instructblip-video", "VISION"): InstructBlipVisionConfig(**FEW, intermediate_size=64, image_size=56),
    ("instructblip-video", "QFORMER"): InstructBlipQFormerConfig(**{**FEW, **BERT}, intermediate_size=64),
}


@contextmanager
def small_sizes() -> Iterator[None]:
    """Within the block, encoders whose files fix their sizes have small ones."""
    with pytest.MonkeyPatch.context() as patch:
        for (encoder, name), config in SIZES.items():
            patch.setattr(module_of(encoder), name, config)
        yield


def vjepa2_video(folder: Path) -> Any:
    torch.manual_seed(0)
    VJEPA2Model(SIZES["vjepa2-video", "VIT_L"]).save_pretrained(folder)
    return load_encoder("vjepa2-video", weights=folder)


def instructblip_video(folder: Path) -> Any:
    text = OPTConfig(**FEW, vocab_size=50, ffn_dim=64, word_embed_proj_dim=48, max_position_embeddings=64)
    vision, qformer = (SIZES["instructblip-video", name] for name in ("VISION", "QFORMER"))
    torch.manual_seed(0)
    config = InstructBlipConfig(vision_config=vision, qformer_config=qformer, text_config=text)
    InstructBlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    (folder / "qformer_tokenizer").mkdir()
    tokenizer.save(str(folder / "qformer_tokenizer" / "tokenizer.json"))
    return load_encoder("instructblip-video", weights=folder)


def languagebind_video(folder: Path) -> Any:
    """With the network set directly."""
    with safe_open(GOLDEN / "languagebind_video_tiny.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()["cfg"])
    with torch.device("meta"):
        config = CLIPVisionConfig(**{key: recorded[key] for key in recorded if hasattr(VIT_L, key)})
        outline = Tower(config, (16, 16), temporal=True)
    encoder: Any = load_encoder("languagebind-video")
    encoder.network = tower(golden("languagebind_video")[1], "a release", outline)
    return encoder


def llava3d(folder: Path) -> Any:
    """With the network set directly."""
    few = {**FEW, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "image_size": 336}
    torch.manual_seed(0)
    encoder: Any = load_encoder("rgbd-geometry", preset="llava3d", frames=3)
    encoder.network = module_of("rgbd-geometry").Network(CLIPVisionConfig(**few, patch_size=14), 24).eval()
    return encoder


EYES: dict[str, Callable[[Path], Any]] = {
    "vjepa2-video": vjepa2_video,
    "instructblip-video": instructblip_video,
    "languagebind-video": languagebind_video,
    "rgbd-geometry llava3d": llava3d,
    "rgbd-geometry": lambda folder: load_encoder("rgbd-geometry", grid=[2, 2]),
    "base-tower": lambda folder: load_encoder("base-tower"),
    "base-tower views": lambda folder: load_encoder("base-tower", sense="views"),
}
