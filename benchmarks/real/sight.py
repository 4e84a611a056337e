"""Does the base see? It names the thing in pictures that nobody has seen before.

In: a base, things. Out: how often the name of the thing is the most likely of fifty names after the words "The video
shows", and what the base says in its own words. The stamps are those of the training; place, size, tilt, mirroring,
light and background are new.

k names, l tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from films import RATE, write_film
from scenes import draw, film
from stamps import Thing
from torch import Tensor
from tower import HELD_OUT, scaled

import pave
from pave.model.patched import PatchedModel

QUESTION, OPENING = "What is shown in the video?", "The video shows"
CHOICES = 50
SHOWN = 8  # answers in words


def choices(things: Sequence[Thing]) -> list[Thing]:
    """CHOICES of the things, evenly over their names."""
    step = max(1.0, len(things) / CHOICES)
    return [things[int(number * step)] for number in range(min(CHOICES, len(things)))]


def measure(base: Path, things: Sequence[Thing], pictures: int, seed: int = HELD_OUT) -> dict[str, Any]:
    """Top-1 and top-5 among CHOICES, on one picture after the other of each thing in turn."""
    model, chosen, rng = pave.load(base), choices(things), np.random.default_rng(seed)
    names = [model.host.encode_text(f" {thing.called}") for thing in chosen]
    places: list[int] = []
    answers = []
    for number in range(pictures):
        thing = chosen[number % len(chosen)]
        frames = film(draw([thing], rng), model.host.frames, rng)
        likely = likelihoods(model, frames, names)
        places.append(int((likely > likely[number % len(chosen)]).sum()))
        if number < SHOWN:
            answers.append([thing.name, said(model, frames)])
    return {
        "pictures": pictures,
        "choices": len(chosen),
        "kinds": len(things),
        "top1": round(float(np.mean([place == 0 for place in places])), 4),
        "top5": round(float(np.mean([place < 5 for place in places])), 4),
        "in_its_own_words": answers,
    }


@torch.no_grad()
def likelihoods(model: PatchedModel, frames: np.ndarray, names: Sequence[Sequence[int]]) -> Tensor:
    """Mean log-probability of the tokens of each name (k,), after frames (t y x 3), the question and the opening."""
    host, base = model.host, model.base
    embed: Any = base.get_input_embeddings()
    language: Any = base.model.language_model  # pyright: ignore[reportAttributeAccessIssue]
    pixels = scaled(torch.from_numpy(frames).permute(0, 3, 1, 2)).to(host.dtype)
    seen: Any = base.model.get_video_features(pixels[None], return_dict=True)  # pyright: ignore
    before, after = host.prompt(QUESTION)
    text = torch.tensor([*after, *host.encode_text(OPENING)])
    prompt = torch.cat([embed(torch.tensor(before)), seen.pooler_output[0], embed(text)])
    begun = language(inputs_embeds=prompt[None], use_cache=True)
    past = begun.past_key_values
    past.batch_repeat_interleave(len(names))
    longest = max(map(len, names))
    ids = torch.tensor([[*name, *[0] * (longest - len(name))] for name in names])
    mask = torch.tensor([[1] * len(name) + [0] * (longest - len(name)) for name in names])
    rest = language(inputs_embeds=embed(ids), past_key_values=past).last_hidden_state
    first = begun.last_hidden_state[:, -1:].expand(len(names), -1, -1)
    logits = base.lm_head(torch.cat([first, rest[:, :-1]], 1))  # pyright: ignore[reportCallIssue]
    each = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (each * mask).sum(-1) / mask.sum(-1)


def said(model: PatchedModel, frames: np.ndarray) -> str:
    """The base's answer about a film of these frames, in words."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "film.mp4")
        write_film(path, frames, np.zeros(RATE, np.float32))
        return str(model.ask(str(path), QUESTION, max_new_tokens=16))
