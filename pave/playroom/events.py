"""Events instead of sounds or besides them: spoken words, signs that flash between key frames, cards that only further
cameras see, and shakes of the rug measured by a sensor.

In: a `Script`, which names its events like sounds but is drawn independently of them, and a `Scene`. Out: questions
about the events, and frames or numbers that show them. The embedded base knows these names from picture cards, so a
patch need only provide which event happened when.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from random import Random

import numpy as np

from pave.playroom import draw, signs
from pave.playroom.questions import Choice, captions, sound_questions
from pave.playroom.world import FPS, FRAMES, SECONDS, Scene, Script, Table, choose, schedule, scripts

FLASH_PICTURES = 3
CAMERAS = 2  # besides the main one
IMU_RATE, IMU_DIM = 100, 6  # rows per second: acceleration x y z in g, angular velocity x y z in rad/s
SHAKE_SECONDS, SHAKE, TREMBLE = 0.28, 0.4, 0.02
# Direction of each shake: acceleration and angular velocity.
SHAKES = {
    "beep": (1, 0, 0, 0, 0, 1),
    "horn": (-1, 0, 0, 0, 1, 0),
    "bell": (0, 1, 0, 1, 0, 0),
    "drum": (0, -1, 0, 0, 0, -1),
    "hiss": (0, 0, 1, 0, -1, 0),
    "siren": (0, 0, -1, -1, 0, 0),
}


@dataclass(frozen=True)
class Events:
    """One kind of event. Its questions are those about sounds, with another verb and noun."""

    sense: str
    verb: str  # in place of "hear"
    noun: str  # in place of "sound"

    @cached_property
    def scripts(self) -> Table[Script]:
        """Every script with its exact probability, except `pair`: no two events within a second."""
        found = [(share, script) for share, script in scripts() if script.kind != "pair"]
        whole = sum(share for share, _ in found)
        return [(share / whole, script) for share, script in found]

    def states(self, scene: Scene) -> Table[Script]:
        return self.scripts

    def draw(self, scene: Scene, seed: int) -> Script:
        """The events for a seed."""
        return choose(self.scripts, Random(f"{self.sense} {seed}"))

    def questions(self, scene: Scene, script: Script) -> Iterator[Choice]:
        """All possible questions, each choice to be drawn once; captions are for training only."""
        channels = {"audio": self.sense, "audio+video": f"{self.sense}+video"}
        for choice in chain(sound_questions(scene, script), captions(scene, script)):
            yield [
                (share, replace(each, text=self._reworded(each.text), channel=channels.get(each.channel, each.channel)))
                for share, each in choice
            ]

    def _reworded(self, text: str) -> str:
        replacements = {
            "what do you see and hear": f"what toy and {self.noun} do you {self.verb}",
            "what do you hear": f"what {self.noun} do you {self.verb}",
            "is there a ": f"do you {self.verb} the ",
            "hear": self.verb,
            "sound": self.noun,
        }
        return re.sub("|".join(replacements), lambda found: replacements[found[0]], text)


FLASHES = Events("fast", "see", "sign")
CARDS = Events("views", "see", "card")
SPOKEN = Events("speech", "hear", "word")
SHAKING = Events("imu", "feel", "shake")


def flash(frames: np.ndarray, scene: Scene, script: Script) -> None:
    """Draw a card for every event into frames of a clip (t y x 3), between two key frames."""
    rng, free = np.random.default_rng([scene.seed, 2]), signs.free_squares(scene)
    keys = np.round(draw.key_times(FRAMES, FPS) * FPS).astype(int)
    for name, start in schedule(scene, script):
        before = min(range(FRAMES - 1), key=lambda i: abs((keys[i] + keys[i + 1]) / 2 - start * FPS))
        # two frames without a card on either side, so that video compression does not leak it into a key frame
        earliest, latest = keys[before] + 3, keys[before + 1] - 2 - FLASH_PICTURES
        first = int(np.clip(round(start * FPS), earliest, latest))
        signs.draw_card(frames[first : first + FLASH_PICTURES], name, free, rng)


def further_views(scene: Scene, script: Script, seed: int) -> list[np.ndarray]:
    """All frames (t y x 3) of the further cameras: rugs without toys under the same light, and for each event a card,
    shown to one of the cameras, around the nearest key frame."""
    rng = np.random.default_rng([seed, 4])
    rooms = [replace(scene, toys=(), seed=int(rng.integers(2**32))) for _ in range(CAMERAS)]
    films = [draw.frames(room, draw.pictures()) for room in rooms]
    edges = (key_times := draw.key_times(FRAMES, FPS))[:-1] / 2 + key_times[1:] / 2
    first = np.searchsorted(draw.pictures(), [0, *edges, SECONDS])
    for i, names in enumerate(signs.cards(scene, script)):
        for name in names:
            film = films[rng.integers(CAMERAS)]
            signs.draw_card(film[first[i] : first[i + 1]], name, signs.free_squares(rooms[0]), rng)
    return films


def sensor_rows(scene: Scene, script: Script, seed: int) -> np.ndarray:
    """The measurements of the sensor under the rug: float32 (τ 6): noise, gravity, and a bump for every event."""
    rng = np.random.default_rng([seed, 3])
    rows = rng.normal(0, TREMBLE, (int(SECONDS * IMU_RATE), IMU_DIM))
    rows[:, 2] += 1.0
    for name, start in schedule(scene, script):
        count = int(SHAKE_SECONDS * IMU_RATE * rng.uniform(0.9, 1.1))
        bump = rng.uniform(0.6, 1.0) * SHAKE * np.sin(np.linspace(0, np.pi, count))
        first = int(start * IMU_RATE)
        rows[first : first + count] += bump[: len(rows) - first, None] * np.array(SHAKES[name])
    return rows.astype(np.float32)
