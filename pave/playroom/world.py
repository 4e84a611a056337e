"""Scenes and sounds of the Playroom as finite distributions, so that the best score without a channel is exact.

In: a seed. Out: a `Scene` (everything visible) and a `Script` (everything audible), drawn independently of each other:
nothing visible reveals the sounds. Knows nothing of pixels, samples or the text of questions.

A clip lasts four seconds. One toy, the changer, takes three colours in turn; the other toys keep theirs. One toy may
move to another square of the four-by-four rug. The light is dim for a while. Sounds happen in the middle of the
changer's three phases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations
from random import Random
from typing import Literal, TypeVar, get_args

from pave.errors import UsageError

SECONDS = 4.0
FPS = 20
SIZE = 64  # pixels per side
GRID = 4  # squares per side of the rug
FRAMES = 8  # key frames of the embedded base
SHAPES = ("ball", "cube", "cone", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
SOUNDS = ("beep", "horn", "bell", "drum", "hiss", "siren")
PHASES = 3
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
Split = Literal["train", "val", "test"]
T = TypeVar("T")
Table = Sequence[tuple[Fraction, T]]  # all outcomes, each with its exact probability


@dataclass(frozen=True)
class Toy:
    """A shape on the rug, with one colour, or one per phase; squares are (row, column)."""

    shape: str
    colours: tuple[str, ...]
    square: tuple[int, int]
    goal: tuple[int, int]  # equal to `square` for a toy that stays

    @property
    def way(self) -> str | None:
        """The direction of its move, None for a toy that does not move."""
        step = (self.goal[0] - self.square[0], self.goal[1] - self.square[1])
        signs = tuple((part > 0) - (part < 0) for part in step)
        return next((word for word, way in WAYS.items() if way == signs), None)

    @property
    def side(self) -> str:
        """The half of the rug it starts on."""
        return "left" if self.square[1] < GRID // 2 else "right"


@dataclass(frozen=True)
class Scene:
    """Everything visible. The first toy is the changer; times are in seconds."""

    toys: tuple[Toy, ...]
    changes: tuple[float, float]  # when the changer takes its second and third colour
    dim_phase: int  # the phase in the middle of which the light is dim
    move_at: float  # start of the move, if a toy moves
    seed: int  # of everything that no question is about: jitter, tint, noise

    @property
    def changer(self) -> Toy:
        return self.toys[0]

    @property
    def mover(self) -> Toy | None:
        return next((toy for toy in self.toys if toy.way), None)

    def phase_middle(self, phase: int) -> float:
        """The middle of a colour phase in seconds."""
        edges = (0.0, *self.changes, SECONDS)
        return (edges[phase] + edges[phase + 1]) / 2

    @property
    def split(self) -> Split:
        """The split of this scene. Splits share no changer: a shape with its three colours is in one split only."""
        state = f"{self.changer.shape}:{','.join(self.changer.colours)}"
        bucket = int.from_bytes(hashlib.sha256(state.encode()).digest()[:4], "big") % 10
        return "test" if bucket == 0 else "val" if bucket == 1 else "train"


@dataclass(frozen=True)
class Script:
    """Everything audible: `kind` of script, and (sound, phase) in order of time.

    quiet: no sound. one: one sound in one to three of the phases. three: a different sound in every phase.
    pair: two different sounds within one second, around the middle of one phase.
    """

    kind: Literal["quiet", "one", "three", "pair"]
    events: tuple[tuple[str, int], ...]


def draw_scene(seed: int, split: Split | None = None) -> Scene:
    """The scene for a seed; with `split`, the first one drawn that belongs to it."""
    if split not in (None, *get_args(Split)):
        raise UsageError(f"split={split!r}: use one of {', '.join(get_args(Split))}")
    rng = Random(f"scene {seed}")
    while True:
        scene = _scene(rng)
        if split is None or scene.split == split:
            return scene


def _scene(rng: Random) -> Scene:
    count = rng.choice((2, 3, 4))
    shapes = rng.sample(SHAPES, count)
    colours = rng.sample(COLOURS, PHASES + count - 1)
    squares = rng.sample([(row, column) for row in range(GRID) for column in range(GRID)], count)
    mover = rng.randrange(-1, count)  # -1: no toy moves
    toys = []
    for i, (shape, square) in enumerate(zip(shapes, squares, strict=True)):
        own = tuple(colours[:PHASES]) if i == 0 else (colours[PHASES + i - 1],)
        goals = _goals(square, squares) if i == mover else {}
        # the direction is drawn before the square, so that directions are as equally likely as the rug allows
        way: str = rng.choice(sorted(goals)) if goals else ""
        toys.append(Toy(shape, own, square, rng.choice(goals[way]) if way else square))
    return Scene(
        toys=tuple(toys),
        changes=(rng.uniform(1.2, 1.4), rng.uniform(2.6, 2.8)),
        dim_phase=rng.randrange(PHASES),
        move_at=rng.uniform(1.2, 2.2),
        seed=rng.getrandbits(32),
    )


def _goals(start: tuple[int, int], taken: list[tuple[int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Squares that can be reached in a straight line over free squares, by direction."""
    goals: dict[str, list[tuple[int, int]]] = {}
    for word, (down, right) in WAYS.items():
        row, column = start[0] + down, start[1] + right
        while 0 <= row < GRID and 0 <= column < GRID and (row, column) not in taken:
            goals.setdefault(word, []).append((row, column))
            row, column = row + down, column + right
    return goals


def scripts() -> Iterator[tuple[Fraction, Script]]:
    """Every script with its exact probability. Kinds: quiet 1/28, one 6/28, three 12/28, pair 9/28.

    `quiet` is as likely as each sound in `one`, so that "what do you hear?" has seven equally likely answers.
    """
    yield Fraction(1, 28), Script("quiet", ())
    for sound in SOUNDS:
        for times in (1, 2, 3):
            places = list(combinations(range(PHASES), times))
            for phases in places:
                share = Fraction(6, 28) / (len(SOUNDS) * 3 * len(places))
                yield share, Script("one", tuple((sound, phase) for phase in phases))
    triples = list(permutations(SOUNDS, PHASES))
    for triple in triples:
        yield Fraction(12, 28) / len(triples), Script("three", tuple(zip(triple, range(PHASES), strict=True)))
    pairs = list(permutations(SOUNDS, 2))
    for first, second in pairs:
        for phase in range(PHASES):
            share = Fraction(9, 28) / (len(pairs) * PHASES)
            yield share, Script("pair", ((first, phase), (second, phase)))


def draw_script(seed: int) -> Script:
    """The script for a seed."""
    return choose(_script_table(), Random(f"script {seed}"))


@cache
def _script_table() -> Table[Script]:
    return list(scripts())


def choose(table: Table[T], rng: Random) -> T:
    """Draw one outcome by its probability."""
    shares, known = zip(*table, strict=True)
    return rng.choices(known, [float(share) for share in shares])[0]


def schedule(scene: Scene, script: Script) -> list[tuple[str, float]]:
    """The start time of each sound, in seconds. Jitter depends on the scene only: it reveals nothing of the script."""
    rng = Random(f"schedule {scene.seed}")
    if script.kind == "pair":
        (first, phase), (second, _) = script.events
        gap = rng.uniform(0.3, 0.8)
        start = scene.phase_middle(phase) + rng.uniform(-0.15, 0.15) - (gap + 0.25) / 2
        start = min(max(start, 0.05), SECONDS - gap - 0.35)
        return [(first, start), (second, start + gap)]
    return [(sound, scene.phase_middle(phase) + rng.uniform(-0.12, 0.12) - 0.15) for sound, phase in script.events]
