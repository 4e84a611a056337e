"""SmolVLM 2: key frames are images with timestamps; pixel shuffle merges patches. Frames are scaled bicubically; its
own processor uses Lanczos if torchvision supports it.

t key frames, s visual tokens per key frame, q d channels before and after the connector
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from einops import rearrange
from torch import Tensor

from pave.base import Host, Seen

MARK = "<fake_token_around_image>"
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += [f"{stem}teen" for stem in ["thir", "four", "fif", "six", "seven", "eigh", "nine"]]
TENS = [f"{stem}ty" for stem in ["twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"]]


class SmolVLM(Host):
    TEMPLATE = "<|im_start|>User: {video}\n\n{question}<end_of_utterance>\nAssistant:"
    AGAIN = "\nUser: "
    modality = "image"

    @property
    def vision_dim(self) -> int:
        return self.model.config.vision_config.hidden_size * self.model.config.scale_factor**2

    @property
    def grid(self) -> tuple[int, int]:
        return (self.size[0] // self.model.config.vision_config.patch_size // self.model.config.scale_factor,) * 2

    @property
    def size(self) -> tuple[int, int]:
        return (self.model.config.vision_config.image_size,) * 2

    def around(self, times: Sequence[float]) -> list[tuple[str, str]]:
        last = timedelta(seconds=int(max(times)))
        # The text of its own processor.
        head = (
            f"You are provided the following series of {in_words(len(times))} frames from a {last} [H:MM:SS] video.\n"
        )
        clocks = [f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}" for seconds in times]
        return [(f"{'' if i else head}\nFrame from {clock}:{MARK}<global-img>", MARK) for i, clock in enumerate(clocks)]

    def look(self, pixels: Tensor) -> Seen:
        inner = self.model.model
        seen = inner.get_image_features(pixels[None], return_dict=True)
        tokens = rearrange(torch.cat(list(seen.pooler_output)), "(t s) d -> t s d", t=len(pixels))
        return Seen(inner.connector.pixel_shuffle(seen.last_hidden_state, self.model.config.scale_factor), tokens)


def in_words(count: int) -> str:
    """A number, spelled out below a hundred."""
    if count < 20:
        return ONES[count]
    if count > 99:
        return str(count)
    tens, ones = TENS[count // 10 - 2], count % 10
    return f"{tens}-{ONES[ones]}" if ones else tens


BASE = SmolVLM
