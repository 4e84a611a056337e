"""LLaVA-NeXT-Video: CLIP, pooled before the projector.

t key frames, s visual tokens per key frame, d channels of the language model
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pave.base import Seen
from pave.bases.llava_onevision import Llava


class LlavaNextVideo(Llava):
    MEAN, STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
    TEMPLATE = "<s>USER: {video}\n{question} ASSISTANT:"
    AGAIN = "USER: "

    @property
    def grid(self) -> tuple[int, int]:
        return (self.edge // self.model.config.spatial_pool_stride,) * 2

    def look(self, pixels: Tensor) -> Seen:
        seen = self.model.model.get_video_features(pixels[None], return_dict=True)
        tokens = torch.cat(list(seen.pooler_output)).view(-1, self.dim)  # one tensor, or one per frame before 5.23
        before = self.model.model.vision_resampler(self.patches(seen))
        return Seen(before, rearrange(tokens, "(t s) d -> t s d", t=len(pixels)))


BASE = LlavaNextVideo
