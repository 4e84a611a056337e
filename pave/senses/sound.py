"""Shared by sound encoders: the sound of a clip at one rate, and its tokens, window by window, on the clip's clock.

In: a clip, and a function from a window to its tokens. Out: side tokens of the sound, without those of any padding.
Knows nothing of networks.

n samples, τ tokens, h w grid, c channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pave.media.arrays import Channel, one_channel
from pave.media.clip import Clip
from pave.media.resampling import resample
from pave.sidechannel import SideTokens


def mono(clip: Clip, rate: int, channel: Channel = "mean") -> Tensor | None:
    """The mean of a clip's channels (n,) at this rate, or the first channel, in [-1, 1]; None for a clip without
    sound."""
    if clip.audio is None or clip.rate is None or not clip.audio.shape[-1]:
        return None
    sound = resample(one_channel(clip.audio, channel), clip.rate, rate)[0]
    return sound.where(sound.isinf(), sound.clamp(-1, 1))  # a sinc overshoots; infinities stay, to be refused later


def encode_windows(
    clip: Clip, encode: Callable[[Tensor], Tensor], *, rate: int, window: int, hop: int, centre: float, pool: int = 1
) -> SideTokens | None:
    """Tokens of a clip's sound at `rate`; windows are encoded independently of each other.

    encode: from up to `window` samples (n,) to tokens (τ h w c), one per `hop` samples; tokens beyond the samples are
        cut off. A token depends on its whole window.
    centre: token k is centred at sample (k + centre) · hop. pool: tokens averaged to one; it divides a window."""
    sound = mono(clip, rate)
    if sound is None:
        return None
    x = torch.cat([_means(encode(part)[: -(-len(part) // hop)], pool) for part in sound.split(window)])
    steps = torch.arange(-(-len(sound) // hop), dtype=torch.float64)
    places = _means(((steps + centre) * hop).clamp(max=len(sound)), pool)
    first = steps[::pool] * hop // window * window
    spans = torch.stack([first, (first + window).clamp(max=len(sound))], dim=-1)
    valid = torch.ones(x.shape[:3], dtype=torch.bool)
    return SideTokens(x, clip.audio_start + places / rate, clip.audio_start + spans / rate, valid)


def _means(x: Tensor, size: int) -> Tensor:
    """Means of `size` neighbours each; the last may be of fewer."""
    return torch.stack([part.mean(0) for part in x.split(size)])
