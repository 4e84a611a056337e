"""What is asked about a clip: words, channel, answer, and the best score that is possible without a channel.

In: a `Scene` and a `Script`. Out: `Question`s, each with the probability that it is drawn. A channel is what carries
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
CAPTION = "caption"  # not asked when answers are counted; one tells much more of a clip than a word does
NUMBERS = ("none", "one", "two", "three", "four")
HEAR = ("what sound do you hear?", "what do you hear?")


@dataclass(frozen=True)
class Question:
    """One question with its one right answer. `kind` groups questions of the same form."""

    text: str
    answer: str
    channel: str
    kind: str


def video_questions(scene: Scene) -> Iterator[Question]:
    """All that can be asked of what is seen."""
    changer = scene.changer
    yield Question("how many toys are there?", NUMBERS[len(scene.toys)], "video", "count")
    for toy in scene.toys[1:]:
        yield Question(f"what colour is the {toy.shape}?", toy.colours[0], "video", "colour")
        yield Question(f"what shape is the {toy.colours[0]} toy?", toy.shape, "video", "shape")
    for toy in scene.toys:
        if not toy.way:  # who moves may change sides
            yield Question(f"is the {toy.shape} on the left or on the right?", toy.side, "video", "side")
    for word, colour in (("first", changer.colours[0]), ("last", changer.colours[-1])):
        yield Question(f"what colour is the {changer.shape} {word}?", colour, "video", "colour-at")
    dim = changer.colours[scene.dim_phase]
    yield Question(f"what colour is the {changer.shape} when the light is dim?", dim, "video", "colour-dim")


Choice = Table[Question]
Answers = dict[str, dict[str, int]]  # question -> answer -> weight
CHOICES = 120  # a multiple of the denominators of all choices: 1, 2, 4, 6, 8, 10 and the orders of up to three sounds


def sound_questions(scene: Scene, script: Script) -> Iterator[Choice]:
    """All that can be asked of what is heard: choices, each of them one question to be drawn by its probability."""
    sounds = [sound for sound, _ in script.events]
    heard = sorted(set(sounds))
    if heard:  # yes and no are equally likely whatever is heard, and so is every sound
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
    """All that is heard, in order, alone and beside what is seen; and sound by sound in any order, which teaches to
    look up what belongs to a sound that has just been named. For training."""
    colours, shape = scene.changer.colours, scene.changer.shape
    heard = [[sound for sound, at in script.events if at == phase] for phase in range(PHASES)]
    told = " ".join(chain.from_iterable(heard)) or "nothing"
    yield [(Fraction(1), Question("what do you hear, first to last?", told, CAPTION, "told"))]
    told = ", ".join(f"{colour} {' '.join(here or ['nothing'])}" for colour, here in zip(colours, heard, strict=True))
    yield [(Fraction(1), Question("what do you see and hear, first to last?", told, CAPTION, "told-seen"))]
    orders = list(permutations(f"{sound} {colours[phase]}" for sound, phase in script.events))
    text = f"what colour is the {shape} when you hear what sound?"
    yield [
        (Fraction(1, len(orders)), Question(text, ", ".join(order) or "nothing", CAPTION, "told-each"))
        for order in orders
    ]


def draw_questions(scene: Scene, script: Script, channels: Collection[str], seed: int) -> list[Question]:
    """Two questions about what is seen, every choice about what is heard, and captions, cut to `channels`.

    Whether a choice is asked never depends on how it would come out: the selection itself must tell nothing.
    """
    rng = Random(f"questions {seed}")
    seen = list(video_questions(scene))
    kinds = rng.sample(sorted({question.kind for question in seen}), 2)
    drawn = [rng.choice([question for question in seen if question.kind == kind]) for kind in kinds]
    drawn += [choose(choice, rng) for choice in chain(sound_questions(scene, script), captions(scene, script))]
    return [question for question in drawn if question.channel in channels]


def optimum_without_sound(scene: Scene, text: str) -> Fraction:
    """The best chance of a right answer for one who sees all and hears nothing: exact, over every script."""
    return best(_answers(scene), text)


def best(answers: Answers, text: str) -> Fraction:
    """The share of the most likely answer; 1 for what no hidden state decides."""
    weights = answers.get(text)
    return Fraction(max(weights.values()), sum(weights.values())) if weights else Fraction(1)


@lru_cache(maxsize=64)
def _answers(scene: Scene) -> Answers:
    """What could be heard in a scene, over every script."""
    return tally(
        (weight, chain(sound_questions(scene, script), captions(scene, script))) for weight, script in whole(scripts())
    )


def whole(table: Iterable[tuple[Fraction, T]]) -> list[tuple[int, T]]:
    """States with their probabilities as integers, which add up many times faster than fractions do."""
    table = list(table)
    denominator = lcm(*(share.denominator for share, _ in table))
    return [(denominator * share.numerator // share.denominator, state) for share, state in table]


def tally(weighted: Iterable[tuple[int, Iterable[Choice]]]) -> Answers:
    """Over every state that there could be, with its weight: how likely each answer to each question is."""
    answers: Answers = defaultdict(lambda: defaultdict(int))
    for weight, choices in weighted:
        for share, question in chain(*choices):
            answers[question.text][question.answer] += weight * (CHOICES * share.numerator // share.denominator)
    return answers
