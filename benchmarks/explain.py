"""Does the second that `model.explain` cites carry the answer?

    python benchmarks/explain.py      # about ten minutes on one thread; continues after a stop

Playroom clips of held-out scenes with one sound that decides the answer: alone ("what do you hear?"), or among three
("what colour is the ball when you hear the bell?"). Counted are the clips whose answer changes without the cited
second, and without one drawn by lot; a clip for which nothing is cited counts as one that does not change. They are
deleted twice: as `explain` does it, with digital silence; and independently of it, with room noise in the samples, and
another lot. Seeds are fixed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from study import Study

import pave
from pave.explaining.found import Cited
from pave.media.clip import Clip
from pave.playroom.sound import TONE_SECONDS
from pave.playroom.world import PHASES, SOUNDS, Scene, Script, draw_scene, schedule
from pave.playroom.writer import clip_seeds, write_clip

PATCHES = ("audio-playroom", "favor-playroom")
CLIPS, PART, SEED = 120, 20, 22
NOISE = 10**-2.9  # of a room, as in pave/playroom/sound.py


def asked(scene: Scene, seed: int) -> tuple[Script, str, str, float]:
    """Sounds, a question that one of them decides, the answer, and the middle of this sound in seconds."""
    rng = Random(f"explain {seed}")
    if rng.random() < 0.5:
        sound = rng.choice(SOUNDS)
        script = Script("one", ((sound, rng.randrange(PHASES)),))
        question, answer, own = "what do you hear?", sound, 0
    else:
        script = Script("three", tuple(zip(rng.sample(SOUNDS, PHASES), range(PHASES), strict=True)))
        own = rng.randrange(PHASES)
        question = f"what colour is the {scene.changer.shape} when you hear the {script.events[own][0]}?"
        answer = scene.changer.colours[own]
    return script, question, answer, schedule(scene, script)[own][1] + TONE_SECONDS / 2


def noisy(clip: Clip, start: float, end: float, seed: int) -> tuple[np.ndarray, int]:
    """The samples (n,) with room noise in these seconds, and their rate."""
    assert clip.audio is not None and clip.rate
    samples = clip.audio.mean(0).numpy().copy()
    part = samples[round(start * clip.rate) : round(end * clip.rate)]
    part[:] = np.random.default_rng(seed).normal(0, NOISE, len(part))
    return samples, clip.rate


def measured(model: Any, folder: Path, seed: int) -> dict[str, Any]:
    """One clip."""
    scene = draw_scene(seed, "test")
    script, question, answer, middle = asked(scene, seed)
    file = folder / f"{seed}.mp4"
    if not file.exists():
        write_clip(file, scene, script, seed)
    found = model.explain(file, question)
    figures: dict[str, Any] = {"right": found.answer == answer, "base": found.without == answer}
    if not found.cited:
        return figures
    cited: Cited = found.cited[0]
    windows = found.deletions[0].windows.tolist()
    apart = [window for window in windows if window[0] >= cited.end or window[1] <= cited.start]
    other = Random(f"other {seed}").choice(apart)  # another lot than that of `explain`
    clip = Clip.read(file, frames=model.host.frames)
    spans = ((cited.start, cited.end), other)
    with_noise = [str(model.ask(clip, question, audio=noisy(clip, start, end, seed))) for start, end in spans]
    return figures | {
        "sense": cited.sense,
        "there": cited.start <= middle <= cited.end,
        "flips": cited.answer != found.answer,
        "lot flips": cited.other_answer != found.answer,
        "noise flips": with_noise[0] != found.answer,
        "noise lot flips": with_noise[1] != found.answer,
    }


def share(each: list[dict[str, Any]], name: str) -> float:
    return round(sum(bool(one.get(name)) for one in each) / len(each), 4)


def parts(seeds: list[int]) -> Iterator[tuple[int, list[int]]]:
    yield from ((first, seeds[first : first + PART]) for first in range(0, len(seeds), PART))


def main() -> None:
    study = Study("explain")
    seeds = list(clip_seeds(CLIPS, SEED, "test"))
    with tempfile.TemporaryDirectory() as folder:
        for patch in PATCHES:
            model: Any = None
            for first, own in parts(seeds):
                if f"{patch} {first}" in study:
                    continue
                if model is None:
                    model = pave.load("playroom")
                    model.apply_patch(patch)
                study.add(f"{patch} {first}", {"clips": [measured(model, Path(folder), seed) for seed in own]})
            every = [one for first, _ in parts(seeds) for one in study.runs[f"{patch} {first}"]["clips"]]
            names = ("right", "base", "sense", "there", "flips", "lot flips", "noise flips", "noise lot flips")
            study.add(patch, {"clips": len(every), **{name: share(every, name) for name in names}})
            print(patch, study.runs[patch])


if __name__ == "__main__":
    main()
