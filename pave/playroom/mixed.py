"""Things of which some are heard and the others seen as signs between key frames: who lacks a sense lacks some of them.
In: a `Scene`. Out: what is heard, what is seen, and questions that do not tell which is which.
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
    """All that happens, and which of it is heard."""

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
        return Script(self.script.kind, tuple(event for event, here in events if here == audible))


def states(scene: Scene) -> Table[Mixed]:
    """Every one of the things is heard or seen, as a coin falls."""
    return _states()


@cache
def _states() -> Table[Mixed]:
    return [
        (share * Fraction(1, 2 ** len(script.events)), Mixed(script, audible))
        for share, script in THINGS.scripts
        for audible in product((False, True), repeat=len(script.events))
    ]


def draw(scene: Scene, seed: int) -> Mixed:
    """What happens in the clip of a seed."""
    return choose(states(scene), Random(f"{BOTH} {seed}"))


def alone(scene: Scene, state: Mixed, text: str) -> dict[str, Fraction]:
    """The best chance of a right answer for one who hears, and for one who sees, and lacks the other sense: exact."""
    known = {"hearing": state.heard, "seeing": state.seen}
    return {way: best(_left(way, scene, part), text) for way, part in known.items()}


@lru_cache(maxsize=64)
def _left(way: str, scene: Scene, known: Script) -> Answers:
    """What could be asked and answered in a scene of which so much is known."""
    return tally((weight, questions(scene, state)) for weight, state in whole(_by_part(way)[known.events]))


@cache
def _by_part(way: str) -> dict[tuple[tuple[str, int], ...], Table[Mixed]]:
    parts = defaultdict(list)
    for share, state in _states():
        parts[(state.heard if way == "hearing" else state.seen).events].append((share, state))
    return dict(parts)


def questions(scene: Scene, state: Mixed) -> Iterator[Choice]:
    """All that can be asked; captions are for training."""
    return THINGS.questions(scene, state.script)
