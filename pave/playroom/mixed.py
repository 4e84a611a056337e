"""Things of which some are heard and the others seen as signs between key frames: who lacks a sense lacks some of them.
In: a `Scene`. Out: what is heard, what is seen, and questions that do not tell which is which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from random import Random

from pave.playroom.events import Events
from pave.playroom.questions import Choice
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


def questions(scene: Scene, state: Mixed) -> Iterator[Choice]:
    """All that can be asked; captions are for training."""
    return THINGS.questions(scene, state.script)
