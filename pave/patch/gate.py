"""The gate of a patch: which questions are for it. All others are answered by the base alone, bit for bit.

In: what the base makes of a question, before any clip is read. Out: a decision. Knows nothing of clips and texts.

d channels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """A linear classifier; untrained, it is open to every question. It has no parameters, only buffers: neither an
    optimiser nor a trainer that distributes gradients has anything to do with it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim))
        self.register_buffer("bias", torch.ones(1))

    def opens(self, question: Tensor) -> bool:
        """Whether a question, as the base reads it (d,), is one for the patch."""
        weight, bias = self.weight.double().cpu(), self.bias.double().cpu()
        return bool(question.double() @ weight + bias > 0)
