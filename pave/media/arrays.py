"""What users hand over as arrays, as tensors in one form: pictures, their seconds, sound.

In: numpy arrays, PIL images, tensors, lists. Out: checked tensors, or a MediaError that says what was given.

t pictures, c channels, n samples, y x pixels
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pave.errors import MediaError, SignalError

LOUDEST = 16.0  # times full scale, far above any overshoot: such sound is in another unit


def size_of(pictures: Tensor | None) -> tuple[int, int] | None:
    """Height and width of pictures."""
    return None if pictures is None else (pictures.shape[2], pictures.shape[3])


def tensor_of(values: Any) -> Tensor:
    """A tensor of what numpy understands; arrays are copied, since they may be read-only or change later."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def pictures_of(frames: Any) -> Tensor:
    """Frames in any of the accepted forms as uint8 (t 3 y x)."""
    if isinstance(frames, str | os.PathLike):
        raise MediaError(f"{os.fspath(frames)!r} is a path, not pictures; read it with Clip.read")
    if isinstance(frames, Sequence):
        if not frames:
            raise MediaError("frames is an empty list; give at least one picture")
        parts = [pictures_of(picture) for picture in frames]
        if len({part.shape[1:] for part in parts}) > 1:
            raise MediaError(
                f"frames have {len({part.shape[1:] for part in parts})} different sizes; scale them to one"
            )
        return torch.cat(parts)
    if hasattr(frames, "convert"):  # a PIL image; PIL need not be imported to know one
        frames = frames.convert("RGB")
    pictures = tensor_of(frames)
    if pictures.dtype != torch.uint8:
        raise MediaError(f"frames are {pictures.dtype}; give uint8 in 0..255, e.g. (x * 255).round().to(torch.uint8)")
    pictures = pictures[None] if pictures.ndim == 3 else pictures
    if pictures.ndim == 4 and pictures.shape[1] != 3 and pictures.shape[3] == 3:
        pictures = rearrange(pictures, "t y x c -> t c y x")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise MediaError(f"frames have shape {tuple(tensor_of(frames).shape)}; give (t 3 y x) or (t y x 3)")
    return pictures.contiguous()


def times_of(times: Any, count: int) -> Tensor:
    """Seconds of the frames as float64 (t,), checked."""
    clock = tensor_of(times).double()
    if clock.shape != (count,):
        raise MediaError(f"times have shape {tuple(clock.shape)} but there are {count} frames; give one per frame")
    if not clock.isfinite().all() or (clock.diff() < 0).any():
        raise MediaError("times are not finite or run backwards; give seconds in rising order")
    return clock


def sound_of(audio: Any, rate: int | None) -> Tensor:
    """Sound in any of the accepted forms as float32 (c n)."""
    if not isinstance(rate, Integral) or rate < 1:
        raise MediaError(f"audio needs its rate, a whole number of Hz, got rate={rate}")
    sound = tensor_of(audio)
    sound = sound[None] if sound.ndim == 1 else sound
    if sound.ndim != 2 or not 1 <= sound.shape[0] <= 64:
        raise MediaError(f"audio has shape {tuple(sound.shape)}; give (n,) or (channels, n)")
    if sound.dtype == torch.int16:
        sound = sound.float() / 32768
    if not sound.is_floating_point():
        raise MediaError(f"audio is {sound.dtype}; give float in [-1, 1] or int16")
    if not sound.isfinite().all():
        raise SignalError("audio holds samples that are not finite; replace them first")
    if sound.numel() and (peak := sound.abs().max().item()) > LOUDEST:
        raise MediaError(f"audio has a sample of {peak:.4g}; give float in [-1, 1], of 16-bit numbers divided by 32768")
    return sound.float().clamp(-1, 1)
