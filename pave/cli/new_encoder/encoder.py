"""Mean and deviation of a sensor's numbers. Describe here what your encoder reads.

In: the signal `my_sense` of a clip: rows of numbers, `hertz` per second from 0 s on, as an array or a `.npy` file.
Out: `rate` tokens per second, each with mean and standard deviation of its rows.

    a question      model.ask("clip.mp4", "what happens?", my_sense=rows)
    a line of data  "signals": {"my_sense": "rows/1.npy"}
    a recipe        senses: {my_sense: {encoder: my-sense, options: {dim: 3, hertz: 100}}}

τ time steps, n rows of one step, c numbers of a row
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pave.encoder import Encoder, EncoderSpec
from pave.errors import EncoderError, FileError, SignalError
from pave.files.array_file import read_npy
from pave.media import Clip, tensor_of
from pave.sidechannel import SideTokens


class MySenseEncoder(Encoder):
    """Frozen and deterministic: the same clip gives the same tokens, bit for bit. An encoder with weights loads
    them in a cached property `network`, when the first clip needs them; the contract is in `pave/encoder.py`."""

    def __init__(self, dim: int, hertz: int, rate: int) -> None:
        if not all(isinstance(count, int) and count > 0 for count in (dim, hertz, rate)) or hertz % rate:
            asked = f"dim={dim!r}, hertz={hertz!r}, rate={rate!r}"
            raise EncoderError(f"{asked}: must be integers >= 1; choose a rate that divides hertz")
        self.dim, self.count = dim, hertz // rate  # numbers of a row, rows of a token
        # Recorded in the patch file; available before any clip is read. `options` holds everything that changes the
        # values, defaults included. Raise `revision` when the computation changes: cached features are then recomputed.
        self.spec = EncoderSpec(
            name="my-sense",
            sense="my_sense",
            dim=2 * dim,
            rate=rate,
            revision="1",
            options={"dim": dim, "hertz": hertz, "rate": rate},
        )

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens on the clip's clock: token i covers [i, i + 1) / rate seconds and depends on nothing else."""
        given = clip.signals.get("my_sense")
        if given is None:
            return None  # the signal is absent, so the base answers alone; zeros would count as a measurement
        rows = self._rows(given)
        whole = len(rows) // self.count * self.count
        steps = rearrange(rows[:whole], "(τ n) c -> τ n c", n=self.count)
        tokens = torch.cat([steps.mean(1), steps.std(1, correction=0)], dim=-1)
        return SideTokens.regular(tokens, rate=self.spec.rate)

    def _rows(self, given: Any) -> Tensor:
        """The clip's rows as (n c), or an error that shows what was passed and the remedy."""
        path = isinstance(given, str | os.PathLike)
        try:
            rows = tensor_of(read_npy(Path(given)) if path else given).float()
        except (FileError, ValueError, TypeError) as error:
            what = given if path else type(given).__name__
            raise SignalError(f"my_sense: {what} cannot be read ({error}); pass rows, or a .npy file of them") from None
        if rows.ndim != 2 or rows.shape[1] != self.dim or not rows.isfinite().all():
            raise SignalError(f"my_sense: got {tuple(rows.shape)}; pass rows of {self.dim} finite numbers each")
        return rows


def build(dim: int = 3, hertz: int = 100, rate: int = 10) -> MySenseEncoder:
    """The encoder `my-sense`; its arguments are the options of a recipe."""
    return MySenseEncoder(dim, hertz, rate)
