"""Things that sound: a film of two things, one of which is heard.

In: the packages. Out: a folder with `train.jsonl` and `test.jsonl`. Every picture comes in strict pairs: the same
frames with the sound of the one thing and with that of the other, so that what is seen never tells the answer. There
is one recording of a thing: those of the test are other cuts, speeds, tones and noises of the same recording, with
other pictures, and `seen` says so. Nothing tells how a patch would fare on another cow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from films import RATE, placed, varied
from lines import Clip, write
from scenes import draw, film
from sounds import samples
from stamps import Thing, things

QUESTION = "Which of the things you see do you hear?"
SECONDS = 2.4  # of a clip
LONGEST = 2.0  # seconds of a recording in a clip
FRAMES = 2


def sounding(packages: Mapping[str, Path]) -> list[Thing]:
    """The kinds that have a sound."""
    return [kind for kind in things(packages["tuxpaint-stamps-default"]) if kind.sound]


def cut(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of a recording, anywhere in it if it is long, a little changed."""
    length = int(LONGEST * RATE)
    begin = int(rng.integers(max(0, len(sound) - length) + 1))
    return varied(sound[begin : begin + length], rng, tone=0.08)


def make(packages: Mapping[str, Path], rounds: int, tests: int, folder: Path, seed: int = 0) -> None:
    """Write strict pairs: `rounds` for training and `tests` held out, each of which pairs every thing with another."""
    kinds = sounding(packages)
    recorded = {kind.name: samples(kind.sound) for kind in kinds if kind.sound}

    def pairs(split: str, count: int) -> Iterator[Clip]:
        rng = np.random.default_rng([seed, len(split)])
        for number in range(count):
            order = rng.permutation(len(kinds))
            for place in range(0, len(kinds) - 1, 2):
                both = [kinds[each] for each in order[place : place + 2]]
                frames = film(draw(both, rng), FRAMES, rng)
                for kind in both:
                    sound = placed(cut(recorded[kind.name], rng), SECONDS, rng, quietest=-3.5, loudest=-2.5)
                    name = (
                        f"{number}-{'-'.join(each.name.replace(' ', '') for each in both)}-{kind.name.replace(' ', '')}"
                    )
                    facts = {"channel": "things", "pair": f"{number}-{place}", "optimum": 0.5, "seen": True}
                    yield Clip(name, frames, sound, ((QUESTION, kind.name),), facts)

    write(folder, "train", pairs("train", rounds))
    write(folder, "test", pairs("test", tests))
