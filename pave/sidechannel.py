"""Side channels: an encoder's output as tokens with times, and the key frame that each token belongs to.

In: features at any rate, with their centre times in seconds. Out: one padded batch with a segment of time steps per key
frame. Knows nothing of media, encoders, models or weights.

b clips, t key frames, τ time steps of the side channel, m time steps in a segment, h w side grid, c side channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from pave.errors import SignalError
from pave.text.shown import brief

Rule = Literal["time", "index"]
PARTS = ("x", "times", "spans", "valid")  # the tensors of `SideTokens`, by name


@dataclass(frozen=True)
class SideTokens:
    """One clip's side channel on the clip's clock. Invalid tokens are never read. Times stay on the CPU."""

    x: Tensor  # (τ h w c) floating point
    times: Tensor  # (τ,) centre seconds, float64
    spans: Tensor  # (τ 2) first and last second that a token covers, float64
    valid: Tensor  # (τ h w) bool
    kind: Literal["sequence", "set"] = "sequence"  # set: times are ignored, alignment falls back to the index rule

    def __repr__(self) -> str:
        return brief(self)

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
                "a side token has a time that is not a finite number of seconds; fix its times or drop it"
            )
        broken = (~self.x.isfinite()).any(-1) & self.valid
        if broken.any():
            first = int(broken.flatten(1).any(1).nonzero()[0])
            raise SignalError(
                f"{int(broken.sum())} of {broken.numel()} side tokens are not finite, the first at step {first} "
                f"({self.times[first]:.2f} s); fix the signal or mark them as not valid"
            )

    @property
    def present(self) -> bool:
        """Whether any token is valid; digital silence is present."""
        return bool(self.valid.any())

    def only(self, steps: Tensor) -> SideTokens:
        """Some of the time steps, by index or by mask."""
        return replace(self, x=self.x[steps], times=self.times[steps], spans=self.spans[steps], valid=self.valid[steps])

    @classmethod
    def cat(cls, parts: Sequence[SideTokens]) -> SideTokens:
        """The parts concatenated in time."""
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
    """Input of a fusion: side tokens of b clips, padded, and which of them belong to which key frame.

    A slot of a segment holds step `index`; with `blend` = (after, share) it interpolates between two steps:
    index + share·(after − index). `layout` only saves work and device synchronisation: its default is always correct.
    """

    x: Tensor  # (b τ h w c), zero where padded or not valid
    times: Tensor  # (b τ) seconds, float64
    steps: Tensor  # (b,) τ of each row without padding; 0: its signal is absent
    index: Tensor  # (b t m) time steps of each key frame's segment, padded
    mask: Tensor  # (b t m) bool, False where padded
    valid: Tensor | None  # (b τ h w) bool; None: all tokens but padding are valid
    key_times: Tensor  # (b t) seconds, float64
    # even: segment i is steps [i·m, (i+1)·m) of every row; dense: no segment is padded; full: none is empty
    layout: Literal["even", "dense", "full", "ragged"] = "ragged"
    blend: tuple[Tensor, Tensor] | None = None  # each (b t m); index rule with fewer steps than key frames in a row
    sets: Tensor | None = None  # (b,) bool: rows that are sets, their times are ignored; None: no row
    timed: bool = False  # aligned by the time rule

    def __repr__(self) -> str:
        return brief(self)

    @property
    def present(self) -> Tensor:
        """Which rows have a signal (b,)."""
        return self.steps > 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SideBatch:
        """The batch on another device; `dtype` applies to the tokens, times stay float64."""
        names = ("times", "steps", "index", "mask", "key_times")
        moved: dict[str, Tensor] = {name: getattr(self, name).to(device) for name in names}
        valid, sets = (None if value is None else value.to(device) for value in (self.valid, self.sets))
        blend = None if self.blend is None else (self.blend[0].to(device), self.blend[1].to(device))
        return replace(self, x=self.x.to(device=device, dtype=dtype), valid=valid, sets=sets, blend=blend, **moved)


def __getattr__(name: str) -> Any:
    """Alignment, which moved to `pave.fusion.align`, under its earlier path: users' code imports it from here."""
    if name in ("align", "segments_by_time", "segments_by_index", "segments_of"):
        return getattr(import_module("pave.fusion.align"), name)
    raise AttributeError(f"module 'pave.sidechannel' has no attribute {name!r}")
