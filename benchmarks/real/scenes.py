"""Pictures of one or two things before a background, drawn at random.

In: things, a generator of random numbers. Out: frames as uint8 arrays, and what is where. Backgrounds are colours,
gradients, patterns and clouds; things differ in place, size, tilt, mirroring and brightness from picture to picture,
and move a little from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from stamps import Thing

SIZE = 72  # pixels, both ways
LARGEST = 100  # pixels of a stamp in memory
SHARE = {1: (0.5, 0.95), 2: (0.4, 0.5)}  # of the frame's width, by number of things
MOVES = 2  # pixels between frames, at most


@dataclass(frozen=True)
class Placed:
    """One thing in a picture."""

    thing: Thing
    stamp: Image.Image  # as drawn
    corner: tuple[int, int]  # x, y of its upper left


@dataclass(frozen=True)
class Scene:
    """A picture: things from left to right."""

    background: np.ndarray  # (y x 3)
    placed: tuple[Placed, ...]

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(each.thing for each in self.placed)

    def frame(self, shifts: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """The picture (y x 3), uint8, each thing moved by its shift."""
        image = Image.fromarray(self.background)
        for each, (x, y) in zip(self.placed, shifts or [(0, 0)] * len(self.placed), strict=True):
            image.paste(each.stamp, (each.corner[0] + x, each.corner[1] + y), each.stamp)
        return np.asarray(image)

    def cover(self, patch: int) -> np.ndarray:
        """For each patch the share that each thing covers (things y x)."""
        shares = []
        for each in self.placed:
            mask = Image.new("L", (SIZE, SIZE))
            mask.paste(each.stamp.getchannel("A"), each.corner)
            shares.append(np.asarray(mask.reduce(patch), np.float32) / 255)
        return np.stack(shares)


def draw(things: Sequence[Thing], rng: np.random.Generator) -> Scene:
    """A picture of these things, in this order from left to right."""
    low, high = SHARE[len(things)]
    column = SIZE // len(things)
    placed = []
    for number, thing in enumerate(things):
        stamp = _stamp(thing.pictures[rng.integers(len(thing.pictures))], rng.uniform(low, high) * SIZE, rng)
        room = max(0, column - stamp.width), max(0, SIZE - stamp.height)
        corner = number * column + int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
        placed.append(Placed(thing, stamp, corner))
    return Scene(background(rng), tuple(placed))


def film(scene: Scene, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (t y x 3) in which the things move a little."""
    shifts = rng.integers(-MOVES, MOVES + 1, (frames, len(scene.placed), 2))
    return np.stack([scene.frame([(int(x), int(y)) for x, y in each]) for each in shifts])


def background(rng: np.random.Generator) -> np.ndarray:
    """Something that is no thing (y x 3)."""
    first, second = rng.integers(0, 256, (2, 3))
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(first.astype(np.uint8), (SIZE, SIZE, 3)).copy()
    if kind == 1:  # clouds
        coarse = rng.integers(0, 256, (int(rng.integers(2, 9)),) * 2, dtype=np.uint8)
        share = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255
    else:  # a gradient, or stripes
        angle = rng.uniform(0, np.pi)
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        share = x * np.cos(angle) + y * np.sin(angle)
        share = share % 1 if kind == 2 else 0.5 + 0.5 * np.sin(share * rng.uniform(6, 80))
    return (first + share[..., None] * (second - first)).clip(0, 255).astype(np.uint8)


@cache
def _whole(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((LARGEST, LARGEST))
    return image


def _stamp(path: Path, width: float, rng: np.random.Generator) -> Image.Image:
    """The stamp within a square of `width` pixels, tilted, mirrored and lit at random."""
    stamp = _whole(path)
    if rng.random() < 0.5:
        stamp = ImageOps.mirror(stamp)
    scale = width / max(stamp.size)
    stamp = stamp.resize([max(1, round(edge * scale)) for edge in stamp.size], Image.Resampling.BILINEAR)
    stamp = stamp.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    return ImageEnhance.Brightness(stamp).enhance(rng.uniform(0.75, 1.2))
