"""Users' arrays as tensors in one form: frames, their times, sound.

In: numpy arrays, PIL images, tensors, lists. Out: checked tensors, or a MediaError or SignalError that says what was
passed.

t pictures, c channels, n samples, y x pixels
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pave.errors import MediaError, SignalError
from pave.text.shown import counted

Channel = Literal["mean", "first"]  # what is heard of a sound with several channels
CHANNELS = 8  # most channels that are recognised on either axis of an array
KINDS: dict[str, tuple[Callable[[Tensor], bool], str]] = {  # of tensors that are not read, and how to make them plain
    "nested": (lambda x: x.is_nested, "pass one tensor, of rows of equal length"),
    "on the device meta, which holds no values": (lambda x: x.is_meta, "pass a tensor with values"),
    "quantised": (lambda x: x.is_quantized, "pass tensor.dequantize()"),
    "sparse": (lambda x: x.layout != torch.strided, "pass tensor.to_dense()"),
}
LOUDEST = 16.0  # times full scale, far above any overshoot: louder sound is in another unit


def size_of(pictures: Tensor | None) -> tuple[int, int] | None:
    """Height and width of frames (t c y x)."""
    return None if pictures is None else (pictures.shape[2], pictures.shape[3])


def one_channel(sound: Tensor, channel: Channel) -> Tensor:
    """The mean of the channels (c n), or the first one, as (1 n)."""
    sound = sound.to(torch.float32)
    return sound[:1] if channel == "first" else sound.mean(0, keepdim=True)


def tensor_of(values: Any) -> Tensor:
    """Values as a tensor; arrays are copied, since they may be read-only or change later. SignalError for values that
    are not numbers in memory, or of which some are masked."""
    _refuse(values)
    if isinstance(values, Tensor):
        return values
    try:
        array = np.array(values)
        if array.dtype.names:
            cause = f"the array has {counted(len(array.dtype.names), 'named field')} ({', '.join(array.dtype.names)})"
            raise SignalError(f"{cause}; pass one field, or numpy.lib.recfunctions.structured_to_unstructured(array)")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError):  # texts, None, rows of several lengths, tensors with a gradient
        raise SignalError(f"{repr(values)[:80]} is no array of numbers; pass rows of equal length") from None


def _refuse(values: Any) -> None:
    """SignalError for a mask, which would be lost, and for a tensor whose values are not in plain memory."""
    if isinstance(values, list | tuple):
        for each in values:
            _refuse(each)
    elif isinstance(values, np.ma.MaskedArray) and not values.dtype.names and np.ma.is_masked(values):
        cause = f"{np.ma.count_masked(values):,} of {values.size:,} values are masked"
        raise SignalError(f"{cause}; fill them (array.filled(0)), or drop those steps")
    elif isinstance(values, Tensor):
        for kind, (found, remedy) in KINDS.items():
            if found(values):
                raise SignalError(f"the tensor is {kind}; {remedy}")


def pictures_of(frames: Any) -> Tensor:
    """Frames in any accepted form as uint8 (t 3 y x)."""
    if isinstance(frames, str | os.PathLike):
        raise MediaError(f"{os.fspath(frames)!r} is a path, not frames; read it with Clip.read")
    if isinstance(frames, Sequence):
        if not frames:
            raise MediaError("frames is an empty list; pass at least one frame")
        parts = [pictures_of(picture) for picture in frames]
        if len({part.shape[1:] for part in parts}) > 1:
            raise MediaError(
                f"frames have {len({part.shape[1:] for part in parts})} different sizes; resize them to one"
            )
        return torch.cat(parts)
    if hasattr(frames, "convert"):  # a PIL image, recognised without importing PIL
        frames = frames.convert("RGB")
    pictures = tensor_of(frames)
    if pictures.dtype != torch.uint8:
        raise MediaError(f"frames are {pictures.dtype}; pass uint8 in 0..255, e.g. (x * 255).round().to(torch.uint8)")
    pictures = pictures[None] if pictures.ndim == 3 else pictures
    if pictures.ndim == 4 and pictures.shape[1] != 3 and pictures.shape[3] == 3:
        pictures = rearrange(pictures, "t y x c -> t c y x")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise MediaError(f"frames have shape {tuple(tensor_of(frames).shape)}; pass (t 3 y x) or (t y x 3)")
    return pictures.contiguous()


def times_of(times: Any, count: int) -> Tensor:
    """Seconds of the frames as float64 (t,), checked."""
    clock = tensor_of(times).double()
    if clock.shape != (count,):
        raise MediaError(f"times have shape {tuple(clock.shape)} but there are {count} frames; pass one per frame")
    if not clock.isfinite().all() or (clock.diff() < 0).any():
        raise MediaError("times are not finite or run backwards; pass seconds in ascending order")
    return clock


def sound_of(audio: Any, rate: int | None, channels: int | None = None) -> Tensor:
    """Sound in any accepted form as float32 (c n).

    channels: as many as the sound before it had, which decides about a piece too short to tell (c n) from (n c)."""
    if not isinstance(rate, Integral) or rate < 1:
        raise MediaError(f"audio needs its sampling rate, an integer in Hz, got rate={rate}")
    sound = tensor_of(audio)
    sound = channels_first(sound, channels)
    if sound.dtype == torch.int16:
        sound = sound.float() / 32768
    if not sound.is_floating_point():
        raise MediaError(f"audio is {sound.dtype}; pass float in [-1, 1] or int16")
    if not sound.isfinite().all():
        raise SignalError("audio contains samples that are not finite; replace them first")
    if sound.numel() and (peak := sound.abs().max().item()) > LOUDEST:
        raise MediaError(f"audio has a sample of {peak:.4g}; pass float in [-1, 1] (divide 16-bit integers by 32768)")
    return sound.float().clamp(-1, 1)


def channels_first(sound: Tensor, channels: int | None = None) -> Tensor:
    """Sound (n,), (c n) or (n c) as (c n). The axis of up to `CHANNELS` has the channels; refused where both could."""
    if sound.ndim == 1:
        return sound[None]
    if sound.ndim == 2:
        c, n = sound.shape
        if channels in (c, n):
            return sound if c == channels else sound.mT
        first, last = 1 <= c <= CHANNELS, 1 <= n <= CHANNELS
        if c == 1 or first > last or CHANNELS < c <= 64 < n:
            return sound
        if n == 1 or first < last:
            return sound.mT
        if first and last:
            cause = f"audio has shape ({c}, {n}), of which either side may be its channels"
            raise MediaError(f"{cause}; pass more than {CHANNELS} samples, or their mean (n,)")
    raise MediaError(f"audio has shape {tuple(sound.shape)}; pass (n,), (channels, n) or (n, channels)")


def thumbnail(frame: Tensor, height: int) -> str:
    """A frame (3 y x) as an HTML image of this height in pixels."""
    from PIL import Image

    image, data = Image.fromarray(rearrange(frame, "c y x -> y x c").numpy()), BytesIO()
    image.resize((max(1, round(height * image.width / image.height)), height)).save(data, "png")
    return f'<img src="data:image/png;base64,{b64encode(data.getvalue()).decode()}">'
