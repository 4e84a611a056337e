"""Whether a sound matches a card: a card on the rug, and a sound while it is shown.
In: a `Scene`. Out: which card and which sound, questions, and the card drawn into frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random

import numpy as np

from pave.playroom import draw as pictures
from pave.playroom import signs
from pave.playroom.questions import CAPTION, HEAR, Choice, Question
from pave.playroom.world import FPS, FRAMES, PHASES, SOUNDS, Scene, Script, Table, choose


@dataclass(frozen=True)
class Match:
    """One card and one sound in one phase."""

    card: str
    sound: str
    phase: int

    @property
    def heard(self) -> Script:
        return Script("one", ((self.sound, self.phase),))


def states(scene: Scene) -> Table[Match]:
    """All states; card and sound match with probability 1/2."""
    return [
        (Fraction(1, 2 * len(SOUNDS) * PHASES * len(group)), Match(card, sound, phase))
        for card in SOUNDS
        for group in ((card,), tuple(name for name in SOUNDS if name != card))
        for sound in group
        for phase in range(PHASES)
    ]


def draw(scene: Scene, seed: int) -> Match:
    """Card and sound for a seed."""
    return choose(states(scene), Random(f"match {seed}"))


def questions(scene: Scene, state: Match) -> Iterator[Choice]:
    """All possible questions; the caption is for training only."""
    same = "yes" if state.card == state.sound else "no"
    yield [(Fraction(1), Question("does the sound belong to the picture?", same, "match", "match"))]
    text = "what sign do you see and what sound do you hear?"
    yield [(Fraction(1), Question(text, f"{state.card} {state.sound}", CAPTION, "told"))]


def asked(scene: Scene, state: Match) -> Iterator[Choice]:
    """All possible questions about one of the two, whatever the other says."""
    heard = [Question(text, state.sound, "conflict", "heard") for text in HEAR]
    yield [(Fraction(1, len(HEAR)), each) for each in heard]
    yield [(Fraction(1), Question("what sign do you see?", state.card, "conflict", "seen"))]


def show(frames: np.ndarray, scene: Scene, state: Match) -> None:
    """Draw the card into the frames of a clip (t y x 3) around the key frame nearest to the middle of its phase."""
    keys = pictures.key_times(FRAMES, FPS)
    nearest = abs(pictures.pictures()[:, None] - keys).argmin(1)
    shown = np.flatnonzero(nearest == abs(keys - scene.phase_middle(state.phase)).argmin())
    rng = np.random.default_rng([scene.seed, 8])
    signs.draw_card(frames[shown[0] : shown[-1] + 1], state.card, signs.free_squares(scene), rng)
