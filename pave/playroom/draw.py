"""Pixels of a scene. In: a `Scene` and times in seconds. Out: uint8 frames (t y x 3). Knows nothing of sound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pave.errors import UsageError
from pave.playroom.world import FPS, GRID, SECONDS, SHAPES, SIZE, Scene, Toy

CELL = SIZE // GRID
RADIUS = 6.0  # pixels; a toy covers most of its square
DIM = 0.4  # brightness while the light is dim
DIM_SECONDS = 0.9  # longer than the 0.57 s between key frames, so that one of them always shows it
MOVE_SECONDS = 0.8
PAINT = {
    "red": (225, 40, 40),
    "green": (40, 180, 60),
    "blue": (45, 70, 230),
    "yellow": (240, 215, 40),
    "purple": (165, 50, 200),
    "cyan": (50, 215, 225),
    "white": (250, 250, 250),
}


def frames(scene: Scene, times: np.ndarray) -> np.ndarray:
    """Render the scene at `times`: uint8 (t y x 3)."""
    floor, jitter, size, noise, rng = _chances(scene)
    film = np.empty((len(times), SIZE, SIZE, 3), np.float32)
    film[:] = floor
    for toy, cover in zip(scene.toys, _covers(scene, times, jitter, size), strict=True):
        paint = np.array([PAINT[colour(scene, toy, time)] for time in times], np.float32)
        film += cover[..., None] * (paint[:, None, None] - film)
    film[[is_dim(scene, time) for time in times]] *= DIM
    film += noise * rng.standard_normal(film.shape, np.float32)
    return film.clip(0, 255).round().astype(np.uint8)


def pictures() -> np.ndarray:
    """The times of all frames of a clip, in seconds."""
    return np.arange(int(SECONDS * FPS)) / FPS


def covers(scene: Scene, times: np.ndarray) -> list[np.ndarray]:
    """Coverage of each pixel by each toy at `times`, 0 to 1 (t y x)."""
    _, jitter, size, _, _ = _chances(scene)
    return list(_covers(scene, times, jitter, size))


def _chances(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32, np.random.Generator]:
    """What the scene's seed determines: floor, shifts and sizes of the toys, noise level, and the noise generator."""
    rng = np.random.default_rng(scene.seed)
    floor, count = _floor(rng), len(scene.toys)
    return floor, rng.uniform(-1, 1, (count, 2)), rng.uniform(0.9, 1.08, count), np.float32(rng.uniform(1, 4)), rng


def _covers(scene: Scene, times: np.ndarray, jitter: np.ndarray, size: np.ndarray) -> Iterator[np.ndarray]:
    for toy, shift, scale in zip(scene.toys, jitter, size, strict=True):
        places = [place(toy, scene.move_at, time) for time in times]
        known = {  # most toys stay where they are
            (row, column): _cover(
                toy.shape, (row + 0.5) * CELL + shift[0], (column + 0.5) * CELL + shift[1], RADIUS * scale
            )
            for row, column in set(places)
        }
        yield np.stack([known[each] for each in places])


def _floor(rng: np.random.Generator) -> np.ndarray:
    """A grey rug with a tint and a linear shading."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    shade = rng.uniform(75, 125) + 25 * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y)
    return (shade[..., None] + rng.uniform(-10, 10, 3)).astype(np.float32)


def is_dim(scene: Scene, time: float) -> bool:
    """Whether the light is dim at a time."""
    return abs(time - scene.phase_middle(scene.dim_phase)) < DIM_SECONDS / 2


def colour(scene: Scene, toy: Toy, time: float) -> str:
    """The colour that a toy has at a time."""
    if len(toy.colours) == 1:
        return toy.colours[0]
    return toy.colours[sum(time >= change for change in scene.changes)]


def place(toy: Toy, move_at: float, time: float) -> tuple[float, float]:
    """(row, column) at a time; a move is straight, at constant speed."""
    done = min(max((time - move_at) / MOVE_SECONDS, 0.0), 1.0)
    (row, column), (to_row, to_column) = toy.square, toy.goal
    return row + done * (to_row - row), column + done * (to_column - column)


def _cover(shape: str, row: float, column: float, radius: float) -> np.ndarray:
    """Coverage of each pixel by a toy, 0 to 1 (y x): a signed distance with a one-pixel antialiased edge."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    y, x = y - row, x - column
    distance = np.hypot(x, y)
    match shape:
        case "ball":
            edge = distance - radius
        case "cube":
            edge = np.maximum(abs(x), abs(y)) - radius * 0.9
        case "cone":
            edge = np.maximum(y - radius * 0.85, abs(x) * 0.9 - (y + radius) * 0.48)
        case "star":
            edge = distance - radius * (0.72 + 0.38 * np.cos(5 * np.arctan2(x, -y)))
        case "ring":
            edge = abs(distance - radius * 0.72) - radius * 0.24
        case "cross":
            edge = np.minimum(
                np.maximum(abs(x) - radius * 0.26, abs(y) - radius), np.maximum(abs(y) - radius * 0.26, abs(x) - radius)
            )
        case _:
            raise UsageError(f"unknown shape {shape!r}; use one of {', '.join(SHAPES)}")
    return np.clip(0.5 - edge, 0, 1).astype(np.float32)


def key_times(count: int, fps: int) -> np.ndarray:
    """The times of the `count` key frames that `pave.media` picks from a clip of this world at this frame rate."""
    last = int(SECONDS * fps) - 1
    return np.floor(np.linspace(0, last, count) + 1e-9) / fps
