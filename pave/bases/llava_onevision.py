"""LLaVA-OneVision: SigLIP, a two-layer projector, bilinear 2x pooling, Qwen2.

In: pixels. Out: pooled features on both sides of the projector, from the model's own `get_video_features`.

t key frames, s visual tokens per key frame, q d channels before and after the projector
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pave.base import Host, Seen


class Llava(Host):
    """Shared by the LLaVA families: a vision tower of fixed size, and the layers of it that the projector reads."""

    @property
    def layers(self) -> list[int]:
        layers = self.model.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else layers

    @property
    def vision_dim(self) -> int:
        return self.model.config.vision_config.hidden_size * len(self.layers)

    @property
    def size(self) -> tuple[int, int]:
        return (self.model.config.vision_config.image_size,) * 2

    @cached_property
    def edge(self) -> int:
        """Patches along an edge. Cached: read many times per call, and attributes of transformers configs are slow."""
        return self.size[0] // self.model.config.vision_config.patch_size

    def features(self, seen: Any) -> Tensor:
        """Features of all patches (t s q). Not last_hidden_state: it has passed the final norm, which
        the projector's input has not."""
        return torch.cat([seen.hidden_states[layer] for layer in self.layers], -1)

    def patches(self, seen: Any) -> Tensor:
        """The same without the class token, if the checkpoint drops it."""
        features = self.features(seen)
        return features[:, 1:] if self.model.config.vision_feature_select_strategy == "default" else features


class LlavaOnevision(Llava):
    """The family of `llava-hf/llava-onevision-qwen2-*` and of the embedded Playroom base."""

    read_apart = ("model.image_newline",)

    @property
    def grid(self) -> tuple[int, int]:
        side = -(-self.edge // 2)  # apply_pooling halves the patch grid, rounding up
        return side, side

    @property
    def newline(self) -> Tensor:
        return self.model.model.image_newline

    def look(self, pixels: Tensor) -> Seen:
        seen = self.model.model.get_video_features(pixels[None], return_dict=True)
        # The model appends one newline row per video; all frames are passed as one video, so one row is dropped.
        tokens = rearrange(seen.pooler_output[0, :-1], "(t s) d -> t s d", t=len(pixels))
        return Seen(self.model.model.apply_pooling(self.patches(seen)), tokens)


BASE = LlavaOnevision
