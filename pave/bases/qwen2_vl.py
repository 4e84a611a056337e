"""Qwen2-VL: any resolution, frames in pairs, 2 × 2 patches merged, positions in time, height and width.

All key frames are scaled to squares of `side` pixels, so that clips of any shape have equal grids. A pair of frames is
one step of the vision tower, and one key frame to a patch, at the mean of their times.

t steps, a frames of a step, p q pixels of a patch, m n patches of a token, s tokens of a step, b rows, l tokens of a
row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pave.base import Host, Seen


class Qwen2VL(Host):
    MEAN, STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
    TEMPLATE = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>{video}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    on_a_grid = listed = True
    side = 448  # pixels; 256 tokens, of 128 to 768 per pair of frames in Qwen's processor

    @property
    def vision(self) -> Any:
        """The config of the vision tower."""
        return self.model.config.vision_config

    @property
    def merge(self) -> int:
        """Patches per token along an edge."""
        return self.vision.spatial_merge_size

    @property
    def pair(self) -> int:
        return self.vision.temporal_patch_size

    @property
    def vision_dim(self) -> int:
        return self.vision.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        return (self.side // (self.vision.patch_size * self.merge),) * 2

    @property
    def size(self) -> tuple[int, int]:
        return (self.grid[0] * self.vision.patch_size * self.merge,) * 2

    def look(self, pixels: Tensor) -> Seen:
        seen = self.seen(pixels)
        return Seen(self.before(seen), self.after(seen))

    def seen(self, pixels: Tensor) -> Any:
        """Output of the vision tower for frames, as the model returns it."""
        grid = self.patch_grid(len(pixels) // self.pair).to(pixels.device)
        return self.model.model.get_video_features(self.patches(pixels), grid, return_dict=True)

    def patches(self, pixels: Tensor) -> Tensor:
        """Frames as rows of patches; the patches of one token are adjacent."""
        sizes = {"a": self.pair, "m": self.merge, "n": self.merge, "p": self.vision.patch_size}
        return rearrange(pixels, "(t a) c (y m p) (x n q) -> (t y x m n) (c a p q)", q=sizes["p"], **sizes)

    def patch_grid(self, steps: int) -> Tensor:
        """Patches of a clip along time, height and width (1 3)."""
        return torch.tensor([[steps, self.grid[0] * self.merge, self.grid[1] * self.merge]])

    def before(self, seen: Any) -> Tensor:
        """Features before the merger (t s q): the mean over the patches of each token."""
        return reduce(seen.last_hidden_state, "(t s m) q -> t s q", "mean", s=self.tokens_per_frame, m=self.merge**2)

    def after(self, seen: Any) -> Tensor:
        """Visual tokens (t s d)."""
        return rearrange(torch.cat(list(seen.pooler_output)), "(t s) d -> t s d", s=self.tokens_per_frame)

    def positions(self, ids: Tensor, positions: Tensor, times: Sequence[Sequence[float]]) -> Tensor:
        """Positions in time, height and width (3 b l), from the model's own get_rope_index."""
        found = []
        for row, places, seconds in zip(ids, positions, times, strict=True):
            # The id at each position. Left padding shares position 0 with the first token, which comes later and wins;
            # questions that share a clip share positions, but these are all text, whose ids do not matter here.
            at = dict(zip(places.tolist(), row.tolist(), strict=True))
            text = torch.tensor([[at[place] for place in range(len(at))]])
            kinds = 2 * (text == self.placeholder).int()  # 0 text, 2 video
            grid = self.patch_grid(len(seconds))
            index, _ = self.model.model.get_rope_index(
                text, mm_token_type_ids=kinds, video_grid_thw=grid, **self.clock(seconds)
            )
            found.append(index[:, 0, places])
        return torch.stack(found, 1)

    def clock(self, seconds: Sequence[float]) -> dict[str, Any]:
        """Arguments of get_rope_index about time."""
        return {}


BASE = Qwen2VL
