"""Samples of a script. In: when each sound begins. Out: float32 samples. Knows nothing of pictures."""

from __future__ import annotations

import numpy as np

from pave.playroom.world import SECONDS, SOUNDS, Scene, Script, schedule

RATE = 16_000  # Hz
TONE_SECONDS = 0.28


def samples(scene: Scene, script: Script, seed: int) -> np.ndarray:
    """The clip's sound: float32 (samples,) in [-1, 1], with a room's faint noise under it."""
    rng = np.random.default_rng([seed, 7])
    track = rng.normal(0, 10 ** rng.uniform(-3.3, -2.5), int(SECONDS * RATE))
    for sound, start in schedule(scene, script):
        wave = 0.5 * rng.uniform(0.5, 1.0) * tone(sound, rng)
        first = int(start * RATE)
        track[first : first + len(wave)] += wave[: len(track) - first]
    return track.clip(-1, 1).astype(np.float32)


def tone(sound: str, rng: np.random.Generator) -> np.ndarray:
    """One sound of about 0.28 s; pitch and length differ from one to the next by up to a tenth."""
    t = np.arange(int(RATE * TONE_SECONDS * rng.uniform(0.9, 1.1))) / RATE
    pitch = rng.uniform(0.92, 1.08)
    rise = np.minimum(1, np.minimum(t, t[-1] - t) / 0.01)
    match sound:
        case "beep":
            wave = np.sin(2 * np.pi * 1000 * pitch * t)
        case "horn":
            wave = sum(np.sin(2 * np.pi * 220 * pitch * k * t) / k for k in (1, 2, 3, 4, 5)) / 1.6
        case "bell":
            wave = sum(np.sin(2 * np.pi * f * pitch * t) for f in (1760, 2790, 4320)) / 3 * np.exp(-t / 0.09)
        case "drum":
            wave = np.sin(2 * np.pi * 90 * pitch * t * (1 + 0.5 * np.exp(-t / 0.03))) * np.exp(-t / 0.08)
        case "hiss":
            wave = np.diff(rng.normal(0, 0.4, len(t) + 1))
        case "siren":
            wave = np.sin(2 * np.pi * pitch * (500 * t + 1000 * t**2 / (2 * t[-1])))
        case _:
            raise ValueError(f"no such sound {sound!r}; known: {', '.join(SOUNDS)}")
    return wave * rise
