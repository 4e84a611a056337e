"""Gemma 4: patches with their places, pooled inside the vision tower; each key frame behind its time. Where the model
lets visual tokens see one another, it is told which tokens these are.

t key frames, p q pixels of a patch, s visual tokens per key frame, b rows, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pave.base import Host, Seen
from pave.errors import BaseModelError


class Gemma4(Host):
    TEMPLATE = "<bos><|turn>user\n{video}{question}<turn|>\n<|turn>model\n"
    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    listed = True
    read_apart = ("model.language_model.embed_tokens.weight",)
    side = 384  # pixels; 64 tokens, of the 70 at most that its processor gives a frame of a video

    @property
    def vision_dim(self) -> int:
        return self.model.config.vision_config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return (self.side // (vision.patch_size * vision.pooling_kernel_size),) * 2

    @property
    def size(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return (self.grid[0] * vision.patch_size * vision.pooling_kernel_size,) * 2

    def own_template(self) -> str:
        """The larger ones begin every answer with a thought, be it an empty one: their chat templates tell."""
        if not self.tokenizer.chat_template:
            return self.TEMPLATE
        asked = [{"role": "user", "content": "?"}]
        try:
            begun = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja's, or whatever a template of somebody's calls
            cause = f"{self.repo or self.model_type}: its chat template cannot be used ({error})"
            raise BaseModelError(f"{cause}; mend chat_template.jinja, or delete it") from None
        return self.TEMPLATE + str(begun).partition("<|turn>model\n")[2]

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        clocks = [f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}" for seconds in times]
        return [(f"{' ' if i else ''}{clock} <|image>", "<image|>") for i, clock in enumerate(clocks)]

    def look(self, pixels: Tensor) -> Seen:
        patches, places = self.patches(pixels)
        inner = self.model.model  # its get_video_features() asks for other shapes in other versions
        before = inner.vision_tower(pixel_values=patches, pixel_position_ids=places).last_hidden_state
        after = inner.embed_vision(inputs_embeds=before)
        return Seen(*(rearrange(each, "(t s) d -> t s d", t=len(pixels)) for each in (before, after)))

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (t (y x) (p q c)), and the column and row of each."""
        patch = self.model.config.vision_config.patch_size
        patches = rearrange(pixels, "t c (y p) (x q) -> t (y x) (p q c)", p=patch, q=patch)
        rows, columns = (torch.arange(edge // patch, device=pixels.device) for edge in self.size)
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
        return patches, places.expand(len(pixels), -1, -1)

    def attention(self, mask: Tensor, ids: Tensor, positions: Tensor) -> Any:
        """Questions that share a clip bring a mask of their own: its local layers look back as far as the model's do,
        and let the visual tokens of a key frame see one another where the model does."""
        if mask.dim() == 2:
            return mask
        text = self.model.config.get_text_config()
        near = positions[:, None, None, :] > positions[:, None, :, None] - text.sliding_window
        if text.use_bidirectional_attention == "vision":
            visual = ids == self.placeholder
            first = visual & ~visual.roll(1, 1)
            frame = torch.where(visual, first.cumsum(1), 0)
            mask_near = mask | ((frame[:, None, :, None] == frame[:, None, None, :]) & visual[:, None, None, :])
        else:
            mask_near = mask
        return {"full_attention": mask, "sliding_attention": mask_near & near}

    def beyond(self, ids: Tensor) -> dict[str, Any]:
        return {"mm_token_type_ids": 2 * (ids == self.placeholder).long()}


BASE = Gemma4
