"""Sounds shown as picture cards on the rug, like captions for sounds. Training data for the embedded base only.

In: a `Scene` and a `Script`. Out: key frames with cards, and their labels. They teach a base without a sound encoder to
look up colours and orders by the name of a sound; evaluated clips have no such cards.
"""

from __future__ import annotations

import numpy as np

from pave.playroom import draw
from pave.playroom.sound import TONE_SECONDS
from pave.playroom.world import FPS, FRAMES, GRID, Scene, Script, schedule

PIXEL = 2  # scale of a card: a picture of 5 x 5 and a dark border make 7 x 7 of these
PICTURES = {
    "beep": ("  #  ", "  #  ", "#####", "  #  ", "  #  "),
    "horn": ("    #", "  ###", "#####", "  ###", "    #"),
    "bell": ("  #  ", " ### ", " ### ", "#####", "  #  "),
    "drum": ("#####", "#   #", "#   #", "#   #", "#####"),
    "hiss": ("# # #", " # # ", "# # #", " # # ", "# # #"),
    "siren": ("#   #", "#   #", "# # #", "#   #", "#   #"),
}
Cards = list[tuple[str, ...]]  # for every key frame none, one, or two sounds, the earlier one on the left
NO_CARDS: Cards = [()] * FRAMES


def cards(scene: Scene, script: Script) -> Cards:
    """The sounds of a script, each at the key frame nearest to its middle."""
    times = draw.key_times(FRAMES, FPS)
    shown = list(NO_CARDS)
    for name, start in schedule(scene, script):
        at = int(abs(times - start - TONE_SECONDS / 2).argmin())
        shown[at] = (*shown[at], name)
    return shown


def draw_cards(frames: np.ndarray, scene: Scene, shown: Cards) -> None:
    """Draw the cards into key frames (t y x 3): one anywhere, two in the left and in the right half."""
    rng = np.random.default_rng([scene.seed, 1])
    free = free_squares(scene)
    halves = [[square for square in free if (square[1] < GRID // 2) == left] for left in (True, False)]
    for frame, names in zip(frames, shown, strict=True):
        places = halves if len(names) == 2 else [free]
        for name, squares in zip(names, places, strict=False):
            draw_card(frame, name, squares, rng)


def draw_card(frames: np.ndarray, name: str, squares: list[tuple[int, int]], rng: np.random.Generator) -> None:
    """Draw one card on one of the squares, at the same place in all frames (… y x 3)."""
    row, column = squares[rng.integers(len(squares))]
    y, x = np.array([row, column]) * draw.CELL + rng.integers(0, 3, 2)
    picture = np.pad([[mark == "#" for mark in line] for line in PICTURES[name]], 1)
    card = picture.repeat(PIXEL, 0).repeat(PIXEL, 1)
    frames[..., y : y + len(card), x : x + len(card), :] = np.where(card, 235, 10)[..., None]


def square_labels(shown: Cards) -> list[list[str | None]]:
    """The label of every square, row by row (t s): the card, or of two cards the one in its half."""
    halves = [(names[0], names[-1]) if names else (None, None) for names in shown]
    return [([left] * (GRID // 2) + [right] * (GRID // 2)) * GRID for left, right in halves]


def free_squares(scene: Scene) -> list[tuple[int, int]]:
    """Squares that no toy occupies or crosses."""
    taken = {
        (row, column)
        for toy in scene.toys
        for row in range(min(toy.square[0], toy.goal[0]), max(toy.square[0], toy.goal[0]) + 1)
        for column in range(min(toy.square[1], toy.goal[1]), max(toy.square[1], toy.goal[1]) + 1)
    }
    return sorted({(row, column) for row in range(GRID) for column in range(GRID)} - taken)
