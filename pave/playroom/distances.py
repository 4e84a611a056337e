"""How far from the camera each toy is, which no picture tells: all look equally big. In: a `Scene`. Out: distances,
questions, and posed depth pictures in the layout of ScanNet.

The clip's key frames, as a scan: color/*.png, depth/*.png (millimetres, half the size), pose/*.txt, intrinsic/*.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from pave.playroom import draw as pictures
from pave.playroom.questions import NUMBERS, Choice, Question
from pave.playroom.world import FPS, FRAMES, SIZE, Scene

# Metres. Far is more than twice as far: toys of one picture differ in size by a fifth at most, so that the pictured
# size does not tell which is big either.
NEAR, FAR = 0.8, 2.0
SPREAD = 0.1  # of both, as a share
WALL, NOISE, HOLES = 4.0, 0.01, 0.02  # metres, deviation in metres, share of pixels that measured nothing
FOCAL = 60.0  # pixels of the colour picture
Distances = tuple[bool, ...]  # which toys of the scene are near


def states(scene: Scene) -> list[tuple[Fraction, Distances]]:
    """All arrangements, all equally likely."""
    found = list(product((False, True), repeat=len(scene.toys)))
    return [(Fraction(1, len(found)), state) for state in found]


def draw(scene: Scene, seed: int) -> Distances:
    """The arrangement in the clip of a seed."""
    return Random(f"distances {seed}").choice(states(scene))[1]


def questions(scene: Scene, near: Distances) -> Iterator[Choice]:
    """All that can be asked. What looks as big and is far is big."""
    for toy, close in zip(scene.toys, near, strict=True):
        asked = ((f"is the {toy.shape} near?", close), (f"is the {toy.shape} big?", not close))
        yield [(Fraction(1, 2), Question(text, "yes" if so else "no", "depth", "is-near")) for text, so in asked]
    yield [(Fraction(1), Question("how many toys are near?", NUMBERS[sum(near)], "depth", "count-near"))]
    if sum(near) == 1:
        shape = scene.toys[near.index(True)].shape
        yield [(Fraction(1), Question("what shape is the near toy?", shape, "depth", "shape-near"))]


def write(folder: Path, scene: Scene, near: Distances, seed: int) -> None:
    """The scan, in a folder of its own. The camera stands on a tripod and trembles."""
    rng = np.random.default_rng([seed, 4])
    times = pictures.key_times(FRAMES, FPS)
    depth = np.full((len(times), SIZE, SIZE), WALL, np.float32)
    for cover, close in zip(pictures.covers(scene, times), near, strict=True):
        depth[cover > 0.5] = (NEAR if close else FAR) * rng.uniform(1 - SPREAD, 1 + SPREAD)
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
