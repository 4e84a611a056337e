"""Train the Playroom's embedded base, once, from nothing: a real LLaVA-OneVision of 1.5 million parameters.

    python -m pave.playroom.pretrain OUT      # about an hour and a quarter on two cores

1. The vision tower and the projector learn to label every visual token: shape, colour, square, light. Learned end to
   end with the language model instead, the same network stays near 58 % on video questions.
2. Both are frozen. The language model describes what is seen, answers questions about it, and reads stories in words
   that use the whole vocabulary, so that it can say every answer. It never hears a sound.
3. The tower learns to tell places too, in the words left, right, up and down, and cards on the rug that show a picture
   of a horn or a bell (`signs.py`).
4. The language model goes on with questions and stories, and answers "what do you hear?" from such cards, as a large
   video LLM knows a bell by sight. A base that knew these words from text alone could not be taught by a patch to find
   them among pictures: added to visual tokens, the very vectors of the words said nothing to it. Last, it says the side
   of one toy after the other; from questions alone it went on telling every fifth side wrongly.

What made it learn, each seen to matter: weights that start at the scale of a narrow model; visual tokens that point
where the language model's own words point; descriptions, in which looking up starts with the word just said, and no
descriptions later: toys come in any order, so most of their loss is chance. With places told from the start, it
learned where a toy is before it learned its colour, and never got over that.

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

from pave.data import IGNORE, Row, collate, pack
from pave.playroom import draw, signs
from pave.playroom.questions import CAPTION, CHANNELS, Question, draw_questions, video_questions
from pave.playroom.signs import NO_CARDS, Cards
from pave.playroom.words import describe, make_tokenizer, sides, story
from pave.playroom.world import COLOURS, FPS, FRAMES, GRID, SHAPES, SIZE, SOUNDS, Scene, draw_scene, draw_script

INIT = 0.08  # about 1/sqrt(128); with the library's 0.02, meant for wide models, attention starts far too flat
Network = Any  # a LlavaOnevisionForConditionalGeneration; its attributes have no types
Loss = tuple[Tensor, list[Tensor]]  # and shares of right answers, to look at
PLACE = 3.0  # how far left and right, up and down are told, beside 11 for the whole of a normalised token
# Turn by turn: steps and rate of the tower, then steps, rate and mixture of the language model.
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
    """The untrained network."""
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


# ---- 1. the tower learns to see ------------------------------------------------------------------------------------


def film(scene: Scene, shown: Cards, rng: np.random.Generator) -> Tensor:
    """Key frames as a camera and a codec leave them: uint8 (t 3 y x), colour at half resolution."""
    frames = draw.frames(scene, draw.key_times(FRAMES, FPS)).astype(np.float32)
    signs.put_up(frames, scene, shown)
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    colour = frames - grey[..., None]
    coarse = colour.reshape(len(frames), SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    frames = grey[..., None] + coarse.repeat(2, 1).repeat(2, 2) + rng.normal(0, rng.uniform(0, 3), frames.shape)
    return torch.from_numpy(frames.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def normalise(frames: Tensor) -> Tensor:
    """What `pave.media.preprocess` does to frames that have the right size already."""
    return (frames.float() - 127.5) / 127.5


def labels(scene: Scene, shown: Cards) -> Tensor:
    """For every visual token: shape, colour (0: none, IGNORE: a toy on its way), square, light, card. int64 (t s 5)."""
    times = draw.key_times(FRAMES, FPS)
    out = torch.zeros(FRAMES, TOKENS, 5, dtype=torch.int64)
    out[:, :, 2] = torch.arange(TOKENS)
    out[:, :, 4] = torch.tensor([[SOUNDS.index(name) + 1 if name else 0 for name in row] for row in signs.told(shown)])
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
    """Frames (b t 3 y x) as the tokens that the language model reads (b t s d), without the newline."""
    out = base.model.get_video_features(normalise(frames), return_dict=True).pooler_output
    return rearrange(out[:, :-1], "b (t s) d -> b t s d", s=TOKENS)


def word_vectors(base: Network, tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> Tensor:
    """The directions of the language model's own vectors of `words`, as they are within a text (k d)."""
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
    """Dense labels on the projected tokens. Shape, colour and, with `everything`, place and cards are told by the
    language model's own word vectors, so that a token of a red ball looks to it like "red ball"; the linear head for
    square and light is thrown away. A card is told by all tokens of its frame."""
    torch.manual_seed(seed)
    sizes = (len(SHAPES) + 1, len(COLOURS) + 1, TOKENS, 2)
    words = word_vectors(base, tokenizer, ["toy", *SHAPES, "nothing", *COLOURS])
    sounds = word_vectors(base, tokenizer, SOUNDS)
    left, right, up, down = word_vectors(base, tokenizer, ["left", "right", "up", "down"])
    axes = F.normalize(torch.stack([down - up, right - left]), dim=-1)
    squares = PLACE * torch.cartesian_prod(*[torch.linspace(-1, 1, GRID)] * 2)  # (s 2)
    heads = nn.Linear(base.config.text_config.hidden_size, sum(sizes[2:]))
    eyes = [*base.model.vision_tower.parameters(), *base.model.multi_modal_projector.parameters()]
    parts = [parameter.requires_grad_() for parameter in eyes] + list(heads.parameters())
    rng = np.random.default_rng(seed)

    def loss(step: int) -> Loss:
        scenes = [draw_scene(10_000_000 + step * clips + i, "train") for i in range(clips)]
        shown = [signs.cards(scene, draw_script(scene.seed)) if everything else NO_CARDS for scene in scenes]
        tokens = visual_tokens(base, torch.stack([film(*clip, rng) for clip in zip(scenes, shown, strict=True)]))
        truth = torch.stack([labels(*clip) for clip in zip(scenes, shown, strict=True)])
        told = F.rms_norm(tokens, tokens.shape[-1:])  # by direction alone: what a layer of the language model sees
        scores = list(torch.cat([told @ words.T, heads(tokens)], -1).split(sizes, -1))
        if everything:
            scores.append(F.pad(told @ sounds.T, (1, 0)))
        # toys and cards are few: empty squares would drown them
        weights = [
            None if k in (2, 3) else torch.tensor([0.2] + [1.0] * (score.shape[-1] - 1))
            for k, score in enumerate(scores)
        ]
        losses = [
            F.cross_entropy(score.flatten(0, 2), truth[..., k].flatten(), weight, ignore_index=IGNORE)
            for k, (score, weight) in enumerate(zip(scores, weights, strict=True))
        ]
        wrong = (told @ axes.T - squares).square().mean()
        right = [
            ((score.argmax(-1) == truth[..., k]) & (truth[..., k] > 0)).sum() / (truth[..., k] > 0).sum()
            for k, score in enumerate(scores)
        ]
        total = torch.stack(losses).sum()
        if everything:
            total = total + 0.2 * wrong
        return total, [*right, 1 - wrong / squares.square().mean()]

    _optimise(parts, loss, steps, rate, name="tower")
    for parameter in eyes:
        parameter.requires_grad_(False)
    with torch.no_grad():  # the size of a token must suit the language model's other embeddings
        tokens = visual_tokens(base, torch.stack([film(draw_scene(i, "train"), NO_CARDS, rng) for i in range(8)]))
        scale = 1.5 * INIT / tokens.square().mean().sqrt()
        base.model.multi_modal_projector.linear_2.weight *= scale
        base.model.multi_modal_projector.linear_2.bias *= scale


# ---- 2. the language model learns to answer ------------------------------------------------------------------------


class Practice:
    """Batches for the language model: clips with questions, and stories with questions."""

    def __init__(self, base: Network, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.base, self.tokenizer, self.rng = base, tokenizer, Random(seed)
        self.noise = np.random.default_rng(seed)
        self.video, self.pad = base.config.video_token_id, int(base.config.text_config.pad_token_id)
        self.store: dict[bool, list[tuple[int, Tensor]]] = {False: [], True: []}
        self.known: dict[str, list[int]] = {}

    @torch.no_grad()
    def watch(self, count: int, signed: bool = False) -> None:
        """Look at `count` new clips once, with cards or without; the tower is frozen, so their tokens can be kept."""
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
        """Rows about clips that were watched, with the questions of a form, and their visual tokens (b t s d)."""
        chosen = self.rng.sample(self.store[form == "signed"], count)
        prefix = [*self.ids(SYSTEM), *[self.video] * (FRAMES * TOKENS + 1)]
        rows = [pack(prefix, self.turns(self.questions(seed, form))) for seed, _ in chosen]
        return rows, torch.stack([tokens for _, tokens in chosen]).float()

    def questions(self, seed: int, form: str) -> list[Question]:
        """described: some questions about what is seen, and descriptions. asked: all questions about what is seen.
        placed: and the sides of all toys, one after the other. signed: about what is seen and what the cards tell."""
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
            told, questions = story(self.rng.randrange(10**9))
            if questions:
                rows.append(pack(self.tokenizer(f"{SYSTEM}{told}").input_ids, self.turns(questions)))
        return rows

    def embed(self, batch: dict[str, Tensor], tokens: Tensor | None) -> Tensor:
        """Input embeddings (b l d), visual tokens and the newline in their places."""
        embeds = self.base.get_input_embeddings()(batch["input_ids"])
        if tokens is None:
            return embeds
        newline = self.base.model.image_newline.expand(len(tokens), 1, -1)
        visual = torch.cat([rearrange(tokens, "b t s d -> b (t s) d"), newline], 1)
        place = (batch["input_ids"] == self.video)[..., None].expand_as(embeds)
        return embeds.masked_scatter(place, visual)

    def scores(self, rows: list[Row], tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits at the places that are asked for (k vocabulary) and what should stand there (k)."""
        batch = collate(rows, self.pad)
        hidden = self.base.model.language_model(
            inputs_embeds=self.embed(batch, tokens),
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        wanted = batch["labels"][:, 1:]
        return self.base.lm_head(hidden[:, :-1][wanted != IGNORE]), wanted[wanted != IGNORE]


def train_language(practice: Practice, steps: int, rate: float, mix: Mapping[str, int]) -> None:
    """Every step sees so many clips of each form, and so many stories."""
    parts = [parameter for parameter in practice.base.parameters() if parameter.requires_grad]

    def loss(step: int) -> Loss:
        total, right = torch.zeros(()), []
        for form, count in mix.items():
            told = form == "stories"
            batch = (practice.stories(count), None) if told else practice.clips(count, form)
            scores, wanted = practice.scores(*batch)
            total = total + F.cross_entropy(scores, wanted) * (0.5 if told else 1)
            right.append((scores.argmax(-1) == wanted).float().mean())
        return total, right

    _optimise(parts, loss, steps, rate, name=" + ".join(mix))


@torch.no_grad()
def accuracy(practice: Practice, scenes: Iterator[Scene]) -> dict[str, tuple[int, int]]:
    """(right, asked) of every kind of video question, first answer token, on frames as `film` makes them."""
    tally: dict[str, tuple[int, int]] = {}
    prefix = practice.tokenizer(SYSTEM).input_ids + [practice.video] * (FRAMES * TOKENS + 1)
    for scene in scenes:
        questions = list(video_questions(scene))
        row = pack(prefix, practice.turns(questions))
        scores, wanted = practice.scores(
            [row], visual_tokens(practice.base, film(scene, NO_CARDS, practice.noise)[None])
        )
        hits = (scores.argmax(-1) == wanted)[::2]  # an answer is one word and <|im_end|>
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
    parser.add_argument("--clips", type=int, default=6000, help="clips that the language model learns from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=1.0, help="of all steps; for a look at the script itself")
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    base = new_base(tokenizer, options.seed)
    print(f"{sum(p.numel() for p in base.parameters()) / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}")
    for turn, (tower, language) in enumerate(PARTS):
        if tower:
            steps, rate = tower
            steps = max(1, int(steps * options.part))
            train_tower(base, tokenizer, steps, rate, options.seed + turn, everything=turn > 0)
        practice = Practice(base, tokenizer, options.seed + turn)
        practice.watch(options.clips)
        if turn:
            practice.watch(options.clips, signed=True)
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
