"""GLM-4.1V: patches and positions as in Qwen2-VL, each step between image markers, followed by its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor

from pave.bases.qwen2_vl import Qwen2VL


class Glm4v(Qwen2VL):
    TEMPLATE = "[gMASK]<sop><|user|>\n<|begin_of_video|>{video}<|end_of_video|>{question}<|assistant|>\n"
    CLOSING, AGAIN = "<|user|>", "\n"  # an answer ends where the user's turn begins
    beams = False  # generate() would expand inputs by counting video markers, which these prompts lack
    read_apart = ("model.visual.embeddings.position_embedding.weight",)

    @property
    def vision_dim(self) -> int:
        return self.vision.out_hidden_size

    @property
    def placeholder(self) -> int:
        return self.model.config.image_token_id  # for videos too

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        # Its processor writes the time of a step's first frame, half a frame interval before the middle.
        early = (times[1] - times[0]) / 4 if len(times) > 1 else 0.0
        return [("<|begin_of_image|>", f"<|end_of_image|>{self.clocked(seconds - early)}") for seconds in times]

    def clocked(self, seconds: float) -> str:
        return str(int(seconds))

    def before(self, seen: Any) -> Tensor:
        return rearrange(seen.last_hidden_state, "(t s) q -> t s q", s=self.tokens_per_frame)


BASE = Glm4v
