"""Rotary positions: how far a side token lies from the visual token that asks, as angles.

In: a SideBatch and the number of visual tokens of a key frame. Out: cosines and sines for keys and queries.
Knows nothing of weights.

b clips, t key frames, s visual tokens of a key frame, m steps in a segment, n side tokens in a segment, h w side grid,
e channels of a head
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from pave.errors import SignalError
from pave.sidechannel import SideBatch

# Seconds. 0.25 s turns two events 0.1 s apart by 0.4 of a circle; 256 s is a segment of a two-hour film in 32 frames.
SHORTEST, LONGEST = 0.25, 256.0
# The authors' table ("PAVE", Liu et al., CVPR 2025; official repository, blocks.py): base, and how many of the 64
# frequencies of a 128-channel head turn with t, h and w.
BASE, SECTIONS = 10000.0, (16, 24, 24)


Turns = tuple[Tensor, Tensor]  # cosines and sines (… e/2) of as many angles


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Turn channel pairs (i, i + e/2) of x (… e)."""
    cos, sin = turns[0].to(x.dtype), turns[1].to(x.dtype)
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def neighbours(side: SideBatch) -> tuple[Tensor, Tensor, Tensor]:
    """For each place of a segment the step before it, the step after it and the share of the latter, all (b t m).

    Where a row has fewer steps than key frames (index rule), first lies on first and last on last, as in the authors'
    interpolation; elsewhere a place is a step, and the share is zero.
    """
    frames = side.mask.any(-1).sum(-1)
    stretched = (side.steps < frames)[:, None, None]
    speed = (side.steps - 1).clamp(min=0).double() / (frames - 1).clamp(min=1)
    place = torch.arange(side.index.shape[1], device=side.index.device)[:, None] * speed[:, None, None]
    last = (side.steps - 1).clamp(min=0)[:, None, None]
    before = torch.minimum(place.long(), last)
    after = torch.minimum(before + 1, last)
    share = (place - before).clamp(max=1).where(stretched, 0)
    return before.where(stretched, side.index), after.where(stretched, side.index), share.expand(side.index.shape)


def seconds_since(side: SideBatch) -> Tensor:
    """Seconds (b t m) of each segment's steps since their key frame, in float64."""
    b, t, m = side.index.shape

    def at(index: Tensor) -> Tensor:
        return side.times.gather(1, index.flatten(1)).view(b, t, m)

    if side.rule == "index" and side.stretched:
        before, after, share = neighbours(side)
        return torch.lerp(at(before), at(after), share) - side.key_times[..., None]
    return at(side.index) - side.key_times[..., None]


def time_turns(side: SideBatch, e: int) -> Turns:
    """Turns ((b t) n 1 e/2) of each key by its seconds since its key frame.

    Only the difference of two rotations enters a score, so turning the few keys by it says all. It is taken in float64,
    since an hour in seconds leaves no milliseconds in bfloat16.
    """
    grid = side.x.shape[2] * side.x.shape[3]
    since = rearrange(seconds_since(side), "b t m -> b t m 1")
    periods = torch.logspace(math.log2(SHORTEST), math.log2(LONGEST), e // 2, base=2, dtype=since.dtype)
    angles = since * (2 * math.pi / periods).to(since.device)
    cos, sin = (repeat(x, "b t m e -> (b t) (m n) 1 e", n=grid) for x in (angles.cos(), angles.sin()))
    return cos, sin


def cube_turns(side: SideBatch, s: int) -> tuple[Turns, Turns]:
    """The authors' 3-D turns of queries ((b t) s 1 64) and of keys ((b t) n 1 64), whole numbers on one cube.

    The cube has as many steps as the longer of key frames and side channel, and as many rows and columns as the finer
    of both grids; coarser ones sit at the centres of its cells.
    """
    grid, patches = side.x.shape[2:4], math.isqrt(s)
    if grid[0] != grid[1] or patches**2 != s:
        raise SignalError(
            f"rope: 3d needs square grids, got {grid[0]} × {grid[1]} side tokens and {s} visual tokens per key frame; "
            "use rope: time"
        )
    frames = side.mask.any(-1).sum(-1)
    longest = torch.maximum(frames, side.steps)[:, None]
    number = torch.arange(side.index.shape[1], device=side.index.device)
    # The authors take numpy's linspace as integers: it multiplies, sets the last value and cuts.
    query_t = (number * ((longest - 1) / (frames[:, None] - 1).clamp(min=1).double())).floor()
    query_t = query_t.where(number != frames[:, None] - 1, longest - 1).where(frames[:, None] > 1, 0)
    key_t = side.index.where((side.steps >= frames)[:, None, None], number[:, None])
    size = max(patches, grid[0])
    return (
        _cube(rearrange(query_t, "b t -> b t 1"), cell_centres(patches, size).to(number.device)),
        _cube(key_t, cell_centres(grid[0], size).to(number.device)),
    )


def cell_centres(count: int, size: int) -> Tensor:
    """Whole positions (count,) of `count` cells along an edge of `size`."""
    return ((2 * torch.arange(count, dtype=torch.float64) + 1) * (size / (2 * count))).floor()


def _cube(t: Tensor, cells: Tensor) -> Turns:
    """Turns ((b t) (m h w) 1 64) from steps (b t m) and positions of rows and columns."""
    m, n = t.shape[-1], len(cells)
    slots = sum(SECTIONS)
    # float32, as the authors' tables are
    speeds = 1 / BASE ** (torch.arange(0, 2 * slots, 2, device=t.device).float() / (2 * slots))
    places = torch.stack(
        [
            repeat(t.float(), "b t m -> (b t) (m h w)", h=n, w=n),
            repeat(cells.float(), "h -> bt (m h w)", bt=t[..., 0].numel(), m=m, w=n),
            repeat(cells.float(), "w -> bt (m h w)", bt=t[..., 0].numel(), m=m, h=n),
        ],
        dim=-1,
    )
    axis = torch.arange(3, device=t.device).repeat_interleave(torch.tensor(SECTIONS, device=t.device))
    angles = rearrange(places[..., axis] * speeds, "bt n slot -> bt n 1 slot")
    return angles.cos(), angles.sin()
