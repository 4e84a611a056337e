"""LLaVA-OneVision: SigLIP, a two-layer projector, bilinear 2x pooling, Qwen2.

In: pixels. Out: its pooled features on both sides of the projector, taken from the model's own `get_video_features`.

t key frames, s visual tokens per key frame, q d channels before and after the projector, v packed visual rows, b clips
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from pave.base import Base

MODEL = LlavaOnevisionForConditionalGeneration


class LlavaOnevision(Base):
    """The family of `llava-hf/llava-onevision-qwen2-*` and of the embedded Playroom base."""

    @property
    def vision_dim(self) -> int:
        layers = self.model.config.vision_feature_layer
        return self.model.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)  # apply_pooling halves the patch grid, rounding up
        return side, side

    @property
    def size(self) -> tuple[int, int]:
        return (self.model.config.vision_config.image_size,) * 2

    @property
    def newline(self) -> Tensor:
        return self.model.model.image_newline

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.model.model.get_video_features(pixels[None], return_dict=True)
        # The family ends a whole video with one newline row; all frames go in as one video, so it is one row to drop.
        tokens = rearrange(seen.pooler_output[0, :-1], "(t s) d -> t s d", t=len(pixels))
        layers = self.model.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        # Not last_hidden_state: that has passed SigLIP's post_layernorm, the projector's input has not.
        features = torch.cat([seen.hidden_states[layer] for layer in layers], -1)
        if self.model.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        return self.model.model.apply_pooling(features), tokens


def build(model: LlavaOnevisionForConditionalGeneration, tokenizer: Any, **facts: Any) -> LlavaOnevision:
    return LlavaOnevision(model, tokenizer, **facts)
