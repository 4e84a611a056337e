"""What can be perceived of a clip beside what its key frames show and its sound track tells.

In: a scene, its sounds, and the channels that questions are asked about. Out: what each further sense perceives, drawn
independently of all else, and questions, each with the best score that is possible without that sense: exact, over
every state that there could be.

fast   signs that flash between key frames     views   cards that only two further cameras see
depth  which of two cards is near              imu     shakes of the rug, felt by a sensor under it

Two of them are heard in a clip instead of its sounds:
speech  words, all of the same vowels in another order      match  one sound, and a card that it belongs to or not
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from random import Random
from typing import Any

from pave.playroom import distances, matches
from pave.playroom.events import CARDS, FLASHES, SHAKING, SPOKEN
from pave.playroom.questions import CAPTION, Answers, Choice, Question, best, pick, tally, whole
from pave.playroom.world import PHASES, Scene, Script, scripts

BOTH = "audio+fast"
SOUNDING = {"audio", "audio+video", "order", BOTH}  # channels of which a sound is a part
INSTEAD = ("speech", "match")  # senses that are heard instead of sounds


@dataclass(frozen=True)
class Sense:
    """One further sense: its state in the clip of a seed, all states with their chances, and what is asked."""

    draw: Callable[[Scene, int], Any]
    states: Callable[[Scene], Sequence[tuple[Fraction, Any]]]
    questions: Callable[[Scene, Any], Iterator[Choice]]


SENSES = {
    "fast": Sense(FLASHES.draw, FLASHES.states, FLASHES.questions),
    "views": Sense(CARDS.draw, CARDS.states, CARDS.questions),
    "depth": Sense(distances.draw, distances.states, distances.questions),
    "imu": Sense(SHAKING.draw, SHAKING.states, SHAKING.questions),
    "speech": Sense(SPOKEN.draw, SPOKEN.states, SPOKEN.questions),
    "match": Sense(matches.draw, matches.states, matches.questions),
}


def perceived(scene: Scene, channels: Collection[str], seed: int) -> dict[str, Any]:
    """The state of every sense that one of the channels needs. Where sounds, words and matches are asked about, a clip
    has one of them, by its seed."""
    parts = {part for channel in channels for part in channel.split("+")}
    heard = [name for name in INSTEAD if name in parts] + ["sounds"] * (not SOUNDING.isdisjoint(channels))
    turn = Random(f"heard {seed}").choice(heard) if heard else ""
    left_out = {name for name in INSTEAD if name != turn}
    return {name: sense.draw(scene, seed) for name, sense in SENSES.items() if name in parts - left_out}


def draw_more(
    scene: Scene, script: Script, states: Mapping[str, Any], channels: Collection[str], seed: int
) -> list[tuple[Question, Fraction]]:
    """Questions about these states, cut to `channels`, with the best score without the sense."""
    drawn = []
    for name, state in states.items():
        rng = Random(f"{name} questions {seed}")
        for choice in SENSES[name].questions(scene, state):
            question = pick(choice, rng)
            drawn.append((question, best(_answers(name, scene), question.text)))
    if BOTH in channels:
        for ((_, question),) in sign_and_sound(script, states["fast"]):
            drawn.append((question, best(_together(), question.text)))
    return [(question, optimum) for question, optimum in drawn if question.channel in channels]


def sign_and_sound(script: Script, flashes: Script) -> Iterator[Choice]:
    """What only those can tell who see the signs and hear the sounds: where there is one of each in every phase. The
    caption, for training, tells phase by phase what there is."""
    phases = [[[name for name, at in each.events if at == i] for each in (flashes, script)] for i in range(PHASES)]
    told = ", ".join(f"{' '.join(seen) or 'nothing'} {' '.join(heard) or 'nothing'}" for seen, heard in phases)
    yield [(Fraction(1), Question("what sign do you see when you hear what sound?", told, CAPTION, "told-both"))]
    if script.kind != "three" or flashes.kind != "three":
        return
    heard, seen = ([name for name, _ in each.events] for each in (script, flashes))
    for sound, sign in zip(heard, seen, strict=True):
        yield [(Fraction(1), Question(f"what sound do you hear when you see the {sign}?", sound, BOTH, "sound-at"))]
        yield [(Fraction(1), Question(f"what sign do you see when you hear the {sound}?", sign, BOTH, "sign-at"))]


@lru_cache(maxsize=64)
def _answers(name: str, scene: Scene) -> Answers:
    """What a sense could perceive in a scene, over all its states."""
    sense = SENSES[name]
    return tally((weight, sense.questions(scene, state)) for weight, state in whole(sense.states(scene)))


@cache
def _together() -> Answers:
    """The same for flashes and sounds, which hang on no scene."""
    pairs = product(whole(scripts()), whole(FLASHES.scripts))
    return tally((a * b, sign_and_sound(script, flashes)) for (a, script), (b, flashes) in pairs)
