"""How small can a patch be, and what does it lose? Real files of 7B and 0.5B dimensions, and accuracy on the Playroom.

    python benchmarks/patch_size.py              # both parts, writes benchmarks/results/patch_size.json and .png
    python benchmarks/patch_size.py twice        # only what begins so: sizes, playroom, twice
    python benchmarks/patch_size.py --small      # one seed, few clips; writes nothing

Sizes: seeded random weights in the shapes of a Qwen2 of 7B and of 0.5B, side tokens of 1024 channels, LoRA of all seven
projections. Accuracy: the recipe `audio-playroom`, trained with five seeds on their own clips (existing clips of
`playroom_audio.py` are reused), evaluated on one set of held-out clips. `kept` is the share of the gain on questions
about sound (audio, audio+video, order together) that a smaller patch keeps. There the fusion does nearly all; so the
same again where the language model must change: every answer is said twice ("red red"), which the base never does.
`without LoRA` is the trained fusion alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from large import empty_model, random_patch
from study import RESULTS, Study

from pave.config import FusionConfig
from pave.data import Example, Source
from pave.evaluation.accuracy import Evaluation, evaluate
from pave.features.cache import FeatureCache
from pave.hub.catalogue import folder_of
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel, load
from pave.patch.file import Patch
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data
from pave.recipe import read_recipe
from pave.training.run import train

FUSIONS = {
    "folded": FusionConfig(),
    "official": FusionConfig(kind="official", values="shared", rope="off", head="norm"),
}
SEEDS = range(5)
STORED = (
    (8, None),
    (4, None),
    (8, 4),
    (4, 4),
    (4, 2),
    (4, 1),
)  # bits, ranks of 8; (4, 8) is the default of `shrink`
HEARD = ("audio", "audio+video", "order")
CHANNELS = ("video", *HEARD)
PARTS = ("sizes", "playroom", "twice")
BUDGET = ("train.steps=300", "train.batch=6", "train.fusion_lr=3e-3")  # of answers said twice


def size(base: str, fusion: str, rank: int) -> dict[str, Any]:
    """Bytes of a trained patch and of its default `shrink`, and the time that takes."""
    patch = random_patch(empty_model(base), FUSIONS[fusion], rank)
    begin = time.perf_counter()
    small = patch.shrink()
    seconds = time.perf_counter() - begin
    with TemporaryDirectory() as folder:
        written = small.save(Path(folder) / "small.safetensors").stat().st_size
    numbers = sum(tensor.numel() for tensor in patch.tensors.values())
    return {"numbers": numbers, "float32": patch.nbytes, "shrunk": written, "seconds_to_shrink": round(seconds, 1)}


def trained(seed: int, folder: Path, small: bool) -> Patch:
    """The patch of one seed, trained now unless it exists."""
    output = folder / f"seed-{seed}"
    if not (output / "patch.safetensors").is_file():
        words = ["data.playroom.clips=16", "train.steps=4", "train.batch=8"] if small else []
        words += [f"data.playroom.seed={seed}", f"train.seed={seed}", f"train.output={output}"]
        train(read_recipe(folder_of("audio-playroom"), words))
    return Patch.load(output)


def trained_twice(seed: int, folder: Path, small: bool) -> Patch:
    """The patch of one seed whose answers are said twice; its captions are not."""
    file = write_clips(folder / f"twice-{seed}", 16 if small else 800, seed, "train", (*CHANNELS, "caption"))
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        if line["channel"] != "caption":
            line["conversations"][1]["value"] = twice(line["conversations"][1]["value"])
    told = file.with_name("twice.jsonl")
    told.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = [*BUDGET, *(["train.steps=4"] if small else []), f"data={{train: {told}}}", f"train.seed={seed}"]
    output = folder / f"twice-{seed}" / "run"
    if not (output / "patch.safetensors").is_file():
        train(read_recipe(folder_of("audio-playroom"), [*words, f"train.output={output}"]))
    return Patch.load(output)


def twice(answer: str) -> str:
    return f"{answer} {answer}"


def without_lora(patch: Patch) -> Patch:
    """The fusion alone."""
    zeros = {name: torch.zeros_like(each) if name.startswith("lora.") else each for name, each in patch.tensors.items()}
    assert any(name.startswith("lora.") for name in zeros)
    return replace(patch, tensors=zeros)


def frontier(
    model: PatchedModel, patch: Patch, asked: list[Example], seen: Mapping[Source, ClipFeatures]
) -> dict[str, Any]:
    """Bytes and accuracy of a patch in several sizes."""

    def ask(each: Patch | None) -> Evaluation:
        if each is None:
            return evaluate(model, asked, patches=(), features=seen)
        model.apply_patch(each, name="now")
        try:
            return evaluate(model, asked, patches=["now"], features=seen)
        finally:
            model.remove_patch("now")

    def heard(evaluation: Evaluation) -> float:
        return replace(evaluation, samples=tuple(s for s in evaluation.samples if is_heard(s.example))).accuracy

    base, whole = heard(ask(None)), ask(patch)
    alone = without_lora(patch)
    rows = {"as trained": (patch, whole), "without LoRA": (alone, ask(alone))}
    for bits, rank in STORED:
        small = patch.shrink(bits, rank)
        rows[f"{bits} bits, rank {rank or 8}"] = small, ask(small)
    return {
        name: {
            "bytes": each.nbytes,
            "kept": round((heard(evaluation) - base) / (heard(whole) - base), 4) if heard(whole) != base else None,
            **{channel: round(score.accuracy, 4) for channel, score in evaluation.by().items()},
        }
        for name, (each, evaluation) in rows.items()
    }


def is_heard(example: Example) -> bool:
    return example.facts["channel"] in HEARD


def draw(study: Study, path: Path) -> None:
    """Plot bytes against the share of the gain that is kept, one point per seed and size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    runs = [run for key, run in study.runs.items() if key.startswith("playroom")]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, name in enumerate(runs[0]):
        found = [(run[name]["bytes"] / 1000, 100 * run[name]["kept"]) for run in runs]
        axes.scatter(*zip(*found, strict=True), s=28, label=name, color=f"C{i}", alpha=0.8)
    axes.axhline(99, color="grey", lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="tensors of the patch, kB", ylabel="gain kept, %", title="audio-playroom, smaller")
    ticks = [30, 50, 75, 100, 150, 300, 550]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--small", action="store_true", help="one seed, few clips and steps; writes no result")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds; default: all %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "pave-playroom-audio")
    options = parser.parse_args()
    study, parts = Study("patch_size"), options.parts or PARTS
    if "sizes" in parts:
        sizes(study, options.small)
    folder = options.folder / "small" if options.small else options.folder
    test = folder / "test-small"
    asked = read_data(write_clips(test, 8 if options.small else 150, 0, "test"))
    both = [replace(each, answer=twice(each.answer)) for each in asked]
    model = load("playroom")
    seeds = SEEDS[:1] if options.small else SEEDS[: options.seeds]
    for part, make, questions in (("playroom", trained, asked), ("twice", trained_twice, both)):
        for seed in seeds if part in parts else ():
            key = f"{part}, seed {seed}"
            if options.small or key not in study:
                patch = make(seed, folder, options.small)
                encoders = [model.encoder(each) for each in patch.config.senses.values()]
                clips = list(dict.fromkeys(each.source for each in asked))
                seen = FeatureCache(model, encoders, test / "features").read(clips)
                found = frontier(model, patch, questions, seen)
                if not options.small:
                    study.add(key, found)
            else:
                found = study.runs[key]
            for name, row in found.items():
                print(key, name, row, flush=True)
    if not options.small:
        draw(study, RESULTS / "patch_size.png")


def sizes(study: Study, small: bool) -> None:
    """Files of large dimensions."""
    for base in ("0.5B",) if small else ("0.5B", "7B"):
        for fusion in FUSIONS:
            for rank in (16, 64):
                key = f"{base}, {fusion}, LoRA r={rank}"
                if small or key not in study:
                    figures = size(base, fusion, rank)
                    if small:
                        print(key, figures)
                        continue
                    study.add(key, figures)
                print(key, study.runs[key], flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
