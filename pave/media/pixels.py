"""Frames as input of a vision tower: resized and normalised, bit-equal to Hugging Face's processor.

In: uint8 frames. Out: float32 frames. Knows nothing of files.

t pictures, y x pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pave.errors import MediaError


def preprocess(frames: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Frames uint8 (t 3 y x) -> float32 (t 3 *size), bit-equal to transformers' LlavaOnevisionVideoProcessor.

    The resize is bicubic with antialias on uint8: on float32 it differs by up to 23/255. Mean and standard deviation
    are scaled to 0..255 in float32, not the pixels to 0..1: equal in exact arithmetic, but not in the last bit.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4:
        raise MediaError(f"frames are {frames.dtype} {tuple(frames.shape)}; preprocess needs uint8 (t 3 y x)")
    frames = scaled(frames, size)
    shift, scale = (rearrange(torch.tensor(v, dtype=torch.float32) * 255.0, "c -> c 1 1") for v in (mean, std))
    return frames.float().sub_(shift.to(frames.device)).div_(scale.to(frames.device))


def scaled(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames uint8 (t 3 y x) resized as in `preprocess`."""
    if tuple(frames.shape[2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
