"""The mask of token rows in which dialogues share a prefix, without its (l l) entries, and attention under it.

In: the dialogue that each token belongs to. Out: a mask that `scaled_dot_product_attention` takes like any boolean one.
Knows nothing of models: every decoder of transformers passes its mask on to that function as it is.

b rows, h heads, l tokens of a row, e channels of a head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

PREFIX, PADDING = 0, -1  # in place of the number of a dialogue
# Tokens of a row, up to which all entries of its mask are stored: a megabyte. By benchmarks/packed.py, attention in
# parts takes as long at 384, three quarters of the time at 1,024 and half at 2,048. As the kernels round differently,
# this also keeps the bits of trainings of small bases.
DENSE = 1_024


def mask_of(owners: Tensor) -> Tensor:
    """The mask (b 1 l l), from the number of each token's dialogue, PREFIX or PADDING (b l). A token attends to those
    before it in the prefix and in its own dialogue; padding, which is on the left, is never attended to."""
    return dense(owners) if owners.shape[1] <= DENSE else PackedMask(owners)


def dense(owners: Tensor) -> Tensor:
    """The same mask with all its entries. Padding attends to itself, so that no softmax is empty (NaN)."""
    length = owners.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    mask = before & _related(owners, owners) & (owners != PADDING)[:, None, :]
    mask |= torch.eye(length, dtype=torch.bool, device=owners.device)
    return mask[:, None]


def windowed(mask: Tensor, positions: Tensor, window: int) -> Tensor:
    """A mask (b 1 l l) without the keys that are `window` positions or more before a query; positions (b l)."""
    return mask & (positions[:, None, None, :] > positions[:, None, :, None] - window)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add to scores; one that has numbers stays as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _related(queries: Tensor, keys: Tensor) -> Tensor:
    """Which keys are of the prefix or of the query's own dialogue (b q k), from owners (b q) and (b k)."""
    return (queries[:, :, None] == keys[:, None, :]) | (keys[:, None, :] == PREFIX)


class _Part(NamedTuple):
    """Where a row's tokens are, and what the later dialogues read."""

    start: int  # tokens of padding
    later: int  # where the second dialogue begins; up to there, attention is causal
    mask: Tensor | None  # added to scores (1 1 q k): queries from `later`, keys from `start`; None: one dialogue


class PackedMask(Tensor):
    """A boolean mask (b 1 l l) without storage, as `torch.nn.attention.bias.CausalBias` is one.

    A row is split exactly: up to the end of its first dialogue attention is causal, which kernels know without a mask;
    the later dialogues read the whole row under a mask of their own (q k). It has as many entries per token of a row as
    there are tokens of questions, some hundred, where the whole mask has l. Any function but attention sees all entries
    (`dense`): sliding windows, caps on scores and kernels that add a mask to them stay right.
    """

    owners: Tensor  # (b l), on the CPU
    _parts: dict[tuple[torch.device, torch.dtype], list[_Part]]  # made once for all layers

    @staticmethod
    def __new__(cls, owners: Tensor) -> PackedMask:
        b, length = owners.shape
        made = Tensor._make_wrapper_subclass(cls, (b, 1, length, length), dtype=torch.bool)
        made.owners, made._parts = owners.cpu(), {}
        return made

    def to(self, *place: Any, **options: Any) -> PackedMask:  # type: ignore[override]
        """The same mask: its parts are made where the queries are."""
        return self

    def parts(self, device: torch.device, dtype: torch.dtype) -> list[_Part]:
        """Every row, on a device, for scores of a dtype."""
        if (device, dtype) not in self._parts:
            self._parts[device, dtype] = [_part(row, device, dtype) for row in self.owners]
        return self._parts[device, dtype]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, options = tree_map_only(cls, lambda mask: dense(mask.owners), (args, dict(kwargs or {})))
        return func(*args, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMask:
        return PackedMask(self.owners.clone())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return PackedMask, (self.owners,)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedMask(owners={self.owners!r})"


def _part(owners: Tensor, device: torch.device, dtype: torch.dtype) -> _Part:
    """A row (l,) of a mask."""
    start, length = int((owners == PADDING).sum()), len(owners)
    later = int((owners <= 1).sum())
    if later == length:
        return _Part(start, later, None)
    keys = owners[start:].to(device)[None]
    allowed = _related(keys[:, later - start :], keys).tril_(later - start)
    # Floats, since attention would convert a boolean mask, and keep the result for backward(), in every layer.
    return _Part(start, later, torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, float("-inf"))[:, None])


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: PackedMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention (b h l e) under a packed mask, with the arguments of `scaled_dot_product_attention`. Padding reads
    nothing: its output is zero."""
    if not query.shape[-2] == key.shape[-2] == attn_mask.shape[-1]:
        return _sdpa(query, key, value, dense(attn_mask.owners).to(query.device), dropout_p, is_causal, **options)
    rows = []
    for row, (start, later, mask) in enumerate(attn_mask.parts(query.device, query.dtype)):
        q, k, v = (each[row : row + 1] for each in (query, key, value))
        first, whole = slice(start, later), slice(start, None)
        parts = [q.new_zeros(1, q.shape[1], start, v.shape[-1])]
        parts.append(_sdpa(q[:, :, first], k[:, :, first], v[:, :, first], None, dropout_p, True, **options))
        if mask is not None:
            parts.append(_sdpa(q[:, :, later:], k[:, :, whole], v[:, :, whole], mask, dropout_p, **options))
        rows.append(torch.cat(parts, 2))
    return torch.cat(rows)


_sdpa = F.scaled_dot_product_attention
