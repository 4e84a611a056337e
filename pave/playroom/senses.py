"""Further senses of a clip, besides its key frames and its sound track.

In: a scene, its sounds, and the channels of the questions. Out: the state of each further sense, drawn independently
of everything else, and questions, each with the best possible score without that sense: exact, over all states.

fast   signs that flash between key frames     views   cards that only two further cameras see
depth  which of two cards is near              imu     shakes of the rug, felt by a sensor under it

Four replace the sounds of a clip:
speech    words of the same vowels in different orders    match  one sound, and a card that it matches or not
conflict  the same sound and card, of which one is asked
audio+fast  events, each either a sound or a sign between key frames, so that both senses are needed
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import Any

from pave.playroom import distances, matches, mixed
from pave.playroom.events import CARDS, FLASHES, SHAKING, SPOKEN
from pave.playroom.questions import Answers, Choice, Question, best, tally, whole
from pave.playroom.world import Scene, Table, choose

SOUNDING = {"audio", "audio+video", "order"}  # channels that ask about sounds
INSTEAD = ("speech", "match", "conflict", mixed.BOTH)  # senses that replace the sounds of a clip


@dataclass(frozen=True)
class Sense:
    """One further sense: its state for a seed, all states with their probabilities, and the questions."""

    draw: Callable[[Scene, int], Any]
    states: Callable[[Scene], Table[Any]]
    questions: Callable[[Scene, Any], Iterator[Choice]]
    alone: Callable[[Scene, Any, str], dict[str, Fraction]] | None = None  # best scores with each part of the sense


SENSES = {
    "fast": Sense(FLASHES.draw, FLASHES.states, FLASHES.questions),
    "views": Sense(CARDS.draw, CARDS.states, CARDS.questions),
    "depth": Sense(distances.draw, distances.states, distances.questions),
    "imu": Sense(SHAKING.draw, SHAKING.states, SHAKING.questions),
    "speech": Sense(SPOKEN.draw, SPOKEN.states, SPOKEN.questions),
    "match": Sense(matches.draw, matches.states, matches.questions),
    "conflict": Sense(matches.draw, matches.states, matches.asked),
    mixed.BOTH: Sense(mixed.draw, mixed.states, mixed.questions, mixed.alone),
}


def draw_states(scene: Scene, channels: Collection[str], seed: int) -> dict[str, Any]:
    """The state of every sense that the channels need. A clip has either sounds or one of their replacements, chosen by
    its seed."""
    parts = {part for channel in channels for part in _parts(channel)}
    heard = [name for name in INSTEAD if name in parts]
    if not SOUNDING.isdisjoint(channels):
        heard.append("sounds")
    turn = Random(f"heard {seed}").choice(heard) if heard else ""
    left_out = {name for name in INSTEAD if name != turn}
    left_out |= {"fast"} if turn == mixed.BOTH else set()
    return {name: sense.draw(scene, seed) for name, sense in SENSES.items() if name in parts - left_out}


def _parts(channel: str) -> list[str]:
    return [mixed.BOTH] if channel.startswith(mixed.BOTH) else channel.split("+")


def draw_more(
    scene: Scene, states: Mapping[str, Any], channels: Collection[str], seed: int
) -> list[tuple[Question, dict[str, Fraction]]]:
    """Questions about these states, filtered by `channels`, with the best score without the sense (`optimum`) and with
    each of its parts alone."""
    drawn = []
    for name, state in states.items():
        rng, sense = Random(f"{name} questions {seed}"), SENSES[name]
        for choice in sense.questions(scene, state):
            question = choose(choice, rng)
            if question.channel in channels:
                parts = sense.alone(scene, state, question.text) if sense.alone else {}
                drawn.append((question, {"optimum": best(_answers(name, scene), question.text), **parts}))
    return drawn


@lru_cache(maxsize=64)
def _answers(name: str, scene: Scene) -> Answers:
    """Weights of the answers about a sense in a scene, over all its states."""
    sense = SENSES[name]
    return tally((weight, sense.questions(scene, state)) for weight, state in whole(sense.states(scene)))
