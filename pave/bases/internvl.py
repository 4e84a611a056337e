"""InternVL: key frames are numbered images; pixel shuffle merges four patches into one token.

t key frames, s visual tokens per key frame, q d channels before and after the projector
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pave.base import Host, Seen


class InternVL(Host):
    MEAN, STD = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    TEMPLATE = "<|im_start|>user\n{video}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    modality = "image"

    @property
    def vision_dim(self) -> int:
        return int(self.model.config.vision_config.hidden_size / self.model.config.downsample_ratio**2)

    @property
    def grid(self) -> tuple[int, int]:
        patches = self.size[0] // self.model.config.vision_config.patch_size[0]
        side = int(patches * self.model.config.downsample_ratio)
        return side, side

    @property
    def size(self) -> tuple[int, int]:
        high, wide = self.model.config.vision_config.image_size
        return int(high), int(wide)

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        return [(f"{chr(10) if i else ''}Frame{i + 1}: <img>", "</img>") for i in range(len(times))]

    def look(self, pixels: Tensor) -> Seen:
        config, inner = self.model.config, self.model.model
        seen = inner.get_image_features(pixels, return_dict=True)
        layer = config.vision_feature_layer
        features = seen.last_hidden_state if layer == -1 else seen.hidden_states[layer]
        features = features[:, 1:] if config.vision_feature_select_strategy == "default" else features
        features = rearrange(features, "t (y x) q -> t y x q", y=round(features.shape[1] ** 0.5))
        before = inner.pixel_shuffle(features, scale_factor=config.downsample_ratio)
        return Seen(before.flatten(1, 2), seen.pooler_output)


BASE = InternVL
