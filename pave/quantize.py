"""Small storage: the weights of a patch in 8 or 4 bits, its LoRA cut to fewer ranks.

In: a patch. Out: a patch whose file is a fraction of it and which is applied like any other. Deterministic. A matrix
`name` becomes codes `name` (int8, or two 4-bit codes in a byte) and `name.scale` (bfloat16), one scale for every group of
columns of a row; everything else stays as it is. Knows nothing of files and models.

r rows, c columns, g groups of a row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from pave.errors import PatchError
from pave.patch import Patch

GROUP = 64  # columns that share a scale, at most
SMALLEST = 256  # numbers: below, codes and scales save nothing worth having
SHARE = {"bits": 4, "rank": 8}  # one complete patch of a 7B base within 20 MB
SCALE = ".scale"


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales (r g) of a matrix (r c): w ≈ code · scale.

    The number of largest magnitude in a group gets the code with the most room, -2^(bits-1), so that all codes are in
    use; of some scales a little smaller, the one with the least squared error is taken.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = rearrange(weight.float(), "r (g c) -> r g c", c=group_of(weight.shape[1]))
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, codes, scale = None, torch.zeros_like(groups), torch.ones_like(peak)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        tried = (peak * share / low).bfloat16().float()
        tried = tried.where(tried != 0, 1.0)  # a group of zeros
        rounded = (groups / tried).round().clamp(low, high)
        error = (rounded * tried - groups).square().sum(-1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best
        best = error if best is None else torch.where(better, error, best)
        codes, scale = torch.where(better, rounded, codes), torch.where(better, tried, scale)
    whole = rearrange(codes, "r g c -> r (g c)").to(torch.int8)
    return (whole if bits == 8 else pack(whole)), scale[..., 0].bfloat16()


def dequantise(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (r c) that codes and scales (r g) stand for."""
    whole = unpack(codes) if codes.dtype == torch.uint8 else codes
    groups = rearrange(whole.float(), "r (g c) -> r g c", g=scale.shape[1])
    return rearrange(groups * scale.float()[..., None], "r g c -> r (g c)").to(dtype)


def pack(codes: Tensor) -> Tensor:
    """Codes -8 … 7 (r c) in pairs: the even column in the low half of a byte (r c/2)."""
    even, odd = ((codes[:, first::2].to(torch.int16) & 15) for first in (0, 1))
    return (even | odd << 4).to(torch.uint8)


def unpack(pairs: Tensor) -> Tensor:
    """Codes (r c) of bytes (r c/2)."""
    signed = pairs.view(torch.int8)
    return torch.stack([signed << 4 >> 4, signed >> 4], -1).flatten(1)


def group_of(columns: int) -> int:
    """The largest group that divides a row, up to GROUP columns."""
    return next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)


def shrunk(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Tensors as they are stored: large matrices as codes and scales, all else as it was."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fits = tensor.ndim == 2 and tensor.numel() >= SMALLEST and tensor.shape[1] % 2 == 0
        if fits and group_of(tensor.shape[1]) >= 8:
            found[name], found[name + SCALE] = quantise(tensor, bits)
        else:
            found[name] = tensor
    return found


def restored(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors as a model uses them; what was never quantised keeps its dtype."""
    return {
        name: dequantise(tensor, tensors[name + SCALE], dtype) if name + SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }
