"""Dense pictures of a clip: at an encoder's rate, in groups, in bounded memory.

In: a clip, or a stream passed beside it. Out: instants, and the pictures on screen there.
Knows nothing of encoders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from math import floor
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import AfterValidator, Field
from torch import Tensor

from pave.encoder import Number
from pave.errors import EncoderError, MediaError
from pave.fusion.clock import INSTANT
from pave.media.clip import Clip

FASTEST = 1000.0  # frames per second
# An option; a float, so that 2 and 2.0 share a cache.
Rate = Annotated[
    Number,
    Field(gt=0, le=FASTEST, description=f"needs a rate above 0 and up to {FASTEST:g} frames per second"),
    AfterValidator(float),
]
LONGEST = 32  # times the shorter side: narrower pictures are damaged, and would fill the memory once scaled


def opened(stream: Any, name: str) -> Clip:
    """A stream of pictures as a clip, from a clip, the path of a file, or frames and their times."""
    if isinstance(stream, str | os.PathLike):
        return Clip.read(stream, frames=1, audio=False)
    if isinstance(stream, tuple) and len(stream) == 2:
        return Clip.from_frames(*stream)
    if not isinstance(stream, Clip):
        cause = f"{name}= is a {type(stream).__name__}"
        raise EncoderError(f"{cause}; pass (frames, times), a Clip, the path of a video file, or None")
    return stream


def fast(clip: Clip) -> Clip | None:
    """The signal `fast` if there is one, else the clip itself; None without pictures."""
    stream = clip.signals.get("fast", clip)
    dense = None if stream is None else opened(stream, "fast")
    return None if dense is None or dense.frames is None or not len(dense.frames) else dense


def grid_of(grid: Any, whole: tuple[int, int], name: str) -> tuple[int, int]:
    """Rows and columns of tokens, checked: the encoder `name` averages its `whole` grid to them."""
    pair = grid if isinstance(grid, list | tuple) and len(grid) == 2 else (0, 0)
    if any(type(want) is not int or not 1 <= want <= have for have, want in zip(whole, pair, strict=True)):
        cause = f"{name} cannot average its {whole[0]} x {whole[1]} tokens of a picture to grid={grid!r}"
        raise EncoderError(f"{cause}; use two integers up to these, for example [1, 1]")
    h, w = pair
    return h, w


def pooled(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (τ y x c) averaged to a grid (τ h w c); parts share rows or columns where the grid does not divide."""
    (height, width), (h, w) = x.shape[1:3], grid
    if height % h == 0 and width % w == 0:
        return reduce(x, "τ (h y) (w x) c -> τ h w c", "mean", h=h, w=w)
    return rearrange(F.adaptive_avg_pool2d(rearrange(x, "τ y x c -> τ c y x"), grid), "τ c h w -> τ h w c")


def instants(clip: Clip, rate: float, size: int = 1) -> Tensor:
    """Seconds from the first picture to the last, `rate` per second; the last instant is repeated to fill groups of
    `size`."""
    count = floor(rate * (clip.report.last - clip.report.first + INSTANT)) + 1
    each = torch.arange(count + -count % size).clamp(max=count - 1)
    return clip.report.first + each.double() / rate


def spread(clip: Clip, rate: float, size: int) -> Tensor:
    """Seconds from the first picture to the last, at equal intervals: `rate` per second of the clip, rounded down to
    whole groups of `size`, but at least one group. The PAVE paper samples frames for LanguageBind like this."""
    report = clip.report
    seconds = report.last - report.first + report.gap
    groups = max(1, floor(rate * seconds / size + 1e-6))
    return torch.linspace(report.first, report.last, groups * size, dtype=torch.float64)


def groups(clip: Clip, times: Tensor, size: int) -> Iterator[Tensor]:
    """The pictures on screen at these instants, in groups of `size`; the last may be smaller."""
    frames = clip.passing(times.tolist())
    while group := list(islice(frames, size)):
        yield torch.stack(group)


def shorter(frames: Tensor) -> int:
    """The shorter side of pictures, in pixels."""
    height, width = frames.shape[2:]
    short = min(height, width)
    if max(height, width) > LONGEST * short:
        raise MediaError(f"frames are {width}x{height}, an aspect ratio above {LONGEST}:1; crop them")
    return short
