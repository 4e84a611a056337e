"""Any sensor: rows of numbers at a fixed rate, or at times of their own, become side tokens as they are.

In: the signal of a clip by its name: an array (τ c), a pair (values, times), or a file: `.npy` with (τ c), or
`.safetensors` with `values` (τ c) and perhaps `times` (τ,). Out: `stack` rows in line as one token. No weights, and
no code of yours: a recipe says `senses: {imu: {encoder: array, options: {signal: imu, dim: 6, rate: 100}}}`.
"""

from __future__ import annotations

import math
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
from pave.media import Clip, Signal, tensor_of
from pave.sidechannel import SideTokens


def _sensor(signal: str) -> str:
    """Not what PAVE itself puts into a clip."""
    if signal in ("audio", "fast"):
        raise ValueError
    return signal


class Options(EncoderOptions):
    """What a recipe may say."""

    # Under which name a clip has it.
    signal: Annotated[
        Text, AfterValidator(_sensor), Field(description="needs the name of a sensor's signal, such as imu")
    ]
    dim: Whole  # numbers of a row
    # Rows per second; what has times of its own keeps them.
    rate: Annotated[Number, Field(gt=0, lt=math.inf, description="needs rows per second, above 0")]
    stack: Whole = 1  # rows of one token


class Array(Encoder):
    """Frozen numbers: what they mean, a fusion learns."""

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
        """Tokens (τ 1 1 c); rows that fill no whole one are left out, unless there are no others: then zeros follow."""
        given = clip.signals.get(self.options.signal)
        if given is None:
            return None
        signal = self._signal(given)
        rows, stack = len(signal.values), self.options.stack
        if not rows:
            return None
        count = max(1, rows // stack)
        lacking = max(0, count * stack - rows)
        values = F.pad(signal.values, (0, 0, 0, lacking))[: count * stack]
        times = torch.cat([signal.times, signal.times[-1:].expand(lacking)])[: count * stack]
        x = rearrange(values, "(τ stack) c -> τ 1 1 (stack c)", stack=stack).float()
        heard = rearrange(times, "(τ stack) -> τ stack", stack=stack)
        half = 0.5 / self.options.rate
        spans = torch.stack([heard[:, 0] - half, heard[:, -1] + half], dim=-1)
        valid = torch.ones(x.shape[:3], dtype=torch.bool)
        return SideTokens(x, reduce(heard, "τ stack -> τ", "mean"), spans, valid)

    def _signal(self, given: Any) -> Signal:
        """What the clip has, checked."""
        name, dim = self.options.signal, self.options.dim
        if isinstance(given, Signal):
            values, times = given.values, given.times
        elif isinstance(given, str | os.PathLike):
            name = f"{name} ({given})"
            values, times = _read(Path(given))
        else:
            values, times = tensor_of(given), None
        if values.ndim != 2 or values.shape[1] != dim or values.is_complex():
            shape = f"shape {tuple(values.shape)} of {values.dtype}"
            raise SignalError(f"{name} has {shape}; this encoder reads (τ {dim}), real numbers, a row per instant")
        if times is None:
            times = (torch.arange(len(values), dtype=torch.float64) + 0.5) / self.options.rate
        if not values.isfinite().all():
            bad = int((~values.isfinite()).any(1).sum())
            raise SignalError(
                f"{name}: {bad} of {len(values)} rows hold a number that is not finite; mend or drop them"
            )
        if times.shape != values.shape[:1] or not times.isfinite().all() or (times.diff() < 0).any():
            raise SignalError(f"{name}: needs a time for each of {len(values)} rows, finite and in rising order")
        return Signal(values.float(), times.double())


def _read(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values, and times where the file has them."""
    try:
        if path.suffix == ".safetensors":
            with raised_as(SignalError, remedy="write the sensor's rows again"):
                tensors, _ = tensorfile.read(path)
            if "values" not in tensors:
                raise SignalError(f"{path}: holds {sorted(tensors)}; name the rows values, and their seconds times")
            return tensors["values"], tensors.get("times")
        with path.open("rb") as file:
            return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False)), None
    except (OSError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SignalError(f"{path}: no readable array ({reason}); give .npy or .safetensors of numbers") from None


build = builder(Options, Array)
