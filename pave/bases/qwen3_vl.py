"""Qwen3-VL: like Qwen2-VL, with a timestamp before each step, and DeepStack: features of intermediate vision layers are
added in the first layers of the language model. A patch does not change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from pave.base import Host, Seen
from pave.bases.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    MEAN, STD = Host.MEAN, Host.STD
    TEMPLATE = "<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def vision_dim(self) -> int:
        return self.vision.hidden_size

    @property
    def levels(self) -> int:
        return len(self.vision.deepstack_visual_indexes)

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        return [(f"<{seconds:.1f} seconds><|vision_start|>", "<|vision_end|>") for seconds in times]

    def look(self, pixels: Tensor) -> Seen:
        seen = self.seen(pixels)
        levels = torch.stack([torch.cat(list(level)) for level in seen.deepstack_features])
        deep = rearrange(levels, "k (t s) d -> t s k d", s=self.tokens_per_frame)
        return Seen(self.before(seen), self.after(seen), deep)

    def outputs(self, rows: Tensor, deep: Tensor | None) -> dict[str, object]:
        assert deep is not None
        visual: Any = list(rows)
        levels: Any = [list(level) for level in rearrange(deep, "b v k d -> k b v d")]
        return {"video": BaseModelOutputWithDeepstackFeatures(pooler_output=visual, deepstack_features=levels)}


BASE = Qwen3VL
