"""Does a certificate tell patches that listen from patches that only seem to? Planted deaf ones, and genuine ones.

    python benchmarks/certificates.py            # 20 deaf and 20 genuine patches; goes on after a stop
    python benchmarks/certificates.py --only loudness-deaf-0

Writes benchmarks/results/certificates.json. For each of four labelled sets (benchmarks/planted.py) and five seeds, two
patches are trained on the embedded base with the recipe of `audio-playroom`, and certified on the same held-out clips:

    genuine    on the set as it is: what is heard tells the answer
    deaf       on the same answers, but what is heard is drawn anew, and has nothing to do with them; only what the set
               is named after is left (nothing; whether there is a sound; how long the track is; how loud the sound is)

The clips are in memory, at two key frames. All questions are "what do you hear?", which do not ask when (`any_time`).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from planted import KINDS, Kind, planted
from study import Study

from pave.data import Example, Source
from pave.evaluation.certify import Ears, Trial
from pave.features.stored import Stored
from pave.hub.catalogue import folder_of
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel, load
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.training.dataset import Dataset, training_clip
from pave.training.run import Run
from pave.training.setup import Setup

SEEDS = range(5)
TRAIN, TEST = 240, 120  # clips
FRAMES, STEPS, BATCH = 2, 100, 8
SIDES = ("shuffled", "silent", "envelope", "shifted")


def recipe_of(seed: int) -> Recipe:
    words = [f"train.seed={seed}", f"train.steps={STEPS}", f"train.batch={BATCH}", f"frames={FRAMES}"]
    output = Path(gettempdir()) / "pave-certify"
    output.mkdir(exist_ok=True)
    quiet = ["train.eval_every=100000", "train.checkpoint_every=100000"]
    return read_recipe(folder_of("audio-playroom"), [*words, *quiet, f"train.output={output}"])


def train(model: PatchedModel, kind: Kind, content: str, seed: int) -> tuple[Patch, list[float]]:
    """A patch, and its losses."""
    setup = Setup.of(recipe_of(seed))
    clips = []
    for clip, examples in planted(kind, TRAIN, seed, "train", content, FRAMES):
        features = seen(model, clip, list(setup.senses.values()))
        clips.append(training_clip(setup.model.host, Stored.of(features), examples))
    run = Run.of(setup, Dataset(clips, [], dict(setup.senses), {}, [], {}))
    run.fit(lambda step, steps, figures: None)
    return run.trainee.attached.export(), run.losses


def seen(model: PatchedModel, clip: Clip, encoders: list[Any]) -> ClipFeatures:
    """Features of a clip; the vision tower sees each scene once."""
    assert clip.frames is not None
    key = clip.frames.numpy().tobytes()
    if key not in SCENES:
        SCENES[key] = model.encode_clip(replace(clip, audio=None, rate=None), [])
    heard = model.perception.sense(clip, encoders)
    return replace(SCENES[key], sides=heard.sides, absent=heard.absent, sensors=heard.sensors)


SCENES: dict[bytes, ClipFeatures] = {}


def certify(model: PatchedModel, patch: Patch, kind: Kind, seed: int) -> dict[str, Any]:
    model.apply_patch(patch, name="planted")
    try:
        held_out = list(planted(kind, TEST, seed, "test", "own", FRAMES))
        ears = Ears.of(model.encoders(), [clip for clip, _ in held_out[:16]])
        features: dict[Source, ClipFeatures] = {e.source: seen(model, clip, ears.all) for clip, (e,) in held_out}
        examples: list[Example] = [example for _, (example,) in held_out]
        trial = Trial(model, "planted", (), None, ears, examples, features, any_time=True)
        found = trial.run(None, {"batch": 60, "max_new_tokens": 2}, None, {})
    finally:
        model.remove_patch("planted")
    gains = {name: [round(each, 4) for each in (g.value, g.low or 0, g.high or 0)] for name, g in found.gains.items()}
    exchanged = found.gains["shuffled"].questions
    return {"certified": found.passes, "own": round(found.own, 4), "exchanged": exchanged, "gains": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="patches whose name begins so")
    options = parser.parse_args()
    study, model = Study("certificates"), load("playroom", frames=FRAMES)
    for seed, kind, content in product(SEEDS, KINDS, ("deaf", "genuine")):
        key = f"{kind}-{content}-{seed}"
        if key in study or not key.startswith(options.only):
            continue
        begin = time.process_time()
        patch, losses = train(model, kind, {"deaf": "other", "genuine": "own"}[content], seed)
        trained = time.process_time()
        found = certify(model, patch, kind, seed)
        seconds = [round(trained - begin, 1), round(time.process_time() - trained, 1)]
        study.add(key, {**found, "loss": [round(loss, 3) for loss in losses[9::10]], "seconds": seconds})
        show(key, study.runs[key])
    for content, verdict in (("deaf", False), ("genuine", True)):
        runs = [run for key, run in study.runs.items() if f"-{content}-" in key]
        print(f"{content}: {sum(run['certified'] == verdict for run in runs)} of {len(runs)} as they should be")


def show(key: str, run: dict[str, Any]) -> None:
    gains = "  ".join(f"{name} {run['gains'][name][0]:+.2f} [{run['gains'][name][1]:+.2f}]" for name in SIDES)
    print(
        f"{key:20} {run['own']:.2f}  {gains}  {'certified' if run['certified'] else 'refused'}  {run['seconds']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
