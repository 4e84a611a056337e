"""Samples of scripts. In: sounds or spoken words, with start times. Out: float32 samples. Knows nothing of pictures.

All words consist of the same three vowels in different orders, within one second of the clip's clock, so that one
spectrum per second cannot tell words apart.
"""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy as np

from pave.errors import UsageError
from pave.playroom.world import SECONDS, SOUNDS, Scene, Script, schedule

RATE = 16_000  # Hz
TONE_SECONDS = 0.28
VOWEL_SECONDS = 0.17
# Formants of male speakers in Hz: Peterson and Barney, "Control Methods Used in a Study of the Vowels", JASA 1952.
FORMANTS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}
BANDWIDTH = 90  # Hz, of a formant either way
WORDS: dict[str, tuple[str, ...]] = dict(zip(SOUNDS, permutations(FORMANTS), strict=True))
# Intervals for the start of a word in each phase: the word ends within its phase and its second.
STARTS = (((0.05, 0.4),), ((1.4, 1.45), (2.0, 2.05)), ((3.0, 3.4),))


def samples(scene: Scene, script: Script, seed: int, spoken: Script | None = None) -> np.ndarray:
    """The clip's sound, with faint room noise: float32 (samples,) in [-1, 1]."""
    rng = np.random.default_rng([seed, 7])
    track = rng.normal(0, 10 ** rng.uniform(-3.3, -2.5), int(SECONDS * RATE))
    waves = [(start, tone, sound) for sound, start in schedule(scene, script)]
    waves += [(start, say, word) for word, start in word_times(scene, spoken)] if spoken else []
    for start, make, name in waves:
        wave = 0.5 * rng.uniform(0.5, 1.0) * make(name, rng)
        first = int(start * RATE)
        track[first : first + len(wave)] += wave[: len(track) - first]
    return track.clip(-1, 1).astype(np.float32)


def word_times(scene: Scene, script: Script) -> list[tuple[str, float]]:
    """The start time of each word, in seconds."""
    rng = Random(f"words {scene.seed}")
    return [(word, rng.uniform(*rng.choice(STARTS[phase]))) for word, phase in script.events]


def say(word: str, rng: np.random.Generator) -> np.ndarray:
    """One word of about half a second, with random pitch and speed."""
    t = np.arange(int(RATE * VOWEL_SECONDS * rng.uniform(0.95, 1.05))) / RATE
    harmonics = rng.uniform(110, 190) * np.arange(1, 25)[:, None]
    pulses = np.sin(2 * np.pi * harmonics * t)
    rise = np.minimum(1, np.minimum(t, t[-1] - t) / 0.015)
    vowels = []
    for vowel in WORDS[word]:
        loud = sum(1 / (k + 1) / (1 + ((harmonics - f) / BANDWIDTH) ** 2) for k, f in enumerate(FORMANTS[vowel]))
        wave = (loud * pulses).sum(0) * rise
        vowels.append(wave / np.abs(wave).max())
    return np.concatenate(vowels)


def tone(sound: str, rng: np.random.Generator) -> np.ndarray:
    """One sound of about 0.28 s, with random pitch and length (up to 10 % either way)."""
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
            raise UsageError(f"unknown sound {sound!r}; use one of {', '.join(SOUNDS)}")
    return wave * rise
