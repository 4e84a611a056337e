"""The embedded base in another size and in another family: what the rows `base: …` of tables.py are measured on.

    python benchmarks/playroom_bases.py OUT [deep] [next]    # under twenty minutes on two cores, beside other work

deep  Twice as many layers: behind each layer stands another that adds nothing yet (as in Net2Net, arXiv 1511.05641).
next  LLaVA-NeXT-Video over a Llama: the weights of the embedded base in the modules of that family, which pools before
      the projector, has no newline row, and asks "USER: … ASSISTANT:", which the embedded base has never read.

Then the language model learns questions about clips again. Each is written as a folder for `pave.load`, and its
accuracy on held-out video questions is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

from pave.base import Host
from pave.loading.base import EMBEDDED, load_base
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.packing.rows import IGNORE, Turn, collate, pack
from pave.playroom import draw, signs
from pave.playroom.pretrain import film
from pave.playroom.questions import CAPTION, CHANNELS, Question, draw_questions, video_questions
from pave.playroom.world import FPS, FRAMES, Split, draw_scene, draw_script

SEED, CLIPS, STEPS, RATE = 0, 3000, 400, 1e-3
ASKED, SIGNED = 12, 4  # clips of a step: with questions about what is seen, and with cards about what is heard


def deep(folder: Path) -> None:
    """Twice as many layers, which compute the same so far."""
    base: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(EMBEDDED)
    text, grown = base.config.text_config, {}
    for key, weight in base.state_dict().items():
        head, number, tail = _around(key)
        if not head.endswith("language_model.layers."):
            grown[key] = weight
            continue
        silent = tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        grown[f"{head}{2 * number}.{tail}"] = weight
        grown[f"{head}{2 * number + 1}.{tail}"] = torch.zeros_like(weight) if silent else weight.clone()
    text.num_hidden_layers *= 2
    text.layer_types = text.layer_types * 2
    network = LlavaOnevisionForConditionalGeneration(base.config)
    network.load_state_dict(grown)
    _write(network, AutoTokenizer.from_pretrained(EMBEDDED), folder)


def next_video(folder: Path) -> None:
    """The weights in the modules of LLaVA-NeXT-Video and Llama, and the token that begins its prompts."""
    base: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_tokens([AddedToken("<s>", special=True)])
    text = base.config.text_config.to_dict()
    kept = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps "
        "max_position_embeddings rope_parameters tie_word_embeddings initializer_range eos_token_id pad_token_id"
    )
    config = LlavaNextVideoConfig(
        vision_config=base.config.vision_config,
        text_config=LlamaConfig(
            **{key: text[key] for key in kept.split()},
            vocab_size=len(tokenizer),
            attention_bias=True,
            bos_token_id=None,
        ),
        image_token_index=base.config.image_token_id,
        video_token_index=base.config.video_token_id,
        image_grid_pinpoints=base.config.image_grid_pinpoints,
        vision_feature_layer=base.config.vision_feature_layer,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    network: Any = LlavaNextVideoForConditionalGeneration(config)
    weights = dict(base.state_dict())
    for key, own in network.state_dict().items():
        if key not in weights:  # Llama has a bias behind attention, too
            assert key.endswith("o_proj.bias"), key
            weights[key] = torch.zeros_like(own)
        elif len(weights[key]) < len(own):  # the new token
            weights[key] = torch.cat([weights[key], own[len(weights[key]) :]])
    network.load_state_dict({key: weights[key] for key in network.state_dict()})
    network.generation_config.eos_token_id = base.generation_config.eos_token_id
    network.generation_config.pad_token_id = base.generation_config.pad_token_id
    _write(network, tokenizer, folder)


def _around(key: str) -> tuple[str, int, str]:
    """A key before the number of its layer, the number, and the key behind it."""
    head, layers, tail = key.partition("layers.")
    number, _, tail = tail.partition(".")
    return head + layers, int(number or 0), tail


def _write(network: Any, tokenizer: Any, folder: Path) -> None:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = json.loads((EMBEDDED / "pave.json").read_text())
    (folder / "pave.json").write_text(json.dumps({"frames": facts["frames"]}) + "\n")
    pixels = {"image_mean": Host.MEAN, "image_std": Host.STD}  # what the tower was trained with, in every family
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels) + "\n")


class Practice:
    """Clips, encoded once, and questions about them, for any family."""

    def __init__(self, host: Host) -> None:
        self.model, self.host, self.rng = PatchedModel(host), host, Random(SEED)
        self.clips = {signed: self.encoded(CLIPS, signed, "train") for signed in (False, True)}

    def encoded(self, count: int, signed: bool, split: Split) -> list[tuple[int, ClipFeatures]]:
        noise, found = np.random.default_rng(SEED), []
        first = 0 if split == "train" else 20_000_000
        for seed in range(first, first + count):
            scene = draw_scene(seed, split)
            shown = signs.cards(scene, draw_script(seed)) if signed else signs.NO_CARDS
            clip = Clip.from_frames(film(scene, shown, noise), torch.tensor(draw.key_times(FRAMES, FPS)))
            found.append((seed, self.model.encode([clip])[0]))
        return found

    def scores(self, clips: list[ClipFeatures], asked: list[list[Question]]) -> tuple[Tensor, Tensor]:
        """Logits at the labelled positions (k vocabulary), and the labels (k)."""
        host, layout = self.host, self.model.calls.lay_out(clips, [])
        rows = []
        for visual, template, questions in zip(layout.visual, layout.templates, asked, strict=True):
            before, _ = host.prompt("", template)
            turns = [
                Turn(host.prompt(each.text, template)[1], [*host.encode_text(each.answer), host.end])
                for each in questions
            ]
            rows.append(pack([*before, *visual], turns))
        batch = collate(rows, host.pad)
        inputs = layout.inputs(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        labels = batch["labels"][:, 1:]
        return self.model.calls.forward(inputs, None, 0).logits[:, :-1][labels != IGNORE], labels[labels != IGNORE]

    def step(self) -> tuple[Tensor, float]:
        """Loss, and share of tokens that are right."""
        chosen = [
            *((seed, clip, False) for seed, clip in self.rng.sample(self.clips[False], ASKED)),
            *((seed, clip, True) for seed, clip in self.rng.sample(self.clips[True], SIGNED)),
        ]
        asked = [
            draw_questions(
                draw_scene(seed, "train"), draw_script(seed), (*CHANNELS, CAPTION), self.rng.randrange(10**9)
            )
            if signed
            else list(video_questions(draw_scene(seed, "train")))
            for seed, _, signed in chosen
        ]
        scores, labels = self.scores([clip for _, clip, _ in chosen], asked)
        return F.cross_entropy(scores, labels), (scores.argmax(-1) == labels).float().mean().item()

    @torch.no_grad()
    def accuracy(self, count: int = 200) -> float:
        """Share of held-out video questions answered right, by the first token of the answer."""
        right: list[Tensor] = []
        for seed, clip in self.encoded(count, False, "val"):
            scores, labels = self.scores([clip], [list(video_questions(draw_scene(seed, "val")))])
            right.append((scores.argmax(-1) == labels)[::2])
        return torch.cat(right).float().mean().item()


def tune(folder: Path, steps: int) -> None:
    """Teach the language model of a base in a folder the questions again, and write it there."""
    host = load_base(folder)
    practice = Practice(host)
    print(f"{folder.name}: {practice.accuracy():.4f} of held-out video questions right before", flush=True)
    parts = list(host.language_model.requires_grad_().parameters())
    optimiser = torch.optim.AdamW(parts, RATE, betas=(0.9, 0.98), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    for step in range(steps):
        loss, right = practice.step()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimiser.step()
        plan.step()
        if step % 25 == 24:
            print(f"{folder.name}: step {step + 1} of {steps}, loss {loss.item():.3f}, right {right:.3f}", flush=True)
    print(f"{folder.name}: {practice.accuracy():.4f} of held-out video questions right", flush=True)
    _write(host.model.requires_grad_(False), host.tokenizer, folder)


KINDS: dict[str, Callable[[Path], None]] = {"deep": deep, "next": next_video}


def make(out: Path, kind: str, steps: int = STEPS) -> None:
    """Write a base to a folder in OUT, unless it is there."""
    folder, part = out / kind, out / f"{kind}.part"
    if not folder.exists():
        KINDS[kind](part)
        tune(part, steps)
        part.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the bases to")
    parser.add_argument("kinds", nargs="*", metavar="deep | next", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    for kind in options.kinds:
        make(options.out, kind, options.steps)


if __name__ == "__main__":
    main()
