"""The markers of a patch: learned vectors that tell the language model what a clip has, pictures, sound or both (the
second reading of the tags of Audio-Visual LLM, arXiv 2312.06720, eq. 6: the answer depends on <MOD> itself).

In: a modality. Out: its vector, to add to visual tokens, or to put in front of inserted ones. Knows nothing of clips.

n visual tokens, d channels of the language model
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pave.config import Modality


class Marker(nn.Module):
    """One vector per modality, zero at initialisation."""

    def __init__(self, dim: int, modalities: Iterable[Modality]) -> None:
        super().__init__()
        for each in modalities:
            self.register_parameter(each, nn.Parameter(torch.zeros(dim)))

    def calibrate(self, tokens: Tensor) -> None:
        """As tokens of their own: begin with the mean visual token (n d), since the language model's norms cannot scale
        a zero."""
        with torch.no_grad():
            for each in self.parameters():
                each.copy_(tokens.mean(0))

    def forward(self, modality: Modality) -> Tensor:
        """The vector (d,) of a modality."""
        return getattr(self, modality)
