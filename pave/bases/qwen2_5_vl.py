"""Qwen2.5-VL: like Qwen2-VL, with window attention in its vision tower and temporal positions in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from pave.bases.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    @property
    def vision_dim(self) -> int:
        return self.vision.hidden_size

    def before(self, seen: Any) -> Tensor:
        means = super().before(seen)  # in window order, which the tower does not undo for last_hidden_state
        sizes = {"window_size": self.vision.window_size, "patch_size": self.vision.patch_size}
        order, _ = get_vision_window_index(self.patch_grid(len(means)), self.merge, **sizes)
        return means.flatten(0, 1)[order.argsort()].view_as(means)

    def clock(self, seconds: Sequence[float]) -> dict[str, Any]:
        """Seconds per step; 1 for a single step, the model's default."""
        return {"second_per_grid_ts": [(seconds[-1] - seconds[0]) / max(1, len(seconds) - 1) or 1.0]}


BASE = Qwen25VL
