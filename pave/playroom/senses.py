"""What can be perceived of a clip beside what its key frames show and its sound track tells.

In: a scene, its sounds, and the channels that questions are asked about. Out: what each further sense perceives, drawn
independently of all else, and questions, each with the best score that is possible without that sense: exact, over
every state that there could be.

fast   signs that flash between key frames     views   cards that only two further cameras see
depth  which of two cards is near              imu     shakes of the rug, felt by a sensor under it

Two of them are heard in a clip instead of its sounds:
speech  words, all of the same vowels in another order      match  one sound, and a card that it belongs to or not

Only where questions need signs and sounds at once (`audio+fast`), the signs hang on the sounds: they are other words,
and three where three sounds are. One who perceives either then knows something of the other; the optima reckon with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import permutations
from random import Random
from typing import Any

from pave.playroom import distances, matches
from pave.playroom.events import CARDS, FLASHES, SHAKING, SPOKEN
from pave.playroom.questions import CAPTION, Answers, Choice, Question, best, optimum_without_sound, tally, whole
from pave.playroom.world import PHASES, Scene, Script, Table, among, choose, draw_script, scripts

BOTH = "audio+fast"
SOUNDING = {"audio", "audio+video", "order", BOTH}  # channels of which a sound is a part
INSTEAD = ("speech", "match")  # senses that are heard instead of sounds


@dataclass(frozen=True)
class Sense:
    """One further sense: its state in the clip of a seed, all states with their chances, and what is asked."""

    draw: Callable[[Scene, int], Any]
    states: Callable[[Scene], Table[Any]]
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
    drawn = {name: sense.draw(scene, seed) for name, sense in SENSES.items() if name in parts - left_out}
    if BOTH in channels:
        drawn["fast"] = choose(_signs_beside(draw_script(seed)), Random(f"{BOTH} {seed}"))
    return drawn


def draw_more(
    scene: Scene, script: Script, states: Mapping[str, Any], channels: Collection[str], seed: int
) -> list[tuple[Question, Fraction]]:
    """Questions about these states, cut to `channels`, with the best score without the sense."""
    drawn = []
    for name, state in states.items():
        rng = Random(f"{name} questions {seed}")
        answers = _answers(name, scene, script if name == "fast" and BOTH in channels else None)
        for choice in SENSES[name].questions(scene, state):
            question = choose(choice, rng)
            drawn.append((question, best(answers, question.text)))
    if BOTH in channels:
        rng = Random(f"{BOTH} questions {seed}")
        for choice in sign_and_sound(script, states["fast"]):
            question = choose(choice, rng)
            drawn.append((question, best(_both(), question.text)))
    return [(question, optimum) for question, optimum in drawn if question.channel in channels]


def unheard(scene: Scene, text: str, states: Mapping[str, Any], channels: Collection[str]) -> Fraction:
    """The best score without sound of a question about sounds."""
    return optimum_without_sound(scene, text, _sounds_beside(states["fast"]) if BOTH in channels else None)


def sign_and_sound(script: Script, signs: Script) -> Iterator[Choice]:
    """What only those can tell who see the signs and hear the sounds: where there is one of each in every phase. The
    captions, for training, tell pair by pair in any order, which teaches to look up what belongs to a word."""
    phases = [[[name for name, at in each.events if at == i] for each in (script, signs)] for i in range(PHASES)]
    told = [[" ".join(each) or "nothing" for each in phase] for phase in phases if any(phase)]
    yield _told("what sign do you see when you hear what sound?", [f"{sound} {sign}" for sound, sign in told])
    yield _told("what sound do you hear when you see what sign?", [f"{sign} {sound}" for sound, sign in told])
    if script.kind != "three":
        return
    for sound, sign in told:
        yield [(Fraction(1), Question(f"what sound do you hear when you see the {sign}?", sound, BOTH, "sound-at"))]
        yield [(Fraction(1), Question(f"what sign do you see when you hear the {sound}?", sign, BOTH, "sign-at"))]


def _told(text: str, pairs: Sequence[str]) -> Choice:
    orders = [", ".join(order) or "nothing" for order in permutations(pairs)]
    return [(Fraction(1, len(orders)), Question(text, order, CAPTION, "told-both")) for order in orders]


@cache
def _signs_beside(sounds: Script) -> Table[Script]:
    """The signs that there could be beside these sounds, where questions need both."""
    words = {name for name, _ in sounds.events}
    return among(
        (share, signs)
        for share, signs in FLASHES.scripts
        if (signs.kind == "three") == (sounds.kind == "three") and words.isdisjoint(name for name, _ in signs.events)
    )


@cache
def _pairs() -> list[tuple[Fraction, tuple[Script, Script]]]:
    """All sounds and signs of such clips."""
    return [(a * b, (sounds, signs)) for a, sounds in scripts() for b, signs in _signs_beside(sounds)]


@lru_cache(maxsize=256)
def _sounds_beside(signs: Script) -> Table[Script]:
    """The sounds that there could be beside these signs."""
    return among((share, sounds) for share, (sounds, seen) in _pairs() if seen == signs)


@lru_cache(maxsize=64)
def _answers(name: str, scene: Scene, sounds: Script | None) -> Answers:
    """What a sense could perceive in a scene, over all its states; or the signs that there could be beside sounds."""
    sense = SENSES[name]
    states = _signs_beside(sounds) if sounds else sense.states(scene)
    return tally((weight, sense.questions(scene, state)) for weight, state in whole(states))


@cache
def _both() -> Answers:
    """The same for signs and sounds together, which hang on no scene."""
    return tally((weight, sign_and_sound(*pair)) for weight, pair in whole(_pairs()))
