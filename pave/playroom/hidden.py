"""What two further cameras see: a toy each, hidden from the main camera. In: a `Scene`. Out: toys, questions, scenes.

The hidden toys have shapes that the main camera does not see, and any colours, drawn independently of all else.
The cameras run on the clock of the main one, and the light is dim for them when it is dim there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product
from random import Random

from pave.playroom.questions import Choice, Question
from pave.playroom.world import COLOURS, GRID, SHAPES, Scene, Toy

CAMERAS = 2
Hidden = tuple[tuple[str, str], ...]  # (shape, colour) before each camera


def states(scene: Scene) -> list[tuple[Fraction, Hidden]]:
    """All that can be hidden, all equally likely."""
    free = [shape for shape in SHAPES if shape not in {toy.shape for toy in scene.toys}]
    found = [
        tuple(zip(shapes, colours, strict=True))
        for shapes, colours in product(permutations(free, CAMERAS), product(COLOURS, repeat=CAMERAS))
    ]
    return [(Fraction(1, len(found)), state) for state in found]


def draw(scene: Scene, seed: int) -> Hidden:
    """What is hidden in the clip of a seed."""
    return Random(f"hidden {seed}").choice(states(scene))[1]


def questions(scene: Scene, hidden: Hidden) -> Iterator[Choice]:
    """All that can be asked, in the words of what is seen; a shape only by a colour that no other toy has."""
    seen = [colour for toy in scene.toys for colour in toy.colours]
    for shape, colour in hidden:
        yield [(Fraction(1), Question(f"what colour is the {shape}?", colour, "views", "colour"))]
        if [*seen, *(other for _, other in hidden)].count(colour) == 1:
            yield [(Fraction(1), Question(f"what shape is the {colour} toy?", shape, "views", "shape"))]


def scenes(scene: Scene, hidden: Hidden, seed: int) -> list[Scene]:
    """What stands before each camera; rug, noise and place of the toy come from the seed alone."""
    rng = Random(f"cameras {seed}")
    found = []
    for shape, colour in hidden:
        square = rng.randrange(GRID), rng.randrange(GRID)
        found.append(replace(scene, toys=(Toy(shape, (colour,), square, square),), seed=rng.getrandbits(32)))
    return found
