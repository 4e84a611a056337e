"""Events of which some are sounds and the others signs between key frames: without one of the senses some are missing.
In: a `Scene`. Out: the audible and the visible events, and questions that do not reveal which is which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from random import Random

from pave.playroom.events import Events
from pave.playroom.questions import Answers, Choice, best, tally, whole
from pave.playroom.world import Scene, Script, Table, choose

BOTH = "audio+fast"
THINGS = Events(BOTH, "see or hear", "thing")


@dataclass(frozen=True)
class Mixed:
    """All events, and which of them are audible."""

    script: Script
    audible: tuple[bool, ...]

    @property
    def heard(self) -> Script:
        return self._part(True)

    @property
    def seen(self) -> Script:
        return self._part(False)

    def _part(self, audible: bool) -> Script:
        events = zip(self.script.events, self.audible, strict=True)
        return Script(self.script.kind, tuple(event for event, is_audible in events if is_audible == audible))


def states(scene: Scene) -> Table[Mixed]:
    """All states: each event is audible with probability 1/2, else visible."""
    return _states()


@cache
def _states() -> Table[Mixed]:
    return [
        (share * Fraction(1, 2 ** len(script.events)), Mixed(script, audible))
        for share, script in THINGS.scripts
        for audible in product((False, True), repeat=len(script.events))
    ]


def draw(scene: Scene, seed: int) -> Mixed:
    """The events for a seed."""
    return choose(states(scene), Random(f"{BOTH} {seed}"))


def alone(scene: Scene, state: Mixed, text: str) -> dict[str, Fraction]:
    """The best possible score with sound alone (`hearing`), and with vision alone (`seeing`): exact."""
    known = {"hearing": state.heard, "seeing": state.seen}
    return {way: best(_answers_given(way, scene, part), text) for way, part in known.items()}


@lru_cache(maxsize=1024)  # a scene has 506
def _answers_given(way: str, scene: Scene, known: Script) -> Answers:
    """Answers and their weights, over all states of the scene that agree with the known part."""
    return tally((weight, questions(scene, state)) for weight, state in whole(_by_part(way)[known.events]))


@cache
def _by_part(way: str) -> dict[tuple[tuple[str, int], ...], Table[Mixed]]:
    parts = defaultdict(list)
    for share, state in _states():
        parts[(state.heard if way == "hearing" else state.seen).events].append((share, state))
    return dict(parts)


def questions(scene: Scene, state: Mixed) -> Iterator[Choice]:
    """All possible questions; captions are for training only."""
    return THINGS.questions(scene, state.script)
