"""The Playroom as text: stories that describe a clip, and the tokenizer. Text-only training data for the embedded base.

A patch cannot teach a base to generate a word like "horn" that it was never trained on, so the base first reads stories
about sounds.
"""

from __future__ import annotations

from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pave.playroom.questions import CAPTION, CHANNELS, Question, draw_questions
from pave.playroom.world import PHASES, Scene, Script, draw_scene, draw_script

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
VOCABULARY = 512


def tell(scene: Scene, script: Script, seed: int) -> str:
    """The clip as a story: the toys of one colour, then one sentence per phase with its facts in random order."""
    rng = Random(f"story {seed}")
    sentences = []
    for phase in range(PHASES):
        heard = [sound for sound, at in script.events if at == phase]
        facts = [f"the {scene.changer.shape} is {scene.changer.colours[phase]}"]
        if heard:
            facts.append(" then ".join(f"a {sound}" for sound in heard))
        if phase == scene.dim_phase:
            facts.append("the light is dim")
        rng.shuffle(facts)
        sentences.append(" and ".join(facts) + ".")
    still = [f"the {toy.shape} is {toy.colours[0]}." for toy in scene.toys[1:]]
    return " ".join([*still, *sentences])


def describe(scene: Scene, rng: Random) -> list[Question]:
    """Two descriptions of what is visible, toys in any order. Training only: by describing, the base first learns to
    look up what belongs to the word just generated, which answering builds on."""
    toys = rng.sample(scene.toys, len(scene.toys))
    briefly = ", ".join(f"a {' then '.join(toy.colours)} {toy.shape}" for toy in toys)
    fully = ". ".join(f"the {toy.shape} is {' then '.join(toy.colours)}" for toy in toys)
    return [
        Question("what do you see?", f"{briefly}.", "video", "describe"),
        Question("describe the toys.", f"{fully}.", "video", "describe"),
    ]


def sides(scene: Scene, rng: Random) -> list[Question]:
    """The half of the rug of every toy that does not move, toys in any order. Training only."""
    still = [toy for toy in scene.toys if not toy.way]
    answer = ", ".join(f"{toy.shape} {toy.side}" for toy in rng.sample(still, len(still)))
    return [Question("which toy is on the left or on the right?", answer, "video", "describe")]


def answerable(question: Question) -> bool:
    """Whether the answer is in the story."""
    return question.kind not in ("count", "side")


def story(seed: int) -> tuple[str, list[Question]]:
    """A story of the train split and questions about it."""
    scene, script = draw_scene(seed, "train"), draw_script(seed)
    asked = [question for question in draw_questions(scene, script, (*CHANNELS, CAPTION), seed) if answerable(question)]
    return tell(scene, script, seed), asked


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE for any text, with one token for every word of the Playroom."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n| ?[a-z]+| ?[0-9]| ?[^\sa-z0-9]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def _corpus() -> list[str]:
    lines = ["system\nyou are a helpful assistant.", "user\n", "assistant\n", " left right up down"] * 100
    for seed in range(600):
        text, asked = story(seed)
        scene, script = draw_scene(seed, "train"), draw_script(seed)
        lines += [text, *(text for q in asked for text in (q.text, q.answer))]
        shown = [*draw_questions(scene, script, ("video",), seed), *describe(scene, Random(seed))]
        lines += [text for q in shown for text in (q.text, q.answer)]
    return lines
