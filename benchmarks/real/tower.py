"""A small vision tower that names what it sees: SigLIP's shape, trained against the words of a language model.

In: things, the word embeddings of their names. Out: tower and projector. A visual token that lies on a thing becomes
the mean embedding of the words of its name, any other one the mean of all words, which says nothing; so the language
model finds words where the things are. Knows nothing of the language model beyond its embeddings.

b pictures, s visual tokens of one, n things, q d channels before and after the projector
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scenes import SIZE, draw
from stamps import Thing
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaOnevisionConfig, SiglipVisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

PATCH = 12  # pixels
ON = 0.25  # share of a patch that a thing must cover to be what it shows
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "image_size": SIZE,
    "patch_size": PATCH,
    "vision_use_head": False,
}
PAIRS = 0.4  # share of pictures with two things
HELD_OUT = 1_000_000  # seeds from here on are for tests
QUIET = 0.1  # weight of a token that shows nothing: most do
WHITENED = 30  # batches for the patch embedding
FLOOR = 0.02  # of the mean variance: components that are mostly noise are not blown up


@dataclass(frozen=True)
class Budget:
    """One run of AdamW with a warm-up and a cosine."""

    steps: int = 5000
    batch: int = 32
    rate: float = 1.2e-3


class Eyes(nn.Module):
    """Tower and projector, as LLaVA-OneVision has them."""

    def __init__(self, config: LlavaOnevisionConfig) -> None:
        super().__init__()
        self.config, vision = config, cast(Any, config.vision_config)
        self.tower = SiglipVisionModel(vision)
        self.projector = LlavaOnevisionMultiModalProjector(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b 3 y x) in -1 .. 1 to visual tokens (b s d)."""
        return self.projector(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """What the projector reads (b s q)."""
        seen: Any = self.tower(pixel_values=pixels, output_hidden_states=True)
        return seen.hidden_states[-1]


class Pictures(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless pictures (3 y x), uint8, and which thing each token shows (s): its number from 1, or 0."""

    def __init__(self, things: Sequence[Thing], seed: int) -> None:
        self.things, self.seed = things, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(self.seed)
        while True:
            count = 1 + int(rng.random() < PAIRS)
            chosen = rng.choice(len(self.things), count, replace=False)
            scene = draw([self.things[number] for number in chosen], rng)
            cover = scene.cover(PATCH)
            most = cover.argmax(0)
            label = np.where(cover.max(0) > ON, chosen[most] + 1, 0)
            yield torch.from_numpy(scene.frame().copy()).permute(2, 0, 1), torch.from_numpy(label).flatten()


@torch.no_grad()
def whiten(eyes: Eyes, pixels: Tensor) -> None:
    """Set the patch embedding to the principal components of the patches of some pictures (b 3 y x), whitened: raw
    pixels are almost only brightness, and a tower that starts from them learns several times more slowly."""
    embedding: Any = next(module for module in eyes.tower.modules() if isinstance(module, nn.Conv2d))
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.cov())
    kept = slice(-len(embedding.weight), None)
    filters = (vectors[:, kept] / (values[kept] + FLOOR * values.mean()).sqrt()).T
    embedding.weight.copy_(filters.reshape_as(embedding.weight))
    embedding.bias.copy_(-filters @ mean)


def train(
    eyes: Eyes, things: Sequence[Thing], words: Tensor, nothing: Tensor, budget: Budget, workers: int = 1
) -> float:
    """Train `eyes` on the words of the things (n d) and the mean of all words (d); returns the share of tokens on
    things that are right in the last fifty steps.

    The tower learns with a linear layer of its own to tell things apart. The projector learns beside it, without a
    gradient to the tower, to say the word: from the words alone, a tower learns much more slowly."""
    torch.manual_seed(0)
    pictures = iter(DataLoader(Pictures(things, 0), budget.batch, num_workers=workers))
    whiten(eyes, torch.cat([scaled(next(pictures)[0]) for _ in range(WHITENED)]))
    width = eyes.tower.config.hidden_size
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(things) + 1))
    direction = torch.cat([torch.zeros_like(nothing)[None], words - nothing])
    spread = (words - nothing).pow(2).sum(-1).mean()
    groups = [{"params": [*eyes.tower.parameters(), *head.parameters()]}, {"params": [*eyes.projector.parameters()]}]
    optimiser = torch.optim.AdamW(groups, budget.rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, budget.rate, budget.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    weight = torch.ones(len(things) + 1)
    weight[0] = QUIET
    right: list[float] = []
    for step in range(budget.steps):
        pixels, labels = next(pictures)
        features = eyes.features(scaled(pixels))
        scores = head(features)
        told_apart = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), weight)
        said = eyes.projector(features.detach())
        near = (said - nothing - direction[labels]).pow(2).sum(-1).mean() / spread
        optimiser.zero_grad()
        (told_apart + near).backward()
        nn.utils.clip_grad_norm_([*eyes.tower.parameters(), *head.parameters()], 1.0)
        optimiser.step()
        schedule.step()
        on = labels > 0
        right.append((scores[on][:, 1:].argmax(-1) + 1 == labels[on]).float().mean().item())
        if (step + 1) % 50 == 0:
            print(
                f"eyes: step {step + 1} of {budget.steps}, loss {told_apart.item():.3f}, words {near.item():.3f}, "
                f"right {np.mean(right[-50:]):.3f}",
                flush=True,
            )
    return float(np.mean(right[-50:]))


def scaled(pixels: Tensor) -> Tensor:
    """uint8 to -1 .. 1, as `pave` gives frames to a SigLIP tower."""
    return pixels.float() / 127.5 - 1
