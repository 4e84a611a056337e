"""What happens beside sounds, in the middle of colour phases, one of a few words at a time: flashes, and pushes.

In: a seed. Out: a `Script` of such events, drawn independently of what is seen and heard, and what is asked about it.
A flash lights the rug for three pictures between two key frames; a push is felt by a sensor under the rug.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations, permutations
from random import Random

import numpy as np

from pave.playroom import draw
from pave.playroom.questions import CAPTION, NUMBERS, Choice, Question
from pave.playroom.world import FPS, FRAMES, PHASES, SECONDS, Scene, Script

FLASH_PICTURES = 3
TINT = 0.6  # how much of a picture is the flash's colour
IMU_RATE, IMU_DIM = 100, 6  # rows per second: acceleration x y z in g, turning x y z in rad/s
PUSH_SECONDS = 0.3
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, 1.0), "down": (0.0, -1.0)}


@dataclass(frozen=True)
class Events:
    """One kind of event, and the words in which it is asked about."""

    sense: str
    words: tuple[str, ...]
    which: str
    times: str
    place: str  # with {}: first or last
    when: str  # with {}: a word
    told: str

    @cached_property
    def scripts(self) -> list[tuple[Fraction, Script]]:
        """Every script with its exact probability. one: one word in one to three phases; three: a word in each phase,
        all different."""
        found = []
        for word in self.words:
            for times in (1, 2, 3):
                places = list(combinations(range(PHASES), times))
                share = Fraction(1, 3 * len(self.words) * 3 * len(places))
                found += [(share, Script("one", tuple((word, phase) for phase in phases))) for phases in places]
        orders = list(permutations(self.words, PHASES))
        share = Fraction(2, 3 * len(orders))
        return found + [(share, Script("three", tuple(zip(order, range(PHASES), strict=True)))) for order in orders]

    def draw(self, scene: Scene, seed: int) -> Script:
        """The events of a seed."""
        shares, known = zip(*self.scripts, strict=True)
        return Random(f"{self.sense} {seed}").choices(known, [float(share) for share in shares])[0]

    def states(self, scene: Scene) -> list[tuple[Fraction, Script]]:
        return self.scripts

    def questions(self, scene: Scene, script: Script) -> Iterator[Choice]:
        """All that can be asked, as choices of one; captions are for training."""
        words = [word for word, _ in script.events]

        def ask(text: str, answer: str, kind: str, channel: str = self.sense) -> Choice:
            return [(Fraction(1), Question(text, answer, channel, kind))]

        if script.kind == "one":
            yield ask(self.which, words[0], "which")
            yield ask(self.times, NUMBERS[len(words)], "times")
        else:
            for place, word in (("first", words[0]), ("last", words[-1])):
                yield ask(self.place.format(place), word, f"which-{place}")
        colours, shape = scene.changer.colours, scene.changer.shape
        if len(set(words)) == len(words):
            for word, phase in script.events:
                text = f"what colour is the {shape} when {self.when.format(word)}?"
                yield ask(text, colours[phase], "colour-when", f"{self.sense}+video")
        happened = {phase: word for word, phase in script.events}
        told = ", ".join(f"{colours[phase]} {happened.get(phase, 'nothing')}" for phase in range(PHASES))
        yield ask(self.told, told, "told", CAPTION)


FLASHES = Events(
    sense="fast",
    words=("red", "green", "blue", "yellow"),
    which="what colour is the light?",
    times="how many times do you see the light?",
    place="what colour is the {} light?",
    when="the light is {}",
    told="what do you see when the light is what colour?",
)
PUSHES = Events(
    sense="imu",
    words=tuple(DIRECTIONS),
    which="which way is the push?",
    times="how many times is there a push?",
    place="which way is the {} push?",
    when="the push is {}",
    told="what do you see when the push is which way?",
)


def put_on(frames: np.ndarray, scene: Scene, script: Script) -> None:
    """Draw the flashes into all pictures of a clip (t y x 3); none is seen in or beside a key frame."""
    rng = np.random.default_rng([scene.seed, 2])
    keys = np.round(draw.key_times(FRAMES, FPS) * FPS).astype(int)
    for word, phase in script.events:
        middle = scene.phase_middle(phase) * FPS
        before = min(range(FRAMES - 1), key=lambda i: abs((keys[i] + keys[i + 1]) / 2 - middle))
        # two dark pictures on either side, so that no codec carries light over to a key frame
        first = rng.integers(keys[before] + 3, keys[before + 1] - 1 - FLASH_PICTURES)
        lit = frames[first : first + FLASH_PICTURES].astype(np.float32)
        lit += TINT * (np.array(draw.PAINT[word], np.float32) - lit)
        frames[first : first + FLASH_PICTURES] = lit.round().astype(np.uint8)


def felt(scene: Scene, script: Script, seed: int) -> np.ndarray:
    """What the sensor under the rug measures: float32 (τ 6), noise, gravity and a bump for every push."""
    rng = np.random.default_rng([seed, 3])
    rows = rng.normal(0, 0.02, (int(SECONDS * IMU_RATE), IMU_DIM))
    rows[:, 2] += 1.0
    count = int(PUSH_SECONDS * IMU_RATE)
    bump = np.sin(np.linspace(0, 2 * np.pi, count))  # sets out, and comes to rest
    for word, phase in script.events:
        start = int((scene.phase_middle(phase) + rng.uniform(-0.12, 0.12) - PUSH_SECONDS / 2) * IMU_RATE)
        strength = rng.uniform(0.3, 0.6)
        for axis, part in enumerate(DIRECTIONS[word]):
            rows[start : start + count, axis] += strength * part * bump
            rows[start : start + count, 4 - axis] += 0.5 * strength * part * bump
    return rows.astype(np.float32)
