"""What can be perceived of a clip beside what its key frames show and its sound track tells.

In: a scene, its sounds, and the channels that questions are asked about. Out: what each further sense perceives, drawn
independently of all else, and questions, each with the best score that is possible without that sense: exact, over
every state that there could be.

fast   signs that flash between key frames     views   cards that only two further cameras see
depth  which of two cards is near              imu     shakes of the rug, felt by a sensor under it

Three of them are in a clip instead of its sounds:
speech  words, all of the same vowels in another order      match  one sound, and a card that it belongs to or not
audio+fast  things of which each is heard, or seen as a sign between key frames, so that both senses are needed
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

SOUNDING = {"audio", "audio+video", "order"}  # channels of which a sound is a part
INSTEAD = ("speech", "match", mixed.BOTH)  # what is there instead of sounds


@dataclass(frozen=True)
class Sense:
    """One further sense: its state in the clip of a seed, all states with their chances, and what is asked."""

    draw: Callable[[Scene, int], Any]
    states: Callable[[Scene], Table[Any]]
    questions: Callable[[Scene, Any], Iterator[Choice]]
    alone: Callable[[Scene, Any, str], dict[str, Fraction]] | None = None  # best scores with a part of it


SENSES = {
    "fast": Sense(FLASHES.draw, FLASHES.states, FLASHES.questions),
    "views": Sense(CARDS.draw, CARDS.states, CARDS.questions),
    "depth": Sense(distances.draw, distances.states, distances.questions),
    "imu": Sense(SHAKING.draw, SHAKING.states, SHAKING.questions),
    "speech": Sense(SPOKEN.draw, SPOKEN.states, SPOKEN.questions),
    "match": Sense(matches.draw, matches.states, matches.questions),
    mixed.BOTH: Sense(mixed.draw, mixed.states, mixed.questions, mixed.alone),
}


def perceived(scene: Scene, channels: Collection[str], seed: int) -> dict[str, Any]:
    """The state of every sense that one of the channels needs. Of sounds and what is there instead of them, a clip has
    one, by its seed."""
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
    """Questions about these states, cut to `channels`, with the best score without the sense (`optimum`), and with each
    of its parts alone."""
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
    """What a sense could perceive in a scene, over all its states."""
    sense = SENSES[name]
    return tally((weight, sense.questions(scene, state)) for weight, state in whole(sense.states(scene)))
