"""How far from the camera each toy is, which no picture tells: all look equally big. In: a `Scene`. Out: distances,
questions, and posed depth pictures in the layout of ScanNet.

The clip's key frames, as a scan: color/*.png, depth/*.png (millimetres, half the size), pose/*.txt, intrinsic/*.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from pave.playroom import draw as pictures
from pave.playroom.questions import CAPTION, Choice, Question
from pave.playroom.world import FPS, FRAMES, SIZE, Scene

# Metres. What looks as big and is half as far again is half as big again: in pictures, toys differ by a fifth at most, so
# that the farthest is the biggest whatever they look like.
LEVELS = (0.8, 1.2, 1.8, 2.7)
WALL, NOISE, HOLES = 4.0, 0.01, 0.02  # metres, deviation in metres, share of pixels that measured nothing
FOCAL = 60.0  # pixels of the colour picture
Distances = tuple[float, ...]  # of each toy of the scene


def states(scene: Scene) -> list[tuple[Fraction, Distances]]:
    """All arrangements, all equally likely; no two toys are equally far."""
    found = list(permutations(LEVELS, len(scene.toys)))
    return [(Fraction(1, len(found)), state) for state in found]


def draw(scene: Scene, seed: int) -> Distances:
    """The arrangement in the clip of a seed."""
    return Random(f"distances {seed}").choice(states(scene))[1]


def questions(scene: Scene, far: Distances) -> Iterator[Choice]:
    """All that can be asked; the caption is for training."""
    order = [toy for _, toy in sorted(zip(far, scene.toys, strict=True), key=lambda pair: pair[0])]
    for word, toy in (("nearest", order[0]), ("biggest", order[-1])):
        yield [(Fraction(1), Question(f"what shape is the {word} toy?", toy.shape, "depth", f"shape-{word}"))]
        text = f"what colour is the {word} toy first?"
        yield [(Fraction(1), Question(text, toy.colours[0], "depth", f"colour-{word}"))]
    told = ", ".join(f"{toy.colours[0]} {toy.shape}" for toy in order)
    yield [(Fraction(1), Question("what toys are there, nearest to farthest?", told, CAPTION, "told"))]


def write(folder: Path, scene: Scene, far: Distances, seed: int) -> None:
    """The scan, in a folder of its own. The camera stands on a tripod and trembles."""
    rng = np.random.default_rng([seed, 5])
    times = pictures.key_times(FRAMES, FPS)
    depth = np.full((len(times), SIZE, SIZE), WALL, np.float32)
    for cover, metres in zip(pictures.covers(scene, times), far, strict=True):
        depth[cover > 0.5] = metres
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
