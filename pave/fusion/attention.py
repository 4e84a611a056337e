"""Who reads what: the weights of an attention, which the fused kernels compute and do not return.

In: queries and keys. Out: the mean of the heads. Knows nothing of side tokens.

b rows, h heads, n queries, k keys, e channels of a head
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Seen = list[Tensor] | None  # a layer adds its weights (b n k); None: nobody looks


def attention(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Weights (b n k), in float32 or finer, of q (b h n e) on k (b h k e). `mask` is (… k) or (b 1 n k), as PyTorch's
    fused kernel takes it. Row by row: those of all rows and heads at once may need gigabytes."""
    dtype, found = torch.promote_types(q.dtype, torch.float32), []
    for i, (queries, keys) in enumerate(zip(q.to(dtype), k.to(dtype), strict=True)):
        scores = queries @ keys.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            keep = mask[i] if mask.dim() == 4 else mask
            scores = scores.masked_fill(~keep, -math.inf) if keep.dtype == torch.bool else scores + keep
        found.append(scores.softmax(-1).mean(0))
    return torch.stack(found)
