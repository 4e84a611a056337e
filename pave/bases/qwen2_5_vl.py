"""Qwen2.5-VL: as Qwen2-VL, with windows in its vision tower and positions that count seconds."""

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
        means = super().before(seen)  # the tower leaves its features in the order of its windows
        words = {"window_size": self.vision.window_size, "patch_size": self.vision.patch_size}
        order, _ = get_vision_window_index(self.patch_grid(len(means)), self.merge, **words)
        return means.flatten(0, 1)[order.argsort()].view_as(means)

    def clock(self, seconds: Sequence[float]) -> dict[str, Any]:
        """Seconds from one step to the next; 1 for a single step, as the model assumes."""
        return {"second_per_grid_ts": [(seconds[-1] - seconds[0]) / max(1, len(seconds) - 1) or 1.0]}


BASE = Qwen25VL
