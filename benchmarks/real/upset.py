"""How much a base's answers to general questions depend on the picture: the scale for what a patch changes.

In: a base and clips. Out: the share of its answers' tokens that stay the most likely if another clip is shown, or if a
little noise is added to the visual tokens; as `pave-train` measures it for a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pave
from pave.features.stored import Stored
from pave.media import Clip
from pave.model.inputs import ClipFeatures
from pave.readers.questions import read_data
from pave.training.dataset import packed
from pave.training.loss import divergence, scores
from pave.training.retention import CLIPS, Probe

NOISE = (0.01, 0.1, 1.0)  # of the standard deviation of a visual token's channels


def measure(base: Path, file: Path, dtype: str) -> dict[str, Any]:
    """Token agreement and KL divergence, in nats per token, on the general questions of `Probe`."""
    model = pave.load(base, frames=1, dtype=dtype)
    examples = read_data(file)
    chosen = [examples[place * len(examples) // CLIPS] for place in range(CLIPS)]
    clips = [model.encode_clip(Clip.read(each.video, frames=1, audio=False), ()) for each in chosen]
    probe = Probe.of(model, [Stored.of(clip) for clip in clips])

    @torch.no_grad()
    def logits(shown: Sequence[ClipFeatures]) -> Tensor:
        return scores(model, *packed(model, shown, probe.turns, [()] * len(shown)))[0]

    own, draw = logits(clips), torch.Generator().manual_seed(0)
    found = {"another clip": figures(own, logits([*clips[1:], clips[0]]))}
    for size in NOISE:
        noisy = []
        for clip in clips:
            scale = size * clip.tokens.float().std()
            noise = scale * torch.randn(clip.tokens.shape, generator=draw)
            noisy.append(replace(clip, tokens=clip.tokens + noise.to(clip.tokens.dtype)))
        found[f"noise of {size:g}"] = figures(own, logits(noisy))
    return {"dtype": dtype, "tokens_of_answers": len(own), **found}


def figures(own: Tensor, other: Tensor) -> dict[str, float]:
    """How far apart two sets of logits (k vocabulary) are."""
    same = (own.argmax(-1) == other.argmax(-1)).float().mean().item()
    return {"tokens": round(same, 4), "kl": round(divergence(other, own).mean().item(), 5)}
