"""Gemma 4: patches with explicit positions, pooled inside the vision tower; each key frame follows its timestamp. If
visual tokens attend bidirectionally, the mask marks them.

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
from pave.packing.mask import windowed


class Gemma4(Host):
    TEMPLATE = "<bos><|turn>user\n{video}{question}<turn|>\n<|turn>model\n"
    AGAIN = "\n<|turn>user\n"
    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    listed = True
    read_apart = ("model.language_model.embed_tokens.weight",)
    side = 384  # pixels; 64 tokens, of at most 70 per video frame in its processor

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
        """Larger checkpoints begin every answer with a thought, possibly empty; their chat template contains it."""
        if not self.tokenizer.chat_template:
            return self.TEMPLATE
        messages = [{"role": "user", "content": "?"}]
        try:
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's own, or any that a template raises
            cause = f"{self.repo or self.model_type}: its chat template cannot be rendered ({error})"
            raise BaseModelError(f"{cause}; fix chat_template.jinja, or delete it") from None
        return self.TEMPLATE + str(prompt).partition("<|turn>model\n")[2]

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        clocks = [f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}" for seconds in times]
        return [(f"{' ' if i else ''}{clock} <|image>", "<image|>") for i, clock in enumerate(clocks)]

    def look(self, pixels: Tensor) -> Seen:
        patches, places = self.patches(pixels)
        inner = self.model.model  # get_video_features() expects other shapes in other versions
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
        """Questions that share a clip have a 4D mask of their own: local layers apply the model's sliding window, and
        visual tokens of a key frame attend to each other if the model does so."""
        if mask.dim() == 2:
            return mask
        text, seen = self.model.config.get_text_config(), mask
        if text.use_bidirectional_attention == "vision":
            visual = ids == self.placeholder
            first = visual & ~visual.roll(1, 1)
            frame = torch.where(visual, first.cumsum(1), 0)
            seen = mask | ((frame[:, None, :, None] == frame[:, None, None, :]) & visual[:, None, None, :])
        return {"full_attention": mask, "sliding_attention": windowed(seen, positions, text.sliding_window)}

    def beyond(self, ids: Tensor) -> dict[str, Any]:
        return {"mm_token_type_ids": 2 * (ids == self.placeholder).long()}


BASE = Gemma4
