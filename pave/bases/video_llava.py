"""Video-LLaVA, the paper's second base: CLIP's class token is one of the visual tokens."""

from __future__ import annotations

from torch import Tensor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pave.base import Seen
from pave.bases.llava_onevision import Llava


class VideoLlava(Llava):
    MEAN, STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
    TEMPLATE, FRAMES = "<s>USER: {video}\n{question} ASSISTANT:", 8
    AGAIN = "USER: "

    @property
    def grid(self) -> tuple[int, int]:
        return self.edge, self.edge

    @property
    def tokens_per_frame(self) -> int:
        return self.edge**2 + 1

    def look(self, pixels: Tensor) -> Seen:
        seen = self.model.model.get_video_features(pixels[None], return_dict=True)
        return Seen(self.features(seen), seen.pooler_output)


BASE = VideoLlava
