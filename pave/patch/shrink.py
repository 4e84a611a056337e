"""Compressed storage: matrices quantised to 8 or 4 bits, low-rank pairs truncated to fewer ranks.

In: float tensors by name. Out: the tensors to store. A matrix `name` becomes codes `name` (int8, or two 4-bit codes per
byte) and `name.scales` (bfloat16), one per group along its longer side; other tensors are unchanged.
Deterministic. Knows nothing of files, patches and models.

o rows, c columns, g groups, r ranks
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

GROUP = 64  # maximum values per scale
LEAST_GROUP = 8  # smaller groups are not quantised: scales would cost as much as codes save
SMALLEST = 64  # values in the smallest matrix that is quantised
SCALES = ".scales"
LARGEST = 1e30  # limit of weights and scales: far beyond real ones, and its product with a code does not overflow
SHARES = (
    1.0,
    0.95,
    0.9,
    0.85,
    0.8,
)  # tried factors of the scale that avoids clipping; clipping a few peaks may cost less


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix (o c), (o g) for a wide one and (g c) for a high one: w ≈ code · scale.

    The value of largest magnitude in a group gets the code -2^(bits-1), so that all codes are used; of several scales
    the one with the least squared error is chosen. A meta matrix gives empty tensors.
    """
    if weight.shape[0] > weight.shape[1]:
        codes, scales = quantise(weight.T, bits)
        return codes.T.contiguous(), scales.T.contiguous()
    size = group_of(weight.shape[1])
    if weight.is_meta:
        rows, columns = weight.shape
        codes = weight.new_empty(rows, columns * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
        return codes, weight.new_empty(rows, columns // size, dtype=torch.bfloat16)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = rearrange(weight.float(), "o (g c) -> o g c", c=size)
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, codes, scale = None, torch.zeros_like(groups), torch.ones_like(peak)
    for share in SHARES:
        tried = (peak * share / low).bfloat16().float()
        tried = tried.where(tried != 0, 1.0)  # a group of zeros
        rounded = (groups / tried).round().clamp(low, high)
        error = (rounded * tried - groups).square().sum(-1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best
        best = error if best is None else torch.where(better, error, best)
        codes, scale = torch.where(better, rounded, codes), torch.where(better, tried, scale)
    whole = rearrange(codes, "o g c -> o (g c)").to(torch.int8)
    return (whole if bits == 8 else pack(whole)), scale[..., 0].bfloat16()


def dequantise(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (o c) of codes and scales."""
    along = int(len(scales) == len(codes))  # the dimension of the groups
    # The product of a code and a bfloat16 scale is exact in float32, so computing in bfloat16 rounds only once.
    exact = dtype if dtype in (torch.bfloat16, torch.float32) else torch.float32
    scale = scales.to(exact).unsqueeze(along + 1)
    groups = codes.view(torch.int8).unflatten(along, (scales.shape[along], -1))
    if codes.dtype == torch.int8:
        return (groups * scale).flatten(along, along + 1).to(dtype)
    pairs = torch.empty(*groups.shape[: along + 2], 2, *groups.shape[along + 2 :], dtype=exact, device=codes.device)
    for place, half in enumerate((groups << 4 >> 4, groups >> 4)):
        torch.mul(half, scale, out=pairs.select(along + 2, place))
    return pairs.flatten(along, along + 2).to(dtype)


def pack(codes: Tensor) -> Tensor:
    """Codes -8 … 7 (o c) in pairs (o c/2): the even column in the low four bits."""
    even, odd = ((codes[:, first::2].to(torch.int16) & 15) for first in (0, 1))
    return (even | odd << 4).to(torch.uint8)


def group_of(columns: int) -> int:
    """The largest group that divides a row, up to GROUP."""
    return next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)


def shrunk(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Tensors as stored: large matrices as codes and scales, others unchanged."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        long = max(tensor.shape, default=0)
        if tensor.ndim == 2 and tensor.numel() >= SMALLEST and long % 2 == 0 and group_of(long) >= LEAST_GROUP:
            found[name], found[name + SCALES] = quantise(tensor, bits)
        else:
            found[name] = tensor
    return found


def restored(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors as a model uses them; tensors that are not quantised keep their dtype."""
    return {
        name: dequantise(tensor, tensors[name + SCALES], dtype) if name + SCALES in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALES)
    }


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes that `restored` would return, without computing it."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(SCALES):
            sides = list(tensor.shape)
            if tensor.dtype == torch.uint8 and tensor.ndim == 2 and name + SCALES in tensors:
                sides[len(tensors[name + SCALES]) == len(tensor)] *= 2
            found[name] = tuple(sides)
    return found


def flaw(name: str, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with a stored tensor, as text; empty if it is valid."""
    tensor, scales = tensors[name], tensors.get(name + SCALES)
    if name.endswith(SCALES) and name.removesuffix(SCALES) not in tensors:
        return "has no codes"
    if scales is not None:
        if tensor.dtype not in (torch.int8, torch.uint8) or tensor.ndim != 2 or scales.ndim != 2:
            return f"is {tensor.dtype} of shape {tuple(tensor.shape)}, with scales of shape {tuple(scales.shape)}"
        along = int(len(scales) == len(tensor))  # the dimension of the groups
        numbers = tensor.shape[along] * (2 if tensor.dtype == torch.uint8 else 1)
        if scales.shape[1 - along] != tensor.shape[1 - along] or not scales.numel() or numbers % scales.shape[along]:
            return f"has scales of shape {tuple(scales.shape)} for codes of shape {tuple(tensor.shape)}"
    elif not tensor.is_floating_point():
        return f"is {tensor.dtype}, and has no scales"
    elif tensor.numel() and not tensor.is_meta and not tensor.abs().max() <= LARGEST:  # no comparison holds for NaN
        wrong = int((~(tensor.abs() <= LARGEST)).sum())
        return f"has {wrong} of {tensor.numel()} values that are not finite or beyond {LARGEST:g}"
    return ""


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The pair (rank c), (o rank) whose product is the best approximation of B·A, of a (r c) and b (o r), by truncated
    SVD; both get the square roots of the singular values."""
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    root = s[:rank].sqrt()
    return ((v[:rank] * root[:, None]) @ right.T).to(a.dtype), (left @ u[:, :rank] * root).to(b.dtype)
