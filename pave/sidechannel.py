"""Side channels: what an encoder heard or saw, as tokens on a clock, and which key frame each token belongs to.

In: features of any rate, with their centre times in seconds. Out: one padded batch with a segment of time steps per key
frame. Knows nothing of media, encoders, models or weights.

b clips, t key frames, τ time steps of the side channel, m time steps in a segment, h w side grid, c side channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pave.errors import SignalError

Rule = Literal["time", "index"]
PARTS = ("x", "times", "spans", "valid")  # the tensors of `SideTokens`, by name


@dataclass(frozen=True)
class SideTokens:
    """One clip's side channel on the clip's clock. A token that is not valid is never read. Times stay on the CPU."""

    x: Tensor  # (τ h w c) floating point
    times: Tensor  # (τ,) centre seconds, float64
    spans: Tensor  # (τ 2) first and last second that a token has heard or seen, float64
    valid: Tensor  # (τ h w) bool
    kind: Literal["sequence", "set"] = "sequence"  # set: the times mean nothing, alignment falls back to the index rule

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", self.times.to("cpu", torch.float64))
        object.__setattr__(self, "spans", self.spans.to("cpu", torch.float64))
        if self.x.ndim != 4 or not self.x.is_floating_point():
            raise SignalError(f"side tokens are (τ h w c) floats, got {tuple(self.x.shape)} of {self.x.dtype}")
        steps = len(self.x)
        for name, want in (("times", (steps,)), ("spans", (steps, 2)), ("valid", tuple(self.x.shape[:3]))):
            if (got := tuple(getattr(self, name).shape)) != want:
                raise SignalError(f"{name} of {steps} side tokens must have shape {want}, got {got}")
        if self.valid.dtype != torch.bool:
            raise SignalError(f"valid must be bool, got {self.valid.dtype}")
        if not (self.times.isfinite().all() and self.spans.isfinite().all()):
            raise SignalError(
                "a side token has a time that is not a finite number of seconds; mend its times or drop it"
            )
        broken = (~self.x.isfinite()).any(-1) & self.valid
        if broken.any():
            first = int(broken.flatten(1).any(1).nonzero()[0])
            raise SignalError(
                f"{int(broken.sum())} of {broken.numel()} side tokens are not finite, the first at step {first} "
                f"({self.times[first]:.2f} s); mend the signal or mark them as not valid"
            )

    @property
    def present(self) -> bool:
        """Whether there is a token to read; silence is present."""
        return bool(self.valid.any())

    def only(self, steps: Tensor) -> SideTokens:
        """Some of the time steps, by number or by mask."""
        return replace(self, x=self.x[steps], times=self.times[steps], spans=self.spans[steps], valid=self.valid[steps])

    @classmethod
    def cat(cls, parts: Sequence[SideTokens]) -> SideTokens:
        """One after the other."""
        x, times, spans, valid = (
            torch.cat(each)
            for each in zip(*((part.x, part.times, part.spans, part.valid) for part in parts), strict=True)
        )
        return replace(parts[0], x=x, times=times, spans=spans, valid=valid)

    @classmethod
    def regular(cls, x: Tensor, *, rate: float, start: float = 0.0) -> SideTokens:
        """Tokens (τ c) or (τ h w c) at `rate` per second: token i covers start + [i, i + 1) / rate."""
        if not rate > 0:
            raise SignalError(f"rate={rate} tokens per second; it must be above 0")
        x = rearrange(x, "τ c -> τ 1 1 c") if x.ndim == 2 else x
        edges = start + torch.arange(len(x) + 1, dtype=torch.float64) / rate
        spans = torch.stack([edges[:-1], edges[1:]], dim=-1)
        return cls(x, spans.mean(-1), spans, torch.ones(x.shape[:3], dtype=torch.bool))


@dataclass(frozen=True)
class SideBatch:
    """What a fusion reads: side tokens of b clips, padded, and which of them belong to which key frame.

    A place of a segment holds step `index`; with `blend` = (after, share) it lies between two: index + share·(after −
    index). `layout` only saves work and waits for the device: its default is right for every batch.
    """

    x: Tensor  # (b τ h w c), zero where padded or not valid
    times: Tensor  # (b τ) seconds, float64
    steps: Tensor  # (b,) real τ of each row; 0: the signal is absent there
    index: Tensor  # (b t m) time steps of each key frame's segment, padded
    mask: Tensor  # (b t m) bool, False where padded
    valid: Tensor | None  # (b τ h w) bool; None: all real tokens are valid
    key_times: Tensor  # (b t) seconds, float64
    # even: segment i is steps [i·m, (i+1)·m) of every row; dense: no segment is padded; full: none is empty
    layout: Literal["even", "dense", "full", "ragged"] = "ragged"
    blend: tuple[Tensor, Tensor] | None = None  # each (b t m); index rule, where a row has fewer steps than key frames
    sets: Tensor | None = None  # (b,) which rows are sets, whose times mean nothing; None: no row

    @property
    def present(self) -> Tensor:
        """Which rows have a signal at all (b,)."""
        return self.steps > 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SideBatch:
        """The same batch elsewhere; `dtype` is that of the tokens, times stay float64."""
        names = ("times", "steps", "index", "mask", "key_times")
        moved: dict[str, Tensor] = {name: getattr(self, name).to(device) for name in names}
        valid, sets = (None if value is None else value.to(device) for value in (self.valid, self.sets))
        blend = None if self.blend is None else (self.blend[0].to(device), self.blend[1].to(device))
        return replace(self, x=self.x.to(device=device, dtype=dtype), valid=valid, sets=sets, blend=blend, **moved)


def segments_by_time(times: Tensor, key_times: Tensor) -> tuple[Tensor, Tensor]:
    """Steps whose centre lies in [midpoint before, midpoint after) each key frame, as index and mask (t m).

    A key frame without any borrows the nearest step, the earlier one of two: the only sharing there is.
    """
    if not len(key_times):
        raise SignalError("there are no key frames to align the side channel with")
    if (key_times.diff() < 0).any():
        raise SignalError(f"key frames must be in order of time, got {[round(s, 3) for s in key_times.tolist()]}")
    times, key_times = times.to(torch.float64), key_times.to(torch.float64)
    middles = (key_times[:-1] + key_times[1:]) / 2
    index, mask = segments_of(torch.searchsorted(middles, times, right=True), len(key_times))
    empty = ~mask.any(-1)
    if len(times) and empty.any():
        # Sorting first makes "the earlier one" hold for steps that are not in order of time.
        order = times.argsort(stable=True)
        distance = (times[order] - key_times[empty, None]).abs()
        index[empty, 0] = order[distance.argmin(-1)]
        mask[empty, 0] = True
    return index, mask


def segments_by_index(steps: int, frames: int) -> tuple[Tensor, Tensor]:
    """The authors' split: contiguous, and the first `steps % frames` segments get one step more; index and mask (t m).

    With fewer steps than frames, first lies on first and last on last, and a key frame in between names the step before
    it; `align` adds the step after it and how near that is, since the authors interpolate.
    """
    if frames < 1:
        raise SignalError("there are no key frames to align the side channel with")
    if 0 < steps < frames:
        index = _stretch(steps, frames)[0][:, None]
        return index, torch.ones_like(index, dtype=torch.bool)
    counts = torch.full((frames,), steps // frames)
    counts[: steps % frames] += 1
    return segments_of(torch.arange(frames).repeat_interleave(counts), frames)


def align(tokens: Sequence[SideTokens | None], key_times: Sequence[Tensor], rule: Rule) -> SideBatch:
    """One row per clip; None, or a channel without a valid token, is an absent row. Ragged τ and t are padded."""
    if len(tokens) != len(key_times):
        raise SignalError(f"{len(tokens)} side channels for {len(key_times)} clips; give None for a clip that has none")
    rows = [None if row is None or not row.present else row for row in tokens]
    present = [row for row in rows if row is not None]
    shapes = {tuple(row.x.shape[1:]) for row in present}
    if len(shapes) > 1:
        raise SignalError(f"side tokens (h w c) differ inside one batch: {sorted(shapes)}; use one encoder")
    kinds = {row.kind for row in present}
    if len(kinds) > 1 and rule == "time":
        raise SignalError("one batch mixes side channels with and without times; ask for them in two batches")
    rule = "index" if "set" in kinds else rule
    segments = [_segments(row, keys, rule) for row, keys in zip(rows, key_times, strict=True)]
    nothing = present[0].x[:0] if present else torch.zeros(0, 1, 1, 0)
    x = _pad([nothing if row is None else _clean(row) for row in rows])
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
    )


def _segments(row: SideTokens | None, key_times: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    if row is None:
        return segments_by_index(0, len(key_times))
    if rule == "index":
        return segments_by_index(len(row.x), len(key_times))
    readable = row.valid.flatten(1).any(1).nonzero()[:, 0].cpu()  # an empty segment borrows only what can be read
    index, mask = segments_by_time(row.times[readable], key_times)
    return readable[index], mask


def _stretch(steps: int, frames: int) -> tuple[Tensor, Tensor]:
    """For each of more key frames than steps: the step before it, and the share of the step after that."""
    place = torch.arange(frames, dtype=torch.float64) * (steps - 1) / (frames - 1)
    before = place.long().clamp(max=max(0, steps - 2))
    return before, place - before


def _blend(index: Tensor, steps: list[int], frames: list[int]) -> tuple[Tensor, Tensor] | None:
    """The step after each place, and its share; None when no row has fewer steps than key frames."""
    if not any(0 < n < t for n, t in zip(steps, frames, strict=True)):
        return None
    after, share = index.clone(), torch.zeros(index.shape, dtype=torch.float64)
    for row, (n, t) in enumerate(zip(steps, frames, strict=True)):
        if 0 < n < t:
            before, part = _stretch(n, t)
            after[row, :t, 0], share[row, :t, 0] = (before + 1).clamp(max=n - 1), part
    return after, share


def segments_of(segment: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Steps by the segment that each belongs to: index and mask (t m), m ≥ 1."""
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
    """Tokens with zeros where not valid: 0 · NaN would reach the others through the weighted sum."""
    return row.x.where(row.valid[..., None], 0)


def _pad(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def _pad2(rows: list[Tensor]) -> Tensor:
    """Pad (t m) rows in both directions."""
    out = rows[0].new_zeros(len(rows), *(max(row.shape[i] for row in rows) for i in (0, 1)))
    for target, row in zip(out, rows, strict=True):
        target[: row.shape[0], : row.shape[1]] = row
    return out
