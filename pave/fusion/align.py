"""Alignment: which side tokens belong to which key frame, by time or by index.

In: side tokens and the times of key frames. Out: a `SideBatch` with a segment of side tokens for each key frame. Knows
nothing of weights.

b clips, t key frames, τ time steps, m steps of a segment
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pave.errors import SignalError
from pave.sidechannel import Rule, SideBatch, SideTokens


def segments_by_time(times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
    """Steps whose centre is in [midpoint before, midpoint after) of each key frame, as index and mask (t m).

    An empty segment borrows the nearest step, the earlier of two at equal distance: the only case of sharing.
    """
    if not len(key_times):
        raise SignalError("the clip has no key frames to align the side channel with; pass at least one")
    if (key_times.diff() < 0).any():
        seconds = [round(s, 3) for s in key_times.tolist()]
        raise SignalError(f"key frames must be in order of time, got {seconds}; sort them")
    times, key_times = times.to(torch.float64), key_times.to(torch.float64)
    middles = (key_times[:-1] + key_times[1:]) / 2
    index, mask = segments_of(torch.searchsorted(middles, times, right=True), len(key_times))
    empty = ~mask.any(-1)
    if len(times) and empty.any():
        index[empty, 0] = nearest_steps(times, key_times[empty])
        mask[empty, 0] = True
    return index, mask


def nearest_steps(times: Tensor, instants: Tensor) -> Tensor:
    """The step whose time (τ,) is nearest to each instant (k,), the earlier of two at equal distance."""
    order = times.argsort(stable=True)
    ascending = times[order]
    after = torch.searchsorted(ascending, instants).clamp(max=len(times) - 1)
    before = torch.searchsorted(ascending, ascending[(after - 1).clamp(min=0)])  # the first of equal times
    nearer = (instants - ascending[before]).abs() <= (ascending[after] - instants).abs()
    return order[before.where(nearer, after)]


def span_of(key_times: Tensor) -> tuple[float, float] | None:
    """The seconds of a clip with these key frames (t,): from the first to the last, and the usual gap between two
    before and after them. None: a single picture, which lasts all the time."""
    gaps = key_times.diff()
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return None
    gap = gaps.median().item()
    return key_times[0].item() - gap, key_times[-1].item() + gap


def beyond(side: SideTokens, key_times: Tensor) -> Tensor:
    """Which steps (τ,) of a side channel are before or after the clip: they belong to no key frame."""
    span = span_of(key_times.to("cpu", torch.float64))
    if span is None or side.kind == "set":
        return torch.zeros(len(side.times), dtype=torch.bool)
    return (side.times < span[0]) | (side.times > span[1])


def segments_by_index(steps: int, frames: int) -> tuple[Tensor, Tensor]:
    """The split of the official release: contiguous, and the first `steps % frames` segments get one more step; index
    and mask (t m).

    With fewer steps than frames, the first and last steps are at the first and last key frames, and a key frame in
    between gets the step before it; `align` adds the step after it and its weight, for linear interpolation.
    """
    if frames < 1:
        raise SignalError("the clip has no key frames to align the side channel with; pass at least one")
    if 0 < steps < frames:
        index = _stretch(steps, frames)[0][:, None]
        return index, torch.ones_like(index, dtype=torch.bool)
    counts = torch.full((frames,), steps // frames)
    counts[: steps % frames] += 1
    return segments_of(torch.arange(frames).repeat_interleave(counts), frames)


def align(tokens: Sequence[SideTokens | None], key_times: Sequence[Tensor], rule: Rule) -> SideBatch:
    """One row per clip; None, or a channel without a valid token, is an absent row. Ragged τ and t are padded."""
    if len(tokens) != len(key_times):
        raise SignalError(f"{len(tokens)} side channels for {len(key_times)} clips; pass None for a clip without one")
    rows = [None if row is None or not row.present else row for row in tokens]
    present = [row for row in rows if row is not None]
    shapes = {tuple(row.x.shape[1:]) for row in present}
    if len(shapes) > 1:
        raise SignalError(f"shapes (h w c) of side tokens differ within a batch: {sorted(shapes)}; use one encoder")
    kinds = {row.kind for row in present}
    if len(kinds) > 1 and rule == "time":
        raise SignalError("the batch mixes side channels with and without times; split it into two batches")
    rule = "index" if "set" in kinds else rule
    segments = [_segments(row, keys, rule) for row, keys in zip(rows, key_times, strict=True)]
    empty = present[0].x[:0] if present else torch.zeros(0, 1, 1, 0)
    x = _pad([empty if row is None else _clean(row) for row in rows])
    valid = None
    if not all(bool(row.valid.all()) for row in present):
        valid = _pad([present[0].valid[:0] if row is None else row.valid for row in rows])
    steps = [0 if row is None else len(row.x) for row in rows]
    index = _pad2([index for index, _ in segments])
    mask = _pad2([mask for _, mask in segments])
    return SideBatch(
        x=x,
        times=_pad([torch.zeros(0, dtype=torch.float64) if row is None else row.times for row in rows]),
        steps=torch.tensor(steps),
        index=index,
        mask=mask,
        valid=valid,
        key_times=_pad([keys.to(torch.float64) for keys in key_times]),
        layout=_layout(index, mask, valid, x.shape[1]),
        blend=_blend(index, steps, [len(keys) for keys in key_times]) if rule == "index" else None,
        sets=torch.tensor([row is not None and row.kind == "set" for row in rows]) if "set" in kinds else None,
        timed=rule == "time",
    )


def _segments(row: SideTokens | None, key_times: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    if row is None:
        return segments_by_index(0, len(key_times))
    if rule == "index":
        return segments_by_index(len(row.x), len(key_times))
    readable = (
        row.valid.flatten(1).any(1).nonzero()[:, 0].cpu()
    )  # an empty segment must borrow a step with valid tokens
    index, mask = segments_by_time(row.times[readable], key_times)
    return readable[index], mask


def _stretch(steps: int, frames: int) -> tuple[Tensor, Tensor]:
    """With more key frames than steps, for each key frame: the step before it, and the weight of the next step."""
    place = torch.arange(frames, dtype=torch.float64) * (steps - 1) / (frames - 1)
    before = place.long().clamp(max=max(0, steps - 2))
    return before, place - before


def _blend(index: Tensor, steps: list[int], frames: list[int]) -> tuple[Tensor, Tensor] | None:
    """The step after each indexed step, and its weight; None when no row has fewer steps than key frames."""
    if not any(0 < n < t for n, t in zip(steps, frames, strict=True)):
        return None
    after, share = index.clone(), torch.zeros(index.shape, dtype=torch.float64)
    for row, (n, t) in enumerate(zip(steps, frames, strict=True)):
        if 0 < n < t:
            before, part = _stretch(n, t)
            after[row, :t, 0], share[row, :t, 0] = (before + 1).clamp(max=n - 1), part
    return after, share


def segments_of(segment: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Steps grouped by their `segment` (τ,): index and mask (t m), m ≥ 1."""
    counts = segment.bincount(minlength=frames)
    slot = torch.arange(max(1, int(counts.max())))
    mask = slot < counts[:, None]
    index = torch.zeros(mask.shape, dtype=torch.long)
    index[mask] = segment.argsort(stable=True)
    return index, mask


def _layout(
    index: Tensor, mask: Tensor, valid: Tensor | None, steps: int
) -> Literal["even", "dense", "full", "ragged"]:
    if valid is not None or not mask.any(-1).all():
        return "ragged"
    if not mask.all():
        return "full"
    b, t, m = index.shape
    even = steps == t * m and torch.equal(index, torch.arange(steps).view(1, t, m).expand(b, t, m))
    return "even" if even else "dense"


def _clean(row: SideTokens) -> Tensor:
    """Tokens with zeros where not valid: in the weighted sum of attention, 0 · NaN would be NaN."""
    return row.x.where(row.valid[..., None], 0)


def _pad(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def _pad2(rows: list[Tensor]) -> Tensor:
    """Pad (t m) rows in both directions."""
    out = rows[0].new_zeros(len(rows), *(max(row.shape[i] for row in rows) for i in (0, 1)))
    for target, row in zip(out, rows, strict=True):
        target[: row.shape[0], : row.shape[1]] = row
    return out
