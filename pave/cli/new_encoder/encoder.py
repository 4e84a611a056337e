"""A sensor's numbers, how strong they are and how much they move: say here what your encoder perceives.

In: the signal `my_sense` of a clip: rows of numbers, `hertz` a second from 0 s on, as an array or a `.npy` file.
Out: `rate` tokens per second, mean and deviation of the rows in each.

    a question      model.ask("clip.mp4", "what happens?", my_sense=rows)
    a line of data  "signals": {"my_sense": "rows/1.npy"}
    a recipe        senses: {my_sense: {encoder: my-sense, options: {dim: 3, hertz: 100}}}

τ time steps, n rows of one step, c numbers of a row
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pave.encoder import Encoder, EncoderSpec
from pave.errors import EncoderError, SignalError
from pave.media import Clip, tensor_of
from pave.sidechannel import SideTokens


class MySenseEncoder(Encoder):
    """Frozen and without chance: the same clip gives the same tokens, to the last bit. One with weights opens
    them in a cached property `network`, when the first clip needs them; `pave/encoder.py` has the contract."""

    def __init__(self, dim: int, hertz: int, rate: int) -> None:
        if not all(isinstance(count, int) and count > 0 for count in (dim, hertz, rate)) or hertz % rate:
            asked = f"dim={dim!r}, hertz={hertz!r}, rate={rate!r}"
            raise EncoderError(f"{asked}: take whole numbers of 1 or more, and a rate that divides hertz")
        self.dim, self.count = dim, hertz // rate  # numbers of a row, rows of a token
        # What a patch file records, known before anything is read. `options` holds all that changes the values,
        # defaults included; `revision` is that of the maths: raise it, and kept features are made anew.
        self.spec = EncoderSpec(
            name="my-sense",
            sense="my_sense",
            dim=2 * dim,
            rate=rate,
            revision="1",
            options={"dim": dim, "hertz": hertz, "rate": rate},
        )

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens on the clip's clock: number i is of [i, i + 1) / rate seconds and has read nothing else."""
        given = clip.signals.get("my_sense")
        if given is None:
            return None  # the clip lacks this sense and its answer is the base's; a row of zeros is a measurement
        rows = self._rows(given)
        whole = len(rows) // self.count * self.count
        steps = rearrange(rows[:whole], "(τ n) c -> τ n c", n=self.count)
        tokens = torch.cat([steps.mean(1), steps.std(1, correction=0)], dim=-1)
        return SideTokens.regular(tokens, rate=self.spec.rate)

    def _rows(self, given: Any) -> Tensor:
        """What a clip has, as (n c); what cannot be read is refused with the numbers and a remedy."""
        path = isinstance(given, str | os.PathLike)
        try:
            rows = tensor_of(np.load(given, allow_pickle=False) if path else given).float()
        except (OSError, ValueError, EOFError, TypeError) as error:
            what = given if path else type(given).__name__
            raise SignalError(f"my_sense: {what} cannot be read ({error}); give rows, or a .npy file of them") from None
        if rows.ndim != 2 or rows.shape[1] != self.dim or not rows.isfinite().all():
            raise SignalError(f"my_sense: got {tuple(rows.shape)}; give rows of {self.dim} finite numbers each")
        return rows


def build(dim: int = 3, hertz: int = 100, rate: int = 10) -> MySenseEncoder:
    """The encoder `my-sense`; its arguments are the options that a recipe may give."""
    return MySenseEncoder(dim, hertz, rate)
