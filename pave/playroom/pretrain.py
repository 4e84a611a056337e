"""Train the Playroom's embedded base from scratch: a real LLaVA-OneVision of 1.5 million parameters.

    python -m pave.playroom.pretrain OUT      # about an hour and a quarter on two cores

1. The vision tower and the projector learn to label every visual token: shape, colour, square, light. Trained end to
   end with the language model instead, the same network stays near 58 % on video questions.
2. Both are frozen. The language model learns to describe frames, to answer questions about them, and to read text
   stories that cover the whole vocabulary, so that it can generate every answer. It gets no sound.
3. The tower also learns places, labelled by the words left, right, up and down, and cards on the rug with a picture of
   a horn or a bell (`signs.py`).
4. The language model continues with questions and stories, and answers "what do you hear?" from such cards, just as a
   large video LLM knows what a bell looks like. A base that knew these words from text alone could not be taught by a
   patch to find them among visual tokens, not even with the word embeddings themselves added to the tokens. Last, it
   lists the sides of all toys; trained on questions alone it still got every fifth side wrong.

Each of these was observed to matter: initialization at the scale of a narrow model; visual tokens aligned with the
language model's word embeddings; descriptions first, because looking up starts with the word just generated, but not
later: toys come in any order, so most of their loss is irreducible. With places trained from the start, it learned
where a toy is before its colour, and never learned the colours afterwards.

b clips, t key frames, s visual tokens per key frame, d channels, l tokens of a row
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from pave.packing.rows import IGNORE, Row, collate, pack
from pave.playroom import draw, signs
from pave.playroom.questions import CAPTION, CHANNELS, Question, draw_questions, video_questions
from pave.playroom.signs import NO_CARDS, Cards
from pave.playroom.words import describe, make_tokenizer, sides, story
from pave.playroom.world import COLOURS, FPS, FRAMES, GRID, SHAPES, SIZE, SOUNDS, Scene, draw_scene, draw_script

INIT = 0.08  # about 1/sqrt(128); with the default 0.02 of transformers, for wide models, attention starts far too flat
Network = Any  # a LlavaOnevisionForConditionalGeneration; its attributes have no types
Loss = tuple[Tensor, list[Tensor]]  # and accuracies, for the log
PLACE = 3.0  # largest place component of a token; a whole normalised token has norm 11
# Per round: steps and rate of the tower, then steps, rate and mixture of the language model.
PARTS = (
    ((400, 1.5e-3), [(1500, 2.5e-3, {"described": 24, "stories": 10})]),
    (
        (400, 1e-3),
        [
            (600, 1.5e-3, {"asked": 24, "stories": 10}),
            (1000, 2e-3, {"asked": 8, "signed": 16, "stories": 8}),
        ],
    ),
    (None, [(400, 1.5e-3, {"asked": 24, "signed": 8}), (300, 1.5e-3, {"placed": 24, "signed": 8})]),
)
TOKENS = GRID * GRID  # visual tokens of a frame: 8x8 patches, pooled two by two
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"  # ChatML, as LLaVA-OneVision


def new_base(tokenizer: PreTrainedTokenizerFast, seed: int) -> Network:
    """The network with random weights."""
    torch.manual_seed(seed)
    ids: Any = {
        token: tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<video>", "<|im_end|>", "<|endoftext|>")
    }
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=INIT,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            bos_token_id=None,
        ),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


# ---- 1. the vision tower -------------------------------------------------------------------------------------------


def film(scene: Scene, shown: Cards, rng: np.random.Generator) -> Tensor:
    """Key frames as after a camera and a video codec: uint8 (t 3 y x), noise, colour at half resolution."""
    frames = draw.frames(scene, draw.key_times(FRAMES, FPS)).astype(np.float32)
    signs.draw_cards(frames, scene, shown)
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    colour = frames - grey[..., None]
    coarse = colour.reshape(len(frames), SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    frames = grey[..., None] + coarse.repeat(2, 1).repeat(2, 2) + rng.normal(0, rng.uniform(0, 3), frames.shape)
    return torch.from_numpy(frames.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def normalise(frames: Tensor) -> Tensor:
    """The same as `pave.media.preprocess` for frames that have the right size already."""
    return (frames.float() - 127.5) / 127.5


def labels(scene: Scene, shown: Cards) -> Tensor:
    """For every visual token: shape, colour (0: none, IGNORE: a moving toy), square, light, card. int64 (t s 5)."""
    times = draw.key_times(FRAMES, FPS)
    out = torch.zeros(FRAMES, TOKENS, 5, dtype=torch.int64)
    out[:, :, 2] = torch.arange(TOKENS)
    cards = signs.square_labels(shown)
    out[:, :, 4] = torch.tensor([[SOUNDS.index(name) + 1 if name else 0 for name in row] for row in cards])
    for i, when in enumerate(times):
        out[i, :, 3] = int(draw.is_dim(scene, when))
        for toy in scene.toys:
            row, column = draw.place(toy, scene.move_at, when)
            if row % 1 or column % 1:
                for y in {int(row), int(np.ceil(row))}:
                    for x in {int(column), int(np.ceil(column))}:
                        out[i, y * GRID + x, :2] = IGNORE
            else:
                square = int(row) * GRID + int(column)
                out[i, square, 0] = 1 + SHAPES.index(toy.shape)
                out[i, square, 1] = 1 + COLOURS.index(draw.colour(scene, toy, when))
    return out


def visual_tokens(base: Network, frames: Tensor) -> Tensor:
    """Visual tokens (b t s d) of frames (b t 3 y x), as input to the language model, without the newline."""
    out = base.model.get_video_features(normalise(frames), return_dict=True).pooler_output
    return rearrange(out[:, :-1], "b (t s) d -> b t s d", s=TOKENS)


def word_vectors(base: Network, tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> Tensor:
    """The normalised input embeddings of `words` as they occur within a text (k d)."""
    ids = [tokenizer(f" {word}").input_ids[-1] for word in words]
    return F.normalize(base.get_input_embeddings().weight[ids].detach(), dim=-1)


def train_tower(
    base: Network,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    rate: float,
    seed: int,
    everything: bool,
    clips: int = 12,
) -> None:
    """Dense labels on the projected tokens. Shape, colour and, with `everything`, place and cards are classified by the
    language model's word embeddings, so that the token of a red ball resembles "red ball"; square and light by a
    linear head that is discarded. A card is the label of all tokens of its frame."""
    torch.manual_seed(seed)
    sizes = (len(SHAPES) + 1, len(COLOURS) + 1, TOKENS, 2)
    words = word_vectors(base, tokenizer, ["toy", *SHAPES, "nothing", *COLOURS])
    sounds = word_vectors(base, tokenizer, SOUNDS)
    left, right, up, down = word_vectors(base, tokenizer, ["left", "right", "up", "down"])
    axes = F.normalize(torch.stack([down - up, right - left]), dim=-1)
    squares = PLACE * torch.cartesian_prod(*[torch.linspace(-1, 1, GRID)] * 2)  # (s 2)
    heads = nn.Linear(base.config.text_config.hidden_size, sum(sizes[2:]))
    vision = [*base.model.vision_tower.parameters(), *base.model.multi_modal_projector.parameters()]
    parts = [parameter.requires_grad_() for parameter in vision] + list(heads.parameters())
    rng = np.random.default_rng(seed)

    def loss(step: int) -> Loss:
        scenes = [draw_scene(10_000_000 + step * clips + i, "train") for i in range(clips)]
        shown = [signs.cards(scene, draw_script(scene.seed)) if everything else NO_CARDS for scene in scenes]
        tokens = visual_tokens(base, torch.stack([film(*clip, rng) for clip in zip(scenes, shown, strict=True)]))
        truth = torch.stack([labels(*clip) for clip in zip(scenes, shown, strict=True)])
        normed = F.rms_norm(tokens, tokens.shape[-1:])  # direction only, as the language model's layers read it
        scores = list(torch.cat([normed @ words.T, heads(tokens)], -1).split(sizes, -1))
        if everything:
            scores.append(F.pad(normed @ sounds.T, (1, 0)))
        # toys and cards are rare: without weights, empty squares dominate the loss
        weights = [
            None if k in (2, 3) else torch.tensor([0.2] + [1.0] * (score.shape[-1] - 1))
            for k, score in enumerate(scores)
        ]
        losses = [
            F.cross_entropy(score.flatten(0, 2), truth[..., k].flatten(), weight, ignore_index=IGNORE)
            for k, (score, weight) in enumerate(zip(scores, weights, strict=True))
        ]
        place_error = (normed @ axes.T - squares).square().mean()
        right = [
            ((score.argmax(-1) == truth[..., k]) & (truth[..., k] > 0)).sum() / (truth[..., k] > 0).sum()
            for k, score in enumerate(scores)
        ]
        total = torch.stack(losses).sum()
        if everything:
            total = total + 0.2 * place_error
        return total, [*right, 1 - place_error / squares.square().mean()]

    _optimise(parts, loss, steps, rate, name="tower")
    for parameter in vision:
        parameter.requires_grad_(False)
    with torch.no_grad():  # bring visual tokens to the scale of the language model's other embeddings
        tokens = visual_tokens(base, torch.stack([film(draw_scene(i, "train"), NO_CARDS, rng) for i in range(8)]))
        scale = 1.5 * INIT / tokens.square().mean().sqrt()
        base.model.multi_modal_projector.linear_2.weight *= scale
        base.model.multi_modal_projector.linear_2.bias *= scale


# ---- 2. the language model -----------------------------------------------------------------------------------------


class Practice:
    """Batches for the language model: clips with questions, and stories with questions."""

    def __init__(self, base: Network, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.base, self.tokenizer, self.rng = base, tokenizer, Random(seed)
        self.noise = np.random.default_rng(seed)
        self.video, self.pad = base.config.video_token_id, int(base.config.text_config.pad_token_id)
        self.store: dict[bool, list[tuple[int, Tensor]]] = {False: [], True: []}
        self.known: dict[str, list[int]] = {}

    @torch.no_grad()
    def encode(self, count: int, signed: bool = False) -> None:
        """Encode `count` new clips, with or without cards; the tower is frozen, so their tokens can be cached."""
        store = self.store[signed]
        for first in range(0, count, 32):
            seeds = range(len(store), len(store) + min(32, count - first))
            clips = [(draw_scene(seed, "train"), draw_script(seed)) for seed in seeds]
            shown = [signs.cards(*clip) if signed else NO_CARDS for clip in clips]
            films = [film(scene, cards, self.noise) for (scene, _), cards in zip(clips, shown, strict=True)]
            store += list(zip(seeds, visual_tokens(self.base, torch.stack(films)).half(), strict=True))

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer(text).input_ids
        return self.known[text]

    def turns(self, questions: list[Question], lead: str = "\n") -> list[tuple[list[int], list[int]]]:
        return [
            (
                self.ids(f"{lead}{question.text}<|im_end|>\n<|im_start|>assistant\n"),
                self.ids(f"{question.answer}<|im_end|>"),
            )
            for question in questions
        ]

    def clips(self, count: int, form: str) -> tuple[list[Row], Tensor]:
        """Rows about encoded clips, with the questions of a form, and their visual tokens (b t s d)."""
        chosen = self.rng.sample(self.store[form == "signed"], count)
        prefix = [*self.ids(SYSTEM), *[self.video] * (FRAMES * TOKENS + 1)]
        rows = [pack(prefix, self.turns(self.questions(seed, form))) for seed, _ in chosen]
        return rows, torch.stack([tokens for _, tokens in chosen]).float()

    def questions(self, seed: int, form: str) -> list[Question]:
        """asked: all questions about the video. described: some of them, and descriptions. placed: all of them, and a
        list of the sides of all toys. signed: questions about the video and about the cards."""
        scene = draw_scene(seed, "train")
        if form == "signed":
            return draw_questions(scene, draw_script(seed), (*CHANNELS, CAPTION), self.rng.randrange(10**9))
        known = list(video_questions(scene))
        if form == "described":
            return self.rng.sample(known, min(8, len(known))) + describe(scene, self.rng)
        return known + sides(scene, self.rng) if form == "placed" else known

    def stories(self, count: int) -> list[Row]:
        rows = []
        while len(rows) < count:
            text, questions = story(self.rng.randrange(10**9))
            if questions:
                rows.append(pack(self.tokenizer(f"{SYSTEM}{text}").input_ids, self.turns(questions)))
        return rows

    def embed(self, batch: dict[str, Tensor], tokens: Tensor | None) -> Tensor:
        """Input embeddings (b l d), including visual tokens and the newline."""
        embeds = self.base.get_input_embeddings()(batch["input_ids"])
        if tokens is None:
            return embeds
        newline = self.base.model.image_newline.expand(len(tokens), 1, -1)
        visual = torch.cat([rearrange(tokens, "b t s d -> b (t s) d"), newline], 1)
        place = (batch["input_ids"] == self.video)[..., None].expand_as(embeds)
        return embeds.masked_scatter(place, visual)

    def scores(self, rows: list[Row], tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits at the labelled positions (k vocabulary), and the labels (k)."""
        batch = collate(rows, self.pad)
        hidden = self.base.model.language_model(
            inputs_embeds=self.embed(batch, tokens),
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        labels = batch["labels"][:, 1:]
        return self.base.lm_head(hidden[:, :-1][labels != IGNORE]), labels[labels != IGNORE]


def train_language(practice: Practice, steps: int, rate: float, mix: Mapping[str, int]) -> None:
    """Train on a mixture: per step, the number of clips of each form, and of stories."""
    parts = [parameter for parameter in practice.base.parameters() if parameter.requires_grad]

    def loss(step: int) -> Loss:
        total, right = torch.zeros(()), []
        for form, count in mix.items():
            text_only = form == "stories"
            batch = (practice.stories(count), None) if text_only else practice.clips(count, form)
            scores, labels = practice.scores(*batch)
            total = total + F.cross_entropy(scores, labels) * (0.5 if text_only else 1)
            right.append((scores.argmax(-1) == labels).float().mean())
        return total, right

    _optimise(parts, loss, steps, rate, name=" + ".join(mix))


@torch.no_grad()
def accuracy(practice: Practice, scenes: Iterator[Scene]) -> dict[str, tuple[int, int]]:
    """(right, asked) for every kind of video question, by the first answer token, on frames of `film`."""
    tally: dict[str, tuple[int, int]] = {}
    prefix = practice.tokenizer(SYSTEM).input_ids + [practice.video] * (FRAMES * TOKENS + 1)
    for scene in scenes:
        questions = list(video_questions(scene))
        row = pack(prefix, practice.turns(questions))
        scores, labels = practice.scores(
            [row], visual_tokens(practice.base, film(scene, NO_CARDS, practice.noise)[None])
        )
        hits = (scores.argmax(-1) == labels)[::2]  # an answer is one word and <|im_end|>
        for question, hit in zip(questions, hits.tolist(), strict=True):
            right, asked = tally.get(question.kind, (0, 0))
            tally[question.kind] = (right + hit, asked + 1)
    return tally


def _optimise(parts: list[nn.Parameter], loss: Callable[[int], Loss], steps: int, rate: float, name: str) -> None:
    """AdamW, linear warm-up over a twentieth, then a cosine to zero."""
    optimiser = torch.optim.AdamW(parts, rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / warm, 0.5 * (1 + float(np.cos(np.pi * i / steps))))
    )
    begin = time.perf_counter()
    for step in range(steps):
        value, right = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parts, 1.0)
        optimiser.step()
        plan.step()
        if step % 25 == 24 or step == steps - 1:
            shares = " ".join(f"{share.item():.3f}" for share in right)
            seconds = time.perf_counter() - begin
            print(f"{name} {step + 1}/{steps}  loss {value.item():.3f}  right {shares}  {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the base to")
    parser.add_argument("--clips", type=int, default=6000, help="training clips for the language model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=1.0, help="fraction of all steps, to try the script quickly")
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    base = new_base(tokenizer, options.seed)
    print(f"{sum(p.numel() for p in base.parameters()) / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}")
    for part, (tower, language) in enumerate(PARTS):
        if tower:
            steps, rate = tower
            steps = max(1, int(steps * options.part))
            train_tower(base, tokenizer, steps, rate, options.seed + part, everything=part > 0)
        practice = Practice(base, tokenizer, options.seed + part)
        practice.encode(options.clips)
        if part:
            practice.encode(options.clips, signed=True)
        for steps, rate, mix in language:
            train_language(practice, max(1, int(steps * options.part)), rate, mix)
    tally = accuracy(practice, (draw_scene(seed, "val") for seed in range(20_000_000, 20_000_400)))
    for kind, (right, asked) in sorted(tally.items()):
        print(f"{kind:12} {right / asked:.3f} of {asked}")
    total = [sum(column) for column in zip(*tally.values(), strict=True)]
    print(f"video questions, val: {total[0] / total[1]:.4f} of {total[1]}")
    base.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {"frames": FRAMES, "val_video_accuracy": round(total[0] / total[1], 4), "seed": options.seed}
    (options.out / "pave.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
