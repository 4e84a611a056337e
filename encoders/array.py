"""Any sensor: rows of numbers at a fixed rate, or with their own times, used unchanged as side tokens.

In: a signal of the clip, by name: an array (τ c), a pair (values, times), or a file: `.npy` with (τ c), or
`.safetensors` with `values` (τ c) and optional `times` (τ,). Out: `stack` consecutive rows as one token. Needs no
weights and no code: in a recipe, `senses: {imu: {encoder: array, options: {signal: imu, dim: 6, rate: 100}}}`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import AfterValidator, Field

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Number, Text, Whole, builder
from pave.errors import SignalError, raised_as
from pave.files import tensorfile
from pave.files.array_file import read_npy
from pave.media import Clip, Signal, tensor_of
from pave.sidechannel import SideTokens


def _sensor(signal: str) -> str:
    """Excludes signals that PAVE itself adds to a clip."""
    if signal in ("audio", "fast"):
        raise ValueError
    return signal


class Options(EncoderOptions):
    """What a recipe may say."""

    # Name of the signal in a clip.
    signal: Annotated[
        Text, AfterValidator(_sensor), Field(description="needs the name of a sensor's signal, such as imu")
    ]
    dim: Whole  # values per row
    # Rows per second; a signal with its own times keeps them.
    rate: Annotated[Number, Field(gt=0, le=1e9, description="needs rows per second, above 0")]
    stack: Whole = 1  # rows per token


class Array(Encoder):
    """Raw values: the fusion learns to interpret them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="array",
            sense=options.signal,
            dim=options.dim * options.stack,
            rate=options.rate / options.stack,
            revision="1",
            licence="Apache-2.0",
            options=options.resolved,
        )

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 1 c). Rows after the last complete token are dropped; too few rows for one token are padded with
        zeros."""
        value = clip.signals.get(self.options.signal)
        if value is None:
            return None
        signal = self._signal(value)
        rows, stack = len(signal.values), self.options.stack
        if not rows:
            return None
        count = max(1, rows // stack)
        padding = max(0, count * stack - rows)
        values = F.pad(signal.values, (0, 0, 0, padding))[: count * stack]
        times = torch.cat([signal.times, signal.times[-1:].expand(padding)])[: count * stack]
        x = rearrange(values, "(τ stack) c -> τ 1 1 (stack c)", stack=stack).float()
        times = rearrange(times, "(τ stack) -> τ stack", stack=stack)
        half = 0.5 / self.options.rate
        spans = torch.stack([times[:, 0] - half, times[:, -1] + half], dim=-1)
        valid = torch.ones(x.shape[:3], dtype=torch.bool)
        return SideTokens(x, reduce(times, "τ stack -> τ", "mean"), spans, valid)

    def _signal(self, value: Any) -> Signal:
        """A clip's signal, checked."""
        name, dim = self.options.signal, self.options.dim
        if isinstance(value, Signal):
            values, times = value.values, value.times
        elif isinstance(value, str | os.PathLike):
            name = f"{name} ({value})"
            values, times = _read(Path(value))
        else:
            try:
                values, times = tensor_of(value), None
            except SignalError as error:
                files = isinstance(value, list | tuple) and any(isinstance(each, str | os.PathLike) for each in value)
                raise SignalError(f"{name}: {error}{'; of files, one' if files else ''}") from None
        if values.ndim != 2 or values.shape[1] != dim or values.is_complex():
            shape = f"shape {tuple(values.shape)} of {values.dtype}"
            raise SignalError(f"{name} has {shape}; pass (τ {dim}), real numbers, a row per instant")
        if times is None:
            times = (torch.arange(len(values), dtype=torch.float64) + 0.5) / self.options.rate
        values = values.float()  # before the check: 1e300 is infinite there
        if not values.isfinite().all():
            bad = int((~values.isfinite()).any(1).sum())
            cause = f"{bad} of {len(values)} rows have a value that is not finite in float32"
            raise SignalError(f"{name}: {cause}; fix or drop them")
        if times.shape != values.shape[:1] or not times.isfinite().all() or (times.diff() < 0).any():
            raise SignalError(f"{name}: needs a time for each of {len(values)} rows, finite and in increasing order")
        return Signal(values, times.double())


def _read(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values, and times if the file has them."""
    try:
        if path.suffix == ".safetensors":
            with raised_as(SignalError, remedy="write the sensor's rows again"):
                tensors, _ = tensorfile.read(path)
            if "values" not in tensors:
                raise SignalError(f"{path}: holds {sorted(tensors)}; name the rows `values`, and their seconds `times`")
            return tensors["values"], tensors.get("times")
        with raised_as(SignalError):
            array = read_npy(path)
        return torch.from_numpy(array if array.dtype.kind in "fc" else array.astype(np.float32)), None
    except (MemoryError, TypeError, RuntimeError) as error:  # TypeError: a type that torch does not have
        reason = " ".join(str(error).split())
        raise SignalError(f"{path}: not a readable array ({reason}); use .npy or .safetensors of numbers") from None


build = builder(Options, Array)
