"""Distances from the camera, which no colour image reveals. In: a `Scene`. Out: distances, questions, and a posed
depth scan in the layout of ScanNet.

Each colour phase shows two cards of equal size in the image: a small one near the camera and a large one far away.
The scan holds the key frames: color/*.png, depth/*.png (millimetres, half resolution), pose/*.txt, intrinsic/*.txt,
numbered like the frames of the clip.
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
from pave.playroom import signs
from pave.playroom.questions import CAPTION, Choice, Question
from pave.playroom.world import FPS, FRAMES, GRID, PHASES, SIZE, SOUNDS, Scene

NEAR, RUG, FAR = 1.0, 2.0, 3.5  # metres
SPREAD, NOISE = 0.1, 0.01  # metres: variation of a card's distance either way, standard deviation of a pixel
HOLES = 0.02  # share of pixels without a measurement
FOCAL = 60.0  # in pixels of the colour image
Distances = tuple[bool, ...]  # whether the left card is the near one, in each phase


def pairs(scene: Scene) -> list[tuple[str, str]]:
    """The left and the right card of each phase; every card is shown once. Visible in the video, not hidden."""
    names = Random(f"pairs {scene.seed}").sample(SOUNDS, 2 * PHASES)
    return list(zip(names[::2], names[1::2], strict=True))


def states(scene: Scene) -> list[tuple[Fraction, Distances]]:
    """All arrangements, with equal probability."""
    return [(Fraction(1, 2**PHASES), state) for state in product((False, True), repeat=PHASES)]


def draw(scene: Scene, seed: int) -> Distances:
    """The arrangement for a seed."""
    return Random(f"distances {seed}").choice(states(scene))[1]


def questions(scene: Scene, near: Distances) -> Iterator[Choice]:
    """All possible questions; the caption is for training only."""
    close = [pair[not left] for pair, left in zip(pairs(scene), near, strict=True)]
    for pair, answer in zip(pairs(scene), close, strict=True):
        texts = (f"which is near, the {a} or the {b}?" for a, b in (pair, pair[::-1]))
        yield [(Fraction(1, 2), Question(text, answer, "depth", "which-near")) for text in texts]
    asked = [Question(f"is the {name} near?", "yes" if name in close else "no", "depth", "is-near") for name in SOUNDS]
    yield [(Fraction(1, len(asked)), question) for question in asked]
    text = "what card is near when the light is dim?"
    yield [(Fraction(1), Question(text, close[scene.dim_phase], "depth", "near-dim"))]
    yield [(Fraction(1), Question("what card is near, first to last?", " ".join(close), CAPTION, "told"))]


def show(frames: np.ndarray, scene: Scene, times: np.ndarray) -> list[list[np.ndarray]]:
    """Draw the cards into frames (t y x 3) at `times`, around the key frame nearest to the middle of each phase.
    Returns their masks (t y x), left and right, for each phase."""
    rng = np.random.default_rng([scene.seed, 6])
    keys, free = pictures.key_times(FRAMES, FPS), signs.free_squares(scene)
    nearest = abs(times[:, None] - keys).argmin(1)
    places = []
    for phase, pair in enumerate(pairs(scene)):
        shown = nearest == abs(keys - scene.phase_middle(phase)).argmin()
        masks = []
        for name, left in zip(pair, (True, False), strict=True):
            squares = [square for square in free if (square[1] < GRID // 2) == left]
            blank = np.zeros((SIZE, SIZE, 3), np.uint8)
            signs.draw_card(blank, name, squares, rng)
            masks.append(shown[:, None, None] & blank.any(-1))
            frames[masks[-1]] = np.broadcast_to(blank, frames.shape)[masks[-1]]
        places.append(masks)
    return places


def write(folder: Path, scene: Scene, near: Distances, seed: int) -> None:
    """Write the scan into a folder. The camera is static, with a small random shift per frame."""
    rng = np.random.default_rng([seed, 5])
    times = pictures.key_times(FRAMES, FPS)
    colour = pictures.frames(scene, times)
    depth = np.full(colour.shape[:3], RUG, np.float32)
    for (left, right), left_is_near in zip(show(colour, scene, times), near, strict=True):
        for card, metres in zip((left, right), (NEAR, FAR) if left_is_near else (FAR, NEAR), strict=True):
            depth[card] = metres + rng.uniform(-SPREAD, SPREAD)
    depth += rng.normal(0, NOISE, depth.shape)
    depth[rng.random(depth.shape) < HOLES] = 0
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, picture, metres in zip((times * FPS).round().astype(int), colour, depth, strict=True):
        Image.fromarray(picture).save(folder / "color" / f"{number}.png")
        small = (1000 * metres[1::2, 1::2]).round().astype(np.uint16)
        Image.fromarray(small).save(folder / "depth" / f"{number}.png")
        pose = np.eye(4)
        pose[:3, 3] = rng.normal(0, 0.01, 3)
        np.savetxt(folder / "pose" / f"{number}.txt", pose, "%.6f")
    for name, scale in (("color", 1.0), ("depth", 0.5)):
        matrix = np.diag([FOCAL * scale, FOCAL * scale, 1.0, 1.0])
        matrix[:2, 2] = (SIZE * scale - 1) / 2
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", matrix, "%.6f")
