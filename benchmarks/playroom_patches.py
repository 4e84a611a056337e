"""Do the shipped patches use their sense? Their recipes, trained from files, against controls without the sense.

    python benchmarks/playroom_patches.py            # all, seeds 0, 1, 2: five to ten minutes each, favor hours
    python benchmarks/playroom_patches.py fast imu   # some
    python benchmarks/playroom_patches.py --small    # seed 0, few clips and steps: a quick test of the script

For every seed, on the same held-out clips (split `test`, scenes that no training clip shares):
    base       the embedded base; with the underlying patches, if the recipe builds on some
    patched    fusion and LoRA, trained on frames and signal
    shuffled   the same patch, every clip with the signal of another one
    without    only LoRA, trained on the same questions for the same steps, without the signal
    alone      the recipe trained without the underlying patches, if it builds on some
    text-only  the most frequent answer to the same question in the training file
    coarse     for `favor`: only fusion and LoRA, on one sound spectrum per second
    plain      for `favor`: only fusion and LoRA, on all fifty spectra per second
and the exact best score without the sense (`optimum`), or with one of two senses (`hearing`, `seeing`). Run again, it
continues where it stopped, also within a training.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any

from study import Study

from pave.data import Example
from pave.data_sets import Sets
from pave.errors import TrainingError
from pave.evaluation.accuracy import Evaluation, Sample, evaluate
from pave.features.cache import FeatureCache
from pave.features.stored import Stored
from pave.hub.catalogue import folder_of, names
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data
from pave.recipe import Recipe, read_recipe
from pave.training.dataset import Dataset, TrainingClip, data_of
from pave.training.run import Run
from pave.training.setup import Setup

SEEDS = (0, 1, 2)
TEST_CLIPS = {"favor": 800}  # more, for its seven kinds of question; others 400
OURS = "-playroom"
ALONE = ("resampler=null", "senses={audio: {encoder: logmel, options: {bands: 48, rate: 50}}}")
PEERS = {"favor": {"coarse": (*ALONE, "senses.audio.options.rate=1"), "plain": ALONE}}  # further controls
BOUNDS = {"optimum", "hearing", "seeing"}


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy by channel, with the number of questions and the exact best scores without the sense."""
    bounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for facts in (sample.example.facts for sample in evaluation.samples):
        for name in BOUNDS & facts.keys():
            bounds[facts["channel"]][name].append(facts[name])
    return {
        channel: {
            "accuracy": round(score.accuracy, 4),
            "asked": score.asked,
            **{name: round(mean(each), 4) for name, each in sorted(bounds[channel].items())},
        }
        for channel, score in evaluation.by().items()
    }


def control(recipe: Recipe, clips: Sequence[TrainingClip], name: str, **changes: Any) -> PatchedModel:
    """The recipe with changes of `train`, trained on clips that have been encoded already."""
    output = recipe.output.with_name(f"{recipe.output.name}-{name}")
    output.mkdir(parents=True, exist_ok=True)
    options = recipe.train.model_copy(update={**changes, "output": output})
    setup = Setup.of(recipe.model_copy(update={"train": options}))
    fit(Run.of(setup, Dataset(list(clips), [], dict(setup.senses), {}, [], {})))
    return setup.model


def fit(run: Run) -> int:
    """Train, resuming this run if it was interrupted; returns the step it resumed from."""
    try:
        run.resume()
    except TrainingError as error:  # the checkpoint is of another run
        print(f"from the start: {error}")
    begin = run.kept
    run.fit(lambda step, steps, figures: None)
    return begin


def without(features: ClipFeatures, keys: Sequence[str]) -> ClipFeatures:
    """The clip without some of its signals."""
    return replace(features, sides={**features.sides, **dict.fromkeys(keys)})


def held_out(recipe: Recipe, folder: Path, clips: int) -> list[Example]:
    """The held-out questions, on scenes that no training clip shares."""
    assert recipe.data.playroom
    asked = [channel for channel in recipe.data.playroom.channels if channel != "caption"]
    return read_data(write_clips(folder / "test", clips, 0, "test", asked))


def text_only(train_file: Sets, examples: Sequence[Example]) -> Evaluation:
    """The most frequent answer to the same question, or to questions of the same kind."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for example in read_data(train_file):
        known[example.question][example.answer] += 1
        known[example.facts["kind"]][example.answer] += 1
    guess = [known.get(example.question) or known[example.facts["kind"]] for example in examples]
    return Evaluation(tuple(Sample(e, g.most_common(1)[0][0]) for e, g in zip(examples, guess, strict=True)))


def run_seed(name: str, seed: int, folder: Path, overrides: Sequence[str], test_clips: int) -> dict[str, Any]:
    """One seed, with its own clips, run and controls."""
    output = folder / f"seed-{seed}"
    words = [*overrides, f"data.playroom.seed={seed}", f"train.seed={seed}", f"train.output={output}"]
    recipe = read_recipe(folder_of(name), words)
    train_file, _ = data_of(recipe.data, output)  # written first, so that the training time excludes it
    begin = time.perf_counter()
    run = Run.begin(recipe)
    resumed = fit(run)
    result = run.finish()
    seconds = None if resumed else round(time.perf_counter() - begin, 1)  # None: interrupted
    test = held_out(recipe, folder, test_clips)
    patch = Patch.load(result.patch)

    fresh = Setup.of(recipe)
    own, seeing = [encoder.spec.preprocessing for encoder in fresh.senses.values()], fresh.model
    below = list(seeing.patches)
    seeing.apply_patch(patch)
    sources = list(dict.fromkeys(example.source for example in test))
    features = FeatureCache(seeing, seeing.encoders(), folder / "features").read(sources)
    scores = {
        "base": evaluate(seeing, test, patches=below, features=features),
        "patched": evaluate(seeing, test, features=features),
        "shuffled": evaluate(seeing, test, features=features, side="shuffled"),
        "text-only": text_only(train_file, test),
    }
    unseen = [replace(clip, stored=Stored.of(without(clip.features, own))) for clip in run.dataset.train]
    blind = control(recipe, unseen, "without", keep_lora_when_absent=True)
    lacking = {source: without(clip, own) for source, clip in features.items()}
    scores["without"] = evaluate(blind, test, features=lacking)
    if below:
        scores["alone"] = evaluate(control(recipe, run.dataset.train, "alone", on_top_of=()), test, features=features)
    for left in folder.glob(f"seed-{seed}*/checkpoint.safetensors"):
        left.unlink()  # so that running again without results starts from scratch
    return {
        "seconds": seconds,
        "seconds_by_part": result.metrics["seconds"],
        "base": patch.config.base.fingerprint[:12],
        "patch_bytes": result.patch.stat().st_size,
        "sha256": patch.sha256,
        **{name: figures(evaluation) for name, evaluation in scores.items()},
    }


def run_peer(patch: str, peer: str, seed: int, folder: Path) -> dict[str, Any]:
    """A variant of the recipe, on the same clips and questions as `run_seed`."""
    output = folder / f"seed-{seed}"
    words = [f"data.playroom.seed={seed}", f"train.seed={seed}", f"train.output={output}", *PEERS[patch][peer]]
    run = Run.begin(
        read_recipe(folder_of(patch + OURS), [*words, "train.eval_every=100000", "train.checkpoint_every=100000"])
    )
    fit(run)
    test = held_out(run.setup.recipe, folder, TEST_CLIPS.get(patch, 400))
    sources = list(dict.fromkeys(example.source for example in test))
    features = FeatureCache(run.setup.model, run.setup.model.encoders(), folder / "features").read(sources)
    return figures(evaluate(run.setup.model, test, features=features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name.removesuffix(OURS) for name in names() if name.endswith(OURS)]
    parser.add_argument("patches", nargs="*", choices=[[], *known], metavar="PATCH", help=f"of {', '.join(known)}")
    parser.add_argument("--small", action="store_true", help="few clips and steps; writes no result")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "pave-playroom")
    options = parser.parse_args()
    patches = options.patches or known
    if options.small:
        small = ["data.playroom.clips=16", "train.steps=4", "train.batch=8"]
        for patch in patches:
            show(f"{patch}, small", run_seed(patch + OURS, 0, options.folder / "small" / patch, small, 8))
        return
    studies = {patch: Study(f"playroom_{patch}") for patch in patches}
    for seed, (patch, study) in product(SEEDS, studies.items()):
        key = f"seed {seed}"
        if key not in study:
            study.add(key, run_seed(patch + OURS, seed, options.folder / patch, (), TEST_CLIPS.get(patch, 400)))
        for peer in PEERS.get(patch, ()):
            if peer not in study.runs[key]:
                study.add(key, {**study.runs[key], peer: run_peer(patch, peer, seed, options.folder / patch)})
        show(f"{patch}, {key}", study.runs[key])


def show(key: str, run: dict[str, Any]) -> None:
    time_taken = f"{run['seconds']} s" if run["seconds"] else "more than one go"
    print(f"\n{key}: trained in {time_taken}, patch of {run['patch_bytes']:,} bytes")
    names = ("base", "text-only", "without", "alone", "coarse", "plain", "shuffled", "patched")
    order = [name for name in names if name in run]
    print(f"{'channel':16} {'asked':>6} " + " ".join(f"{name:>10}" for name in order) + "  best without")
    for channel, own in run["patched"].items():
        row = " ".join(f"{run[name][channel]['accuracy']:10.3f}" for name in order)
        bounds = ", ".join(f"{name} {own[name]:.3f}" for name in sorted(BOUNDS & own.keys()))
        print(f"{channel:16} {own['asked']:6} {row}  {bounds}")


if __name__ == "__main__":
    main()
