"""Seconds of a side channel, deleted one after the other, to see whether an answer depends on them.

In: side tokens of a clip, and the encoder that made them. Out: windows of seconds, and the tokens without what happens
in one. Sound is silenced before it is encoded, since an encoder may mix seconds; tokens of other senses become the mean
of all others of the clip, which is nearer to what a patch has learned from than zeros. Knows nothing of models.

τ time steps, w windows, n samples, c channels
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pave.encoder import Encoder
from pave.media.clip import Clip
from pave.sidechannel import SideTokens

SECOND, MOST, FEWEST = 1.0, 32, 4  # seconds of a window; windows that a clip is divided into, at most and at least
FADE = 0.01  # seconds before and after the silence: an edge in the sound would be a click


def windows(side: SideTokens) -> Tensor:
    """Seconds of windows (w 2), float64, that overlap by half, so that what is shorter than half a window is whole in
    one of them. A window is a second; less in a clip of less than four, more in one of more than 32."""
    first, last = float(side.spans[:, 0].min()), float(side.spans[:, 1].max())
    length = max((last - first) / MOST, min(SECOND, (last - first) / FEWEST))
    count = 1 + round((last - first - length) / length * 2)
    starts = first + torch.arange(count, dtype=torch.float64) * length / 2
    ends = starts + length
    ends[-1] = last
    return torch.stack([starts, ends], -1)


def silenced(encoder: Encoder, clip: Clip, side: SideTokens, start: float, end: float) -> SideTokens | None:
    """The tokens of a clip without what happens in these seconds."""
    if encoder.hears and clip.audio is not None and clip.rate:
        return encoder.encode(replace(clip, audio=clip.audio * _gain(clip, start, end)))
    inside = (side.times >= start) & (side.times < end)
    others = side.only(~inside)
    real = others.valid[..., None]
    mean = (others.x * real).sum(0) / real.sum(0).clamp(min=1)  # (h w c)
    return replace(side, x=torch.where(inside[:, None, None, None].to(side.x.device), mean, side.x))


def _gain(clip: Clip, start: float, end: float) -> Tensor:
    """0 in these seconds, 1 elsewhere (n,)."""
    assert clip.audio is not None and clip.rate
    times = clip.audio_start + torch.arange(clip.audio.shape[-1], dtype=torch.float64) / clip.rate
    outside = torch.maximum(start - times, times - end)  # seconds
    return (outside / FADE).clamp(0, 1).mul(math.pi / 2).sin().square().to(clip.audio.dtype)
