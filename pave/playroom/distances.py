"""How far from the camera each toy is, which no picture tells: all look equally big. In: a `Scene`. Out: distances,
questions, and posed depth pictures in the layout of ScanNet.

The clip's key frames, as a scan: color/*.png, depth/*.png (millimetres, half the size), pose/*.txt, intrinsic/*.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from pave.playroom import draw as pictures
from pave.playroom.questions import CAPTION, Choice, Question
from pave.playroom.world import FPS, FRAMES, SIZE, Scene

STEPS = ("one", "two", "three", "four")  # metres; at twice the distance, what looks as big is twice as big
SPREAD = 0.15  # of a metre, either way
WALL, NOISE, HOLES = 6.0, 0.01, 0.02  # metres, deviation in metres, share of pixels that measured nothing
FOCAL = 60.0  # pixels of the colour picture
Distances = tuple[int, ...]  # of each toy of the scene, in metres


def states(scene: Scene) -> list[tuple[Fraction, Distances]]:
    """All arrangements, all equally likely."""
    found = list(product(range(1, len(STEPS) + 1), repeat=len(scene.toys)))
    return [(Fraction(1, len(found)), state) for state in found]


def draw(scene: Scene, seed: int) -> Distances:
    """The arrangement in the clip of a seed."""
    return Random(f"distances {seed}").choice(states(scene))[1]


def questions(scene: Scene, far: Distances) -> Iterator[Choice]:
    """All that can be asked. The caption is for training: toys in any order, which teaches to look up what belongs to
    the word just said."""
    shapes, steps = [toy.shape for toy in scene.toys], [STEPS[metres - 1] for metres in far]
    for shape, step in zip(shapes, steps, strict=True):
        yield [
            (Fraction(1, 2), Question(f"how {word} is the {shape}?", step, "depth", word)) for word in ("far", "big")
        ]
        if steps.count(step) == 1:
            yield [(Fraction(1), Question(f"what shape is the toy at {step}?", shape, "depth", "shape-at"))]
    orders = list(permutations(f"{shape} {step}" for shape, step in zip(shapes, steps, strict=True)))
    text = "how far is what shape?"
    yield [(Fraction(1, len(orders)), Question(text, ", ".join(order), CAPTION, "told")) for order in orders]


def write(folder: Path, scene: Scene, far: Distances, seed: int) -> None:
    """The scan, in a folder of its own. The camera stands on a tripod and trembles."""
    rng = np.random.default_rng([seed, 5])
    times = pictures.key_times(FRAMES, FPS)
    depth = np.full((len(times), SIZE, SIZE), WALL, np.float32)
    for cover, metres in zip(pictures.covers(scene, times), far, strict=True):
        depth[cover > 0.5] = metres + rng.uniform(-SPREAD, SPREAD)
    depth += rng.normal(0, NOISE, depth.shape)
    depth[rng.random(depth.shape) < HOLES] = 0
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures.frames(scene, times)):
        Image.fromarray(picture).save(folder / "color" / f"{i}.png")
        small = (1000 * depth[i, 1::2, 1::2]).round().astype(np.uint16)
        Image.fromarray(small).save(folder / "depth" / f"{i}.png")
        pose = np.eye(4)
        pose[:3, 3] = rng.normal(0, 0.01, 3)
        np.savetxt(folder / "pose" / f"{i}.txt", pose, "%.6f")
    for name, scale in (("color", 1.0), ("depth", 0.5)):
        matrix = np.diag([FOCAL * scale, FOCAL * scale, 1.0, 1.0])
        matrix[:2, 2] = (SIZE * scale - 1) / 2
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", matrix, "%.6f")
