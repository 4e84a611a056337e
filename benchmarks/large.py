"""Models and patches with the dimensions of real ones, without their weights: untouched memory costs nothing.

In: the name of a size. Out: a `PatchedModel` with uninitialised weights, and patches with random weights. Valid for
sizes and times, not for answers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from pave.bases.llava_onevision import LlavaOnevision
from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.encoder import load_encoder
from pave.loading.base import load_base
from pave.model.patched import PatchedModel
from pave.patch.file import Patch

SIZES = {  # of the language models: channels, inner channels, layers, heads, key heads, vocabulary (Qwen2, config.json)
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
    "2 GB": (1536, 8960, 14, 12, 2, 151936),
    "small": (256, 512, 2, 4, 2, 512),
}
SIDE = 1024  # channels of a side token, as those of ImageBind


def empty_model(size: str, device: str = "cpu", tower: int = 1) -> PatchedModel:
    """A LLaVA-OneVision of these dimensions in bfloat16 with so many vision layers, with one of few inner channels
    (a small one sees few pixels, with few channels: CPUs are slow in bfloat16), and the embedded base's tokenizer. Its
    weights are random on a GPU and if they are few, else uninitialised, so its fingerprint is a constant."""
    hidden, inner, layers, heads, key_heads, vocabulary = SIZES[size]
    text = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
    )
    small = size == "small"
    vision = SiglipVisionConfig(
        hidden_size=64 if small else 1152,
        intermediate_size=64 if tower == 1 else 4304,
        num_hidden_layers=tower,
        num_attention_heads=2 if small else 16,
        image_size=98 if small else 384,
        patch_size=14,
    )
    tokenizer = load_base("playroom").tokenizer
    media: dict[str, Any] = {
        f"{each}_token_id": tokenizer.convert_tokens_to_ids(f"<{each}>") for each in ("image", "video")
    }
    config = LlavaOnevisionConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), **media)
    with torch.device("meta"):
        model: Any = LlavaOnevisionForConditionalGeneration(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    for parameter in model.parameters() if device != "cpu" or small else ():
        torch.nn.init.normal_(parameter, std=0.02)
    for module in model.modules():  # buffers are uninitialised too: rotary frequencies could be anything, even NaN
        if "position_ids" in module._buffers:
            module.position_ids = torch.arange(module.num_positions, device=device)[None]
        if "inv_freq" in module._buffers:
            fresh = type(module)(module.config).inv_freq
            module.inv_freq = module.original_inv_freq = fresh.to(device)
    base = LlavaOnevision(model, tokenizer)
    base.weights.known = "0" * 64
    return PatchedModel(base)


def random_patch(model: PatchedModel, fusion: FusionConfig, rank: int, channels: int = SIDE) -> Patch:
    """A patch for this model with seeded random weights. Only `channels` = 64, as its encoder, can be applied."""
    name, spec = "large", load_encoder("logmel").spec
    facts = SenseFacts(encoder="logmel", options=dict(spec.options), dim=channels, preprocessing=spec.preprocessing)
    config = PatchConfig(
        name=name,
        base=model.host.facts(),
        senses={"audio": facts},
        fusion=fusion,
        lora=LoraConfig(r=rank, lora_alpha=rank),
    )
    torch.manual_seed(0)
    attached = model.attach(name, config)
    for parameter in attached.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    patch = model.export(name)
    model.remove_patch(name)
    return patch
