"""Labelled sets in which something other than what is heard tells the answer, and patches that are deaf to the rest.

In: the name of a set, a number of clips, a seed. Out: clips of the Playroom in memory, each with one sound or none, and
questions what it is; for training also whether it is this or that. Knows nothing of patches.

set        what tells the answer beside the content
shuffled   nothing
presence   half of the clips are quiet, so whether anything is heard decides half of the answers
duration   the track is longer for some sounds: right for 6 of 10 clips
loudness   the sound is louder for some sounds: right for 6 of 10 clips
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal, get_args

import numpy as np

from pave.data import Example, Source
from pave.media.clip import Clip
from pave.playroom import draw, sound
from pave.playroom.questions import HEAR
from pave.playroom.world import FPS, SECONDS, SOUNDS, Split, draw_scene
from pave.playroom.writer import clip_seeds

Kind = Literal["shuffled", "presence", "duration", "loudness"]
Content = Literal["own", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TELLS = 0.6  # share of clips whose duration or loudness is that of their sound
QUIET = {"shuffled": 1 / 7, "presence": 1 / 2, "duration": 0.0, "loudness": 0.0}
SHORTEST, STEP = 1.5, 0.4  # seconds: of the track of the first sound, and more for each further one
SCENES = 16  # of each split, that are seen in turns
QUIETER = 5.0  # dB for each further sound


def planted(
    kind: Kind, clips: int, seed: int, split: Split, content: Content, frames: int
) -> Iterator[tuple[Clip, list[Example]]]:
    """Clips in memory, each with its questions. content "other": what is heard is drawn anew, and has nothing to do
    with the answer; only what `kind` says is left."""
    for number, at in enumerate(clip_seeds(clips, seed, split)):
        rng = Random(f"{kind} {at}")
        heard = "" if rng.random() < QUIET[kind] else rng.choice(SOUNDS)
        told = SOUNDS.index(heard) if heard and rng.random() < TELLS else rng.randrange(len(SOUNDS))
        answer, another = heard or "nothing", rng.choice(SOUNDS)
        if content == "other":
            quiet = rng.random() < QUIET[kind] if kind == "shuffled" else not heard
            heard = "" if quiet else another
        pictures, times = _scene(number % SCENES, split, frames)
        clip = Clip.from_frames(pictures, times=times, audio=_track(kind, heard, told, at), rate=sound.RATE)
        asked = [(question, answer) for question in HEAR]
        asked += [(f"is there a {name}?", "yes" if name == answer else "no") for name in SOUNDS]
        # Many questions share a clip's prefill, so learning is cheap; held out is one, as clips are what counts.
        asked = asked if split == "train" else [rng.choice(asked[: len(HEAR)])]
        source, facts = Source(Path(f"{split}-{at}.mp4")), {"kind": "what", "channel": "audio"}
        yield clip, [Example(source, *pair, number, facts) for pair in asked]


@cache
def _scene(seed: int, split: Split, frames: int) -> tuple[np.ndarray, list[float]]:
    """Key frames of a scene, and their seconds; nothing that is seen tells what is heard."""
    film = draw.frames(draw_scene(seed, split), draw.pictures())
    places = [round(place) for place in np.linspace(0, len(film) - 1, frames)]
    return film[places], [place / FPS for place in places]


def _track(kind: Kind, heard: str, told: int, seed: int) -> np.ndarray:
    """Samples (n,) of a track: faint noise, and at most one sound in its first 1.5 s."""
    rng = np.random.default_rng([seed, 11])
    seconds = SHORTEST + STEP * told if kind == "duration" else SECONDS
    track = rng.normal(0, 10 ** rng.uniform(-3.8, -3.3), int(seconds * sound.RATE))
    start, level = rng.uniform(0.05, 1.05), 0.5 * rng.uniform(0.8, 1.0)
    if heard:
        wave = level * sound.tone(heard, rng)
        if kind == "loudness":
            wave = wave / np.sqrt(np.square(wave).mean()) * 0.2 * 10 ** (-QUIETER * told / 20)
        first = int(start * sound.RATE)
        track[first : first + len(wave)] += wave
    return track.clip(-1, 1).astype(np.float32)
