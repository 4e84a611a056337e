"""Does a certificate tell patches that listen from patches that only seem to? Planted deaf ones, and genuine ones.

    python benchmarks/certificates.py            # 20 deaf and 20 genuine patches; goes on after a stop
    python benchmarks/certificates.py --only loudness-deaf-0
    python benchmarks/certificates.py --readers  # in place of patches, linear readers of the same side tokens: minutes

Writes benchmarks/results/certificates.json, and certificates_readers.json. For each of four labelled sets
(benchmarks/planted.py) and five seeds, two patches are trained on the embedded base with the recipe of
`audio-playroom`, and certified on the same held-out clips:

    genuine    on the set as it is: what is heard tells the answer
    deaf       on the same answers, but what is heard is drawn anew, and has nothing to do with them; only what the set
               is named after is left (nothing; whether there is a sound; how long the track is; how loud the sound is)

The clips are in memory, at two key frames. All questions are "what do you hear?", which do not ask when (`any_time`).
A reader sees what a patch sees of the sound, and its answers go through the same controls, exchanges and intervals;
only fusion and language model are replaced by a linear classifier, which learns in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from planted import KINDS, Content, Kind, planted
from study import Study

from pave.data import Example, Source
from pave.evaluation.certify import Ears, Trial
from pave.evaluation.labelled import named
from pave.features.stored import Stored
from pave.hub.catalogue import folder_of
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel, load
from pave.patch.certificate import Certificate
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.sidechannel import SideTokens
from pave.training.dataset import Dataset, training_clip
from pave.training.run import Run
from pave.training.setup import Setup

SEEDS = range(5)
TRAIN = 160  # clips
TEST = {"shuffled": 90, "presence": 90, "duration": 180, "loudness": 90}  # few clips are equally long
FRAMES, STEPS, BATCH = 2, 100, 8
RIDGE = 30.0
SIDES = ("shuffled", "silent", "envelope", "shifted")


def recipe_of(seed: int) -> Recipe:
    words = [f"train.seed={seed}", f"train.steps={STEPS}", f"train.batch={BATCH}", f"frames={FRAMES}"]
    output = Path(gettempdir()) / "pave-certify"
    output.mkdir(exist_ok=True)
    quiet = ["train.eval_every=100000", "train.checkpoint_every=100000"]
    return read_recipe(folder_of("audio-playroom"), [*words, *quiet, f"train.output={output}"])


def train(model: PatchedModel, kind: Kind, content: Content, seed: int) -> tuple[Patch, list[float]]:
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


def trial_of(model: PatchedModel, kind: Kind, seed: int) -> Trial:
    """The applied patch `planted` on held-out clips."""
    held_out = list(planted(kind, TEST[kind], seed, "test", "own", FRAMES))
    ears = Ears.of(model.encoders(), [clip for clip, _ in held_out[:16]])
    features: dict[Source, ClipFeatures] = {e.source: seen(model, clip, ears.all) for clip, (e,) in held_out}
    examples: list[Example] = [example for _, (example,) in held_out]
    return Trial(model, "planted", (), None, ears, examples, features, any_time=True)


def certify(model: PatchedModel, patch: Patch, kind: Kind, seed: int) -> dict[str, Any]:
    model.apply_patch(patch, name="planted")
    try:
        return figures(trial_of(model, kind, seed).run(None, {"batch": 60, "max_new_tokens": 2}, None, {}))
    finally:
        model.remove_patch("planted")


def figures(found: Certificate) -> dict[str, Any]:
    gains = {name: [round(each, 4) for each in (g.value, g.low or 0, g.high or 0)] for name, g in found.gains.items()}
    exchanged = found.gains["shuffled"].questions
    return {"certified": found.passes, "own": round(found.own, 4), "exchanged": exchanged, "gains": gains}


@dataclass(frozen=True)
class Reader:
    """In place of fusion and language model: ridge regression (Hoerl and Kennard 1970) from the mean, the maximum and
    the deviation of each channel over time, the length and the loudness, to the answers it was shown."""

    weights: np.ndarray  # (k answers)
    centre: np.ndarray  # (k)
    scale: np.ndarray  # (k)
    answers: list[str]

    @classmethod
    def of(cls, sides: list[SideTokens], answers: list[str]) -> Reader:
        x, known = np.stack([pooled(side) for side in sides]), sorted(set(answers))
        centre, scale = x.mean(0), x.std(0) + 1e-6
        x = np.concatenate([(x - centre) / scale, np.ones((len(x), 1))], axis=1)
        y = np.array([[answer == each for each in known] for answer in answers], np.float64)
        return cls(np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y), centre, scale, known)

    def answer(self, side: SideTokens) -> str:
        x = (pooled(side) - self.centre) / self.scale
        return self.answers[int(np.argmax([*x, 1.0] @ self.weights))]


def pooled(side: SideTokens) -> np.ndarray:
    """What a reader sees: also bumps over seconds and over decibels, so that it can tell any length and loudness."""
    x = side.x.flatten(1).double().numpy()
    level = 10 * np.log10((10 ** (2 * x - 5)).sum(1).mean())  # the encoder's scale undone: log10 power is 2 x - 5
    longs = np.exp(-(((len(x) / 20 - np.arange(1.5, 4.2, 0.4)) / 0.2) ** 2))
    louds = np.exp(-(((level - np.arange(-70, 1, 5)) / 3) ** 2))
    return np.array([*x.mean(0), *x.max(0), *x.std(0), *longs, *louds])


def read(model: PatchedModel, kind: Kind, content: Content, seed: int) -> dict[str, Any]:
    """The certificate of a reader: the runs and the comparison are those of a patch, only the answers are its own."""
    (encoder,) = model.encoders()
    key = encoder.spec.preprocessing
    shown = [
        (encoder.encode(clip), examples) for clip, examples in planted(kind, TRAIN, seed, "train", content, FRAMES)
    ]
    reader = Reader.of([side for side, _ in shown if side], [examples[0].answer for _, examples in shown])
    trial = trial_of(model, kind, seed)
    types = trial._types(trial.examples)
    donors = trial._donors(trial.examples, types, trial._strata())
    runs = trial._runs(trial.examples, donors)
    answers = {
        name: [reader.answer(side) for clip in run.clips if (side := run.features[clip].sides[key])]
        for name, run in runs.items()
    }
    exchangeable = np.array([donor is not None for donor in donors])
    masks = {run: np.ones(len(types), bool) for run in runs} | {"shuffled": exchangeable}
    given, decoder = named((), trial.examples, "kind", types), {"max_new_tokens": 2}
    return figures(trial._compared(trial.examples, types, answers, masks, given, decoder, {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="patches whose name begins so")
    parser.add_argument("--readers", action="store_true", help="linear readers in place of patches")
    options = parser.parse_args()
    study = Study("certificates_readers" if options.readers else "certificates")
    model = load("playroom", frames=FRAMES)
    if options.readers:
        model.apply_patch("audio-playroom", name="planted")  # whose encoder they read
    for seed, kind, content in product(SEEDS, KINDS, ("deaf", "genuine")):
        key = f"{kind}-{content}-{seed}"
        if key in study or not key.startswith(options.only):
            continue
        begin = time.process_time()
        heard: Content = "other" if content == "deaf" else "own"
        if options.readers:
            found = read(model, kind, heard, seed)
            study.add(key, {**found, "seconds": [round(time.process_time() - begin, 1)]})
            show(key, study.runs[key])
            continue
        patch, losses = train(model, kind, heard, seed)
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
