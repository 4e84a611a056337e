"""VideoLLaMA 3: patches as in Qwen2-VL, frame by frame, with 1D positions. It prunes similar frames, PAVE does not:
which rows a patch may change must not depend on the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pave.base import Host
from pave.bases.qwen2_vl import Qwen2VL
from pave.prompt import CHATML


class VideoLlama3(Qwen2VL):
    MEAN, STD = Host.MEAN, Host.STD
    TEMPLATE = CHATML
    on_a_grid, positions = False, Host.positions

    @property
    def pair(self) -> int:
        return 1

    @property
    def merge(self) -> int:
        return 2  # its processor's value for videos

    @property
    def vision_dim(self) -> int:
        return self.vision.hidden_size

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        return [(f"{',' if i else ''}Time {seconds:.1f}s:", "") for i, seconds in enumerate(times)]

    def seen(self, pixels: Tensor) -> Any:
        grid, merges = (each.to(pixels.device) for each in (self.patch_grid(len(pixels)), torch.tensor([self.merge])))
        return self.model.model.get_video_features(self.patches(pixels), grid, merges, return_dict=True)

    def before(self, seen: Any) -> Tensor:
        return rearrange(seen.last_hidden_state, "(t s) q -> t s q", s=self.tokens_per_frame)


BASE = VideoLlama3
