"""Trainings, and the same without what matters.

In: a recipe, a folder of clips with their features, a seed. Out: figures, on the same held-out clips, of
    base       the base alone
    patched    fusion and LoRA, trained with sound
    shuffled   the same patch, every clip with the sound of another one
    off        the same patch, no sound: the base's answers
    without    LoRA alone, trained on the same questions without sound, for at most GUESSING steps: it can but guess
Trainings and encoding are the public commands' own functions, and both go on where they were stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gates
import sentences

import pave
from pave.evaluation.accuracy import Evaluation, Sample
from pave.features import extract, worker
from pave.features.cache import FeatureCache
from pave.readers.questions import read_data
from pave.recipe import Recipe, read_recipe
from pave.training.checkpoint import NAME
from pave.training.retention import Probe

HERE = Path(__file__).parent
NEVER = 10**6  # steps
BATCH = 8  # clips of an evaluation
GUESSING = 100


@dataclass(frozen=True)
class Training:
    """One row of a table."""

    recipe: str  # of this folder
    data: str  # folder of clips
    overrides: tuple[str, ...] = ()
    controls: bool = True  # train `without`, too, for seed 0
    seeds: tuple[int, ...] = (0,)
    after: str = ""  # the name of another one, whose patch of the same seed it begins with


def encode(data: Path, recipe: Recipe) -> Path:
    """The features of all clips of a folder for the recipe's only sense, written once for all trainings."""
    ((_, sense),) = recipe.senses.items()
    out = data.with_name(f"{data.name}-{sense.encoder}-{sense.options.get('rate', '')}")
    clips, _ = extract.found(data)
    begin = time.perf_counter()
    tally = extract.encode(worker.Job(sense.encoder, dict(sense.options)), clips, out, workers=os.cpu_count() or 1)
    if tally.refused:
        raise pave.DataError(f"{data}: {len(tally.refused)} clips cannot be read; delete the folder and run again")
    if (took := time.perf_counter() - begin) > 1:
        print(f"{out}: {len(clips)} clips encoded in {took:.0f} s", flush=True)
    return out


def recipe_of(training: Training, seed: int, place: Path, more: Sequence[str] = ()) -> Recipe:
    """The recipe with the places of this machine."""
    data = place / training.data
    return read_recipe(
        HERE / f"{training.recipe}.yaml",
        [
            f"base={place / 'base'}",
            f"data.train={data / 'train.jsonl'}",
            f"data.val={data / 'test.jsonl'}",
            "data.features=[]",
            f"train.seed={seed}",
            f"train.eval_every={NEVER}",
            *training.overrides,
            *more,
        ],
    )


def ready(
    name: str, trainings: Mapping[str, Training], seed: int, place: Path, more: Sequence[str] = ()
) -> tuple[Recipe, Path]:
    """The recipe of a row and its features; those that it comes after are trained."""
    training = trainings[name]
    if training.after:
        recipe, _ = ready(training.after, trainings, seed, place)
        patch = pave.train(recipe, resume=True, progress=told(training.after)).patch
        more = [f"train.start_from={patch}", *more]
    runs = place / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    features = encode(place / training.data, recipe_of(training, seed, place))
    return recipe_of(training, seed, place, [f"data.features=[{features}]", f"train.output={runs}", *more]), features


def run(name: str, trainings: Mapping[str, Training], seed: int, place: Path) -> dict[str, Any]:
    """Train and measure one row for one seed."""
    training = trainings[name]
    recipe, features = ready(name, trainings, seed, place)
    runs = recipe.output
    resumed = (runs / NAME).exists()
    begin, spent = time.perf_counter(), time.process_time()
    result = pave.train(recipe, resume=True, progress=told(name))
    seconds, spent = time.perf_counter() - begin, time.process_time() - spent
    model = pave.load(recipe.base, frames=recipe.frames, dtype=recipe.train.dtype)
    model.apply_patch(result.patch)
    test, cache = place / training.data / "test.jsonl", runs / "test"

    def measured(side: Any = "own", patches: Sequence[str] | None = None) -> dict[str, Any]:
        found = pave.evaluate(model, test, side=side, patches=patches, cache=cache, made=[features], batch=BATCH)
        return figures(found)

    metrics: Any = result.metrics
    return {
        "steps": recipe.train.steps,
        "batch": recipe.train.batch,
        # Of all threads, also while they wait for each other. A resumed run does not know those of its first part.
        **({} if resumed else {"seconds": round(seconds, 1), "core_seconds": round(spent, 1)}),
        "seconds_by_part": metrics["seconds"],
        "base_fingerprint": pave.Patch.load(result.patch).config.base.fingerprint[:12],
        "patch_bytes": result.patch.stat().st_size,
        "last_loss": round(sum(metrics["loss"][-10:]) / len(metrics["loss"][-10:]), 4),
        "keep": recipe.train.keep,
        "retention": metrics["retention"],
        "by_heart": metrics["by_heart"],
        "retention_unseen": unseen(model, test, cache, features),
        "base": measured(patches=()),
        "patched": measured(),
        "shuffled": measured("shuffled"),
        "off": measured("off"),
        **({"without": without(training, seed, place, runs)} if training.controls and not seed else {}),
    }


def unseen(model: pave.PatchedModel, test: Path, cache: Path, features: Path) -> dict[str, float]:
    """Retention on the questions of `gates` that need no sound, which nobody had seen when the rules were fixed."""
    store = FeatureCache(model, model.encoders(), cache, (features,))
    clips = list(store.read(list(dict.fromkeys(each.source for each in read_data(test)))).stored.values())
    probe = Probe.of(model, clips, questions=gates.unseen("need no clip", "about pictures"))
    return probe.measure(model, list(model.patches), whole=True).facts()


def without(training: Training, seed: int, place: Path, runs: Path) -> dict[str, Any]:
    """The control that never hears: LoRA alone, on clips whose sound is taken away."""
    data, silent = place / training.data, runs.with_name(f"{runs.name}-without")
    for split in ("train", "test"):
        silence(data / f"{split}.jsonl", data / f"{split}-silent.jsonl")
    more = [
        f"data.train={data / 'train-silent.jsonl'}",
        "data.val=null",
        f"train.output={silent}",
        "train.keep_lora_when_absent=true",
        *("train.keep=0", "train.gate=false"),
    ]
    steps = recipe_of(training, seed, place).train.steps or GUESSING
    recipe = recipe_of(training, seed, place, [*more, f"train.steps={min(GUESSING, steps)}"])
    result = pave.train(recipe, resume=True, progress=told("without"))
    model = pave.load(recipe.base, frames=recipe.frames, dtype=recipe.train.dtype)
    model.apply_patch(result.patch)
    return figures(pave.evaluate(model, data / "test-silent.jsonl", cache=silent / "test", batch=BATCH))


def silence(file: Path, target: Path) -> None:
    """The same lines, whose clips have no sound."""
    lines = [{**json.loads(line), "signals": {"audio": None}} for line in file.read_text("utf-8").splitlines()]
    target.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def told(name: str) -> Any:
    """Progress on a terminal, every 25 steps."""

    def progress(step: int, steps: int, now: Mapping[str, float]) -> None:
        if step % 25 == 0 or step == steps:
            print(f"{name}: step {step} of {steps}, loss {now['loss']:.3f}", flush=True)

    return progress


def figures(found: Evaluation) -> dict[str, Any]:
    """Accuracy; strict pairs where clips are paired; word error rate of sentences; some answers."""
    samples = found.samples
    made: dict[str, Any] = {"accuracy": round(found.accuracy, 4), "asked": len(samples)}
    pairs: dict[str, list[Sample]] = defaultdict(list)
    speakers: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if "pair" in sample.example.facts:
            pairs[sample.example.facts["pair"]].append(sample)
        speakers[str(sample.example.facts.get("speaker"))].append(sample)
    if pairs:
        strict = [all(sample.right for sample in each) for each in pairs.values() if len(each) == 2]
        made |= {"strict_pairs": round(sum(strict) / len(strict), 4), "pairs": len(strict)}
        swapped = [one.answer != other.answer for one, other in pairs.values()]
        made["answer_follows_the_sound"] = round(sum(swapped) / len(swapped), 4)
    if len(speakers) > 1:
        made["by_speaker"] = {key: round(sum(s.right for s in each) / len(each), 4) for key, each in speakers.items()}
    if samples[0].example.question == sentences.QUESTION:
        texts = [(sample.example.answer, sample.answer) for sample in samples]
        made["word_error_rate"] = round(sentences.error_rate(texts), 4)
    made["for_example"] = [[sample.example.answer, sample.answer] for sample in samples[:6]]
    return made


def interval(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927, equation of the score interval)."""
    share, room = right / asked, z * z / asked
    centre = (share + room / 2) / (1 + room)
    half = z / (1 + room) * (share * (1 - share) / asked + room / (4 * asked)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
