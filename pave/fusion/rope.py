"""Rotary positions: the offset of a side token from the querying visual token, as angles.

In: a SideBatch, or seconds since the key frame. Out: cosines and sines for keys and queries. Knows nothing of weights.

b clips, t key frames, s visual tokens of a key frame, m steps of a segment, n = h w side tokens of a step,
e channels of a head
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from pave.errors import SignalError
from pave.fusion.align import nearest_steps
from pave.sidechannel import SideBatch

# Seconds. 0.25 s turns two events 0.1 s apart by 0.4 of a circle; 256 s is a segment of a two-hour film in 32 frames.
SHORTEST, LONGEST = 0.25, 256.0
# From the official release ("PAVE", Liu et al., CVPR 2025; blocks.py): base, and how many of the 64 frequencies of a
# 128-channel head belong to t, h and w.
BASE, SECTIONS = 10000.0, (16, 24, 24)


# Cosines, sines (… e). Angles of the first half of the channels are negated: to rotate a pair (i, i + e/2) takes -sin
# for one and +sin for the other, and cos is even.
Rotations = tuple[Tensor, Tensor]
Places = tuple[Tensor, Tensor]  # positions in time of key frames (b t) and of the steps of their segments (b t m)


def rotate(x: Tensor, turns: Rotations) -> Tensor:
    """Rotate channel pairs (i, i + e/2) of x (… e)."""
    cos, sin = turns[0].to(x.dtype), turns[1].to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def time_turns(since: Tensor, e: int) -> Rotations:
    """Rotations ((b t) m 1 1 e) of keys by their seconds `since` their key frame ((b t) m), in float64.

    Only the difference of two rotations enters a score, so rotating the few keys by it suffices. It is computed in
    float64, since bfloat16 has no milliseconds at an hour.
    """
    slow, fast = (math.log2(2 * math.pi / period) for period in (LONGEST, SHORTEST))
    speeds = torch.logspace(fast, slow, e // 2, base=2, dtype=since.dtype, device=since.device)  # radians per second
    angles = rearrange(since, "bt m -> bt m 1 1 1") * torch.cat([-speeds, speeds])
    return angles.cos(), angles.sin()


def cube_places(side: SideBatch) -> Places:
    """Positions in time of key frames (b t) and of the steps of their segments (b t m), for `rope: 3d`. The cube has as
    many steps as the longer of key frames and side channel. By the index rule, as in the official release; by the time
    rule, each of the shorter is placed at the nearest one of the longer."""
    frames = side.mask.any(-1).sum(-1)
    number = torch.arange(side.index.shape[1], device=side.index.device)
    if side.timed:
        return _timed_places(side, number, frames.tolist())
    longest = torch.maximum(frames, side.steps)[:, None]
    # The official release uses numpy's linspace with dtype int: it multiplies, sets the last value and truncates.
    query_t = (number * ((longest - 1) / (frames[:, None] - 1).clamp(min=1).double())).floor()
    query_t = query_t.where(number != frames[:, None] - 1, longest - 1).where(frames[:, None] > 1, 0)
    return query_t, side.index.where((side.steps >= frames)[:, None, None], number[:, None])


def _timed_places(side: SideBatch, number: Tensor, frames: list[int]) -> Places:
    query_t, key_t = number.expand(side.index.shape[:2]).clone(), side.index.clone()
    for i, (steps, count) in enumerate(zip(side.steps.tolist(), frames, strict=True)):
        times, keys = side.times[i, :steps], side.key_times[i, :count]
        if steps >= count > 0:
            query_t[i, :count] = nearest_steps(times, keys)
        elif steps:
            key_t[i] = nearest_steps(keys, times)[side.index[i]]
    return query_t, key_t


def cube_turns(side: SideBatch, s: int, places: Places) -> tuple[Rotations, Rotations]:
    """The official release's 3-D rotations of queries ((b t) s 1 e) and keys ((b t) m n 1 e), at integer positions: in
    time at `places`; in space, there are as many rows and columns as in the finer of both grids, and a coarser grid is
    placed at the centres of its cells."""
    grid, patches = side.x.shape[2:4], math.isqrt(s)
    if grid[0] != grid[1] or patches**2 != s:
        raise SignalError(
            f"rope: 3d needs square grids, got {grid[0]} × {grid[1]} side tokens and {s} visual tokens per key frame; "
            "use rope: time"
        )
    query_t, key_t = places[0], places[1][..., : side.index.shape[-1]]
    size = max(patches, grid[0])
    cos, sin = _cube(rearrange(query_t, "b t -> b t 1"), cell_centres(patches, size).to(key_t.device))
    return (cos[:, 0], sin[:, 0]), _cube(key_t, cell_centres(grid[0], size).to(key_t.device))


def cell_centres(count: int, size: int) -> Tensor:
    """Integer positions (count,) of the centres of `count` cells along an edge of `size`."""
    return ((2 * torch.arange(count, dtype=torch.float64) + 1) * (size / (2 * count))).floor()


def _cube(t: Tensor, cells: Tensor) -> Rotations:
    """Rotations ((b t) m (h w) 1 e) from steps (b t m) and positions of rows and columns."""
    slots = sum(SECTIONS)
    # float32, as in the official release
    speeds = 1 / BASE ** (torch.arange(0, 2 * slots, 2, device=t.device).float() / (2 * slots))
    axes = (
        repeat(t.float(), "b t m -> (b t) m h w", h=len(cells), w=len(cells)),
        rearrange(cells.float(), "h -> 1 1 h 1"),
        rearrange(cells.float(), "w -> 1 1 1 w"),
    )
    places = torch.stack(torch.broadcast_tensors(*axes), dim=-1)
    axis = torch.arange(3, device=t.device).repeat_interleave(torch.tensor(SECTIONS, device=t.device))
    angles = rearrange(places[..., axis] * speeds, "bt m h w slot -> bt m (h w) 1 slot")
    angles = torch.cat([-angles, angles], dim=-1)
    return angles.cos(), angles.sin()
