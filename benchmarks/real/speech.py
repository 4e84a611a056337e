"""The projector learns through the frozen language model: what it shows is to make the model say the name.

In: eyes that tell things apart, the language model. Out: the same eyes with another projector; tower and language model
stay. Mean embeddings alone are understood where a name is one common word ("a bison in Yellowstone"), and not where it
is put together from pieces ("b-adger").

b pictures, t key frames, s visual tokens of one, d channels, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from scenes import draw, film
from sight import OPENING, QUESTION
from stamps import Thing
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tower import PAIRS, PATCH, Budget, Eyes, scaled

from pave.packing.rows import IGNORE
from pave.prompt import Prompter

NEAR = 0.1  # weight of the distance to the mean embedding of the name
FRAMES = 2


class Films(IterableDataset[tuple[Tensor, Tensor, str]]):
    """Endless frames (t 3 y x), uint8; the share of a visual token that each thing covers (n s); and a sentence."""

    def __init__(self, things: Sequence[Thing], seed: int) -> None:
        self.things, self.seed = things, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, str]]:
        rng = np.random.default_rng([self.seed, 1])
        while True:
            chosen = rng.choice(len(self.things), 1 + int(rng.random() < PAIRS), replace=False)
            scene = draw([self.things[number] for number in chosen], rng)
            share = torch.zeros(len(self.things), *scene.cover(2 * PATCH).shape[1:])
            share[chosen] = torch.from_numpy(scene.cover(2 * PATCH))
            said = " and ".join(thing.called for thing in scene.things)
            frames = torch.from_numpy(film(scene, FRAMES, rng)).permute(0, 3, 1, 2)
            yield frames, share.flatten(1), f" {said}."


@dataclass
class Speaker:
    """The frozen language model, asked about visual tokens."""

    language: Any  # LlamaForCausalLM
    tokenizer: Any
    line: Tensor  # the embedding after the visual tokens (d)

    def __post_init__(self) -> None:
        self.prompter = Prompter(self.tokenizer)
        self.embed: Any = self.language.get_input_embeddings()
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def loss(self, visual: Tensor, sentences: Sequence[str]) -> tuple[Tensor, float]:
        """Mean cross-entropy of the sentences after the opening, given visual tokens (b s d); and the share of
        sentences that are right token by token."""
        before, after = self.prompter.prompt(QUESTION)
        after = [*after, *self.prompter.encode_text(OPENING)]
        answers = [[*self.prompter.encode_text(text), self.end] for text in sentences]
        longest = max(map(len, answers))
        ids = torch.tensor([[*each, *[self.end] * (longest - len(each))] for each in answers])
        labels = torch.tensor([[*each, *[IGNORE] * (longest - len(each))] for each in answers])
        many = len(visual)
        parts = [
            repeat(self.embed(torch.tensor(before)), "l d -> b l d", b=many),
            visual.to(self.embed.weight.dtype),
            repeat(self.line.to(self.embed.weight.dtype), "d -> b 1 d", b=many),
            repeat(self.embed(torch.tensor(after)), "l d -> b l d", b=many),
            self.embed(ids[:, :-1]),
        ]
        states = self.language.model(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state
        logits = self.language.lm_head(states[:, -longest:]).float()
        hits = (logits.argmax(-1) == labels) | (labels == IGNORE)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), hits.all(-1).float().mean().item()


def teach(
    eyes: Eyes,
    speaker: Speaker,
    things: Sequence[Thing],
    words: Tensor,
    nothing: Tensor,
    budget: Budget,
    workers: int = 1,
) -> float:
    """Train the projector of `eyes`; returns the share of sentences that are right, token by token, in the last fifty
    steps. The language model gets no gradient."""
    torch.manual_seed(1)
    speaker.language.requires_grad_(False)
    films = iter(DataLoader(Films(things, 0), budget.batch, num_workers=workers))
    optimiser = torch.optim.AdamW(eyes.projector.parameters(), budget.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, budget.rate, budget.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    spread = (words - nothing).pow(2).sum(-1).mean()
    right: list[float] = []
    for step in range(budget.steps):
        frames, share, sentences = next(films)
        with torch.no_grad():
            features = eyes.features(scaled(rearrange(frames, "b t c y x -> (b t) c y x")))
        visual = pooled(eyes.projector(features))
        targets = nothing + torch.einsum("bns,nd->bsd", share, words - nothing).repeat_interleave(FRAMES, 0)
        near = (visual - targets).pow(2).sum(-1).mean() / spread
        loss, hits = speaker.loss(rearrange(visual, "(b t) s d -> b (t s) d", t=FRAMES), sentences)
        optimiser.zero_grad()
        (loss + NEAR * near).backward()
        nn.utils.clip_grad_norm_(eyes.projector.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        right.append(hits)
        if (step + 1) % 25 == 0:
            print(
                f"speech: step {step + 1} of {budget.steps}, loss {loss.item():.3f}, right {np.mean(right[-25:]):.3f}",
                flush=True,
            )
    return float(np.mean(right[-50:]))


def pooled(tokens: Tensor) -> Tensor:
    """Projected patches (b s d) to visual tokens, half as many along each edge, as LLaVA-OneVision pools them."""
    edge = int(tokens.shape[1] ** 0.5)
    grid = rearrange(tokens, "b (y x) d -> b d y x", y=edge)
    half = -(-edge // 2)
    return rearrange(F.interpolate(grid, size=(half, half), mode="bilinear"), "b d y x -> b (y x) d")
