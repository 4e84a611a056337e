"""What encoders of sound share: the sound of a clip at one rate, and its tokens, window by window, on the clip's clock.

In: a clip, and what makes tokens of a window. Out: side tokens of what is there and of nothing behind it. Knows nothing
of networks.

n samples, τ tokens, h w grid, c channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pave.media.clip import Clip
from pave.media.resampling import resample
from pave.sidechannel import SideTokens


def mono(clip: Clip, rate: int) -> Tensor | None:
    """The mean of a clip's channels (n,) at this rate, in [-1, 1]; None for a clip without sound."""
    if clip.audio is None or clip.rate is None or not clip.audio.shape[-1]:
        return None
    sound = resample(clip.audio.to(torch.float32).mean(0, keepdim=True), clip.rate, rate)[0]
    return sound.where(sound.isinf(), sound.clamp(-1, 1))  # a sinc overshoots; what is not finite stays, to be refused


def hear(
    clip: Clip, listen: Callable[[Tensor], Tensor], *, rate: int, window: int, hop: int, centre: float, pool: int = 1
) -> SideTokens | None:
    """Tokens of a clip's sound at `rate`. `listen` hears one window at a time and knows of no other.

    listen: up to `window` samples (n,) to tokens (τ h w c), one for each `hop` of them, at least of those that are
        there; more are cut off. A token has heard its whole window.
    centre: of token k is sample (k + centre) · hop. pool: tokens that are averaged to one; it divides a window."""
    sound = mono(clip, rate)
    if sound is None:
        return None
    x = torch.cat([_means(listen(part)[: -(-len(part) // hop)], pool) for part in sound.split(window)])
    steps = torch.arange(-(-len(sound) // hop), dtype=torch.float64)
    places = _means(((steps + centre) * hop).clamp(max=len(sound)), pool)
    first = steps[::pool] * hop // window * window
    spans = torch.stack([first, (first + window).clamp(max=len(sound))], dim=-1)
    valid = torch.ones(x.shape[:3], dtype=torch.bool)
    return SideTokens(x, clip.audio_start + places / rate, clip.audio_start + spans / rate, valid)


def _means(x: Tensor, size: int) -> Tensor:
    """Of so many neighbours each, the last of those that are left."""
    return torch.stack([part.mean(0) for part in x.split(size)])
