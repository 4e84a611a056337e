"""Questions about a clip: text, channel, answer, and the best possible score without a channel.

In: a `Scene` and a `Script`. Out: `Question`s, each with its probability of being drawn. The channel is the source of
the answer: `video`, `audio`, `audio+video`, `order` (which of two sounds within one second comes first).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, permutations
from math import lcm
from random import Random

from pave.playroom.world import PHASES, SOUNDS, Scene, Script, T, Table, choose, scripts

CHANNELS = ("video", "audio", "audio+video", "order")
CAPTION = "caption"  # for training only: it describes much more of a clip than a one-word answer
NUMBERS = ("none", "one", "two", "three", "four")
HEAR = ("what sound do you hear?", "what do you hear?")


@dataclass(frozen=True)
class Question:
    """One question with its one correct answer. `kind` groups questions of the same form."""

    text: str
    answer: str
    channel: str
    kind: str


def video_questions(scene: Scene) -> Iterator[Question]:
    """All possible questions about what is visible."""
    changer = scene.changer
    yield Question("how many toys are there?", NUMBERS[len(scene.toys)], "video", "count")
    for toy in scene.toys[1:]:
        yield Question(f"what colour is the {toy.shape}?", toy.colours[0], "video", "colour")
        yield Question(f"what shape is the {toy.colours[0]} toy?", toy.shape, "video", "shape")
    for toy in scene.toys:
        if not toy.way:  # a moving toy may change sides
            yield Question(f"is the {toy.shape} on the left or on the right?", toy.side, "video", "side")
    for word, colour in (("first", changer.colours[0]), ("last", changer.colours[-1])):
        yield Question(f"what colour is the {changer.shape} {word}?", colour, "video", "colour-at")
    dim = changer.colours[scene.dim_phase]
    yield Question(f"what colour is the {changer.shape} when the light is dim?", dim, "video", "colour-dim")


Choice = Table[Question]
Answers = dict[str, dict[str, int]]  # question -> answer -> weight
CHOICES = 120  # a multiple of the denominators of all choices: 1, 2, 4, 6, 8, 10 and the orders of up to three sounds


def sound_questions(scene: Scene, script: Script) -> Iterator[Choice]:
    """All possible questions about sounds, as choices: of each, one question is drawn by its probability."""
    sounds = [sound for sound, _ in script.events]
    heard = sorted(set(sounds))
    if heard:  # yes and no are equally likely for any script, so that no answer is better without the sound
        others = [sound for sound in SOUNDS if sound not in heard]
        yield [
            (Fraction(1, 2 * len(group)), Question(f"is there a {sound}?", answer, "audio", "is-there"))
            for answer, group in (("yes", heard), ("no", others))
            for sound in group
        ]
    if script.kind in ("quiet", "one"):
        answer = heard[0] if heard else "nothing"
        yield [(Fraction(1, len(HEAR)), Question(text, answer, "audio", "what")) for text in HEAR]
    if script.kind == "one":
        text = f"how many times do you hear the {heard[0]}?"
        yield [(Fraction(1), Question(text, NUMBERS[len(sounds)], "audio", "times"))]
    if len(heard) == len(sounds):  # a sound that comes twice has no one colour
        for sound, phase in script.events:
            text = f"what colour is the {scene.changer.shape} when you hear the {sound}?"
            yield [(Fraction(1), Question(text, scene.changer.colours[phase], "audio+video", "colour-when"))]
    if script.kind == "three":
        text = "what sound do you hear when the light is dim?"
        yield [(Fraction(1), Question(text, sounds[scene.dim_phase], "audio+video", "sound-dim"))]
    if script.kind == "pair":
        for word, answer in (("first", sounds[0]), ("last", sounds[1])):
            yield [
                (Fraction(1, 2), Question(f"which comes {word}, the {a} or the {b}?", answer, "order", f"which-{word}"))
                for a, b in (sounds, sounds[::-1])
            ]


def captions(scene: Scene, script: Script) -> Iterator[Choice]:
    """All sounds in order, alone and with the colours; and sound by sound in any order, which teaches the model to look
    up what belongs to a sound just named. For training only."""
    colours, shape = scene.changer.colours, scene.changer.shape
    heard = [[sound for sound, at in script.events if at == phase] for phase in range(PHASES)]
    caption = " ".join(chain.from_iterable(heard)) or "nothing"
    yield [(Fraction(1), Question("what do you hear, first to last?", caption, CAPTION, "told"))]
    parts = zip(colours, heard, strict=True)
    caption = ", ".join(f"{colour} {' '.join(sounds or ['nothing'])}" for colour, sounds in parts)
    yield [(Fraction(1), Question("what do you see and hear, first to last?", caption, CAPTION, "told-seen"))]
    orders = list(permutations(f"{sound} {colours[phase]}" for sound, phase in script.events))
    text = f"what colour is the {shape} when you hear what sound?"
    yield [
        (Fraction(1, len(orders)), Question(text, ", ".join(order) or "nothing", CAPTION, "told-each"))
        for order in orders
    ]


def draw_questions(scene: Scene, script: Script, channels: Collection[str], seed: int) -> list[Question]:
    """Two questions about what is visible, one of every choice about sounds, and captions; filtered by `channels`.

    Which choices are drawn from never depends on their outcome: the selection itself must not reveal an answer.
    """
    rng = Random(f"questions {seed}")
    seen = list(video_questions(scene))
    kinds = rng.sample(sorted({question.kind for question in seen}), 2)
    drawn = [rng.choice([question for question in seen if question.kind == kind]) for kind in kinds]
    drawn += [choose(choice, rng) for choice in chain(sound_questions(scene, script), captions(scene, script))]
    return [question for question in drawn if question.channel in channels]


def optimum_without_sound(scene: Scene, text: str) -> Fraction:
    """The best possible score from the video without the sound: exact, over every script."""
    return best(_answers(scene), text)


def best(answers: Answers, text: str) -> Fraction:
    """The share of the most likely answer; 1 if the answer does not depend on hidden state."""
    weights = answers.get(text)
    return Fraction(max(weights.values()), sum(weights.values())) if weights else Fraction(1)


@lru_cache(maxsize=64)
def _answers(scene: Scene) -> Answers:
    """Weights of the answers about a scene, over every script."""
    return tally(
        (weight, chain(sound_questions(scene, script), captions(scene, script))) for weight, script in whole(scripts())
    )


def whole(table: Iterable[tuple[Fraction, T]]) -> list[tuple[int, T]]:
    """States with their probabilities as integers, which add up many times faster than fractions."""
    table = list(table)
    denominator = lcm(*(share.denominator for share, _ in table))
    return [(denominator * share.numerator // share.denominator, state) for share, state in table]


def tally(weighted: Iterable[tuple[int, Iterable[Choice]]]) -> Answers:
    """Total weight of each answer to each question, over all weighted states."""
    answers: Answers = defaultdict(lambda: defaultdict(int))
    for weight, choices in weighted:
        for share, question in chain(*choices):
            answers[question.text][question.answer] += weight * (CHOICES * share.numerator // share.denominator)
    return answers
