"""What keeps a base from forgetting what it knew while a patch is trained, and what does that cost in accuracy?

    python benchmarks/keep_study.py                 # audio-playroom, three seeds per setting; two hours
    python benchmarks/keep_study.py RECIPE [KEY=VALUE ...]   # another recipe: a file, its folder, or a catalogue name
    python benchmarks/keep_study.py --table         # the results so far, and the plot

Every setting differs from the recipe in the keys named below, alone. Accuracy is that of the held-out questions under
teacher forcing; retention is measured as by `pave-train`, on 50 questions that training never asks. Run again, it
continues with the missing runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any

from study import RESULTS, Study

from pave.hub import catalogue
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.run import Run
from pave.training.setup import Setup

SETTINGS: dict[str, tuple[str, ...]] = {
    "nothing kept": ("train.keep=0",),
    "keep 1": ("train.keep=1",),
    "keep 3": ("train.keep=3",),
    "keep 10": ("train.keep=10",),
    "no LoRA": ("train.keep=0", "lora=null"),
    "no LoRA, keep 1": ("train.keep=1", "lora=null"),
    "no LoRA, keep 10": ("train.keep=10", "lora=null"),
    "LoRA of attention, keep 3": ("train.keep=3", "lora.target_modules=[q_proj, k_proj, v_proj, o_proj]"),
    "LoRA r=2, keep 3": ("train.keep=3", "lora.r=2", "lora.lora_alpha=2"),
    "slow LoRA, keep 3": ("train.keep=3", "train.lora_lr=5e-4"),
}
COMMON = ("train.mean_over=questions", "train.eval_every=1000000", "train.checkpoint_every=1000000")
SEEDS = (0, 1, 2)


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, recipe: str, words: Sequence[str], folder: Path) -> None:
        self.recipe, self.words, self.folder = recipe, words, folder
        self.seen: Dataset | None = None

    def run(self, words: tuple[str, ...], seed: int) -> dict[str, Any]:
        """One training: held-out accuracy by channel, retention, and seconds of a step."""
        words = (*self.words, *COMMON, *words, f"train.seed={seed}", f"train.output={self.folder}")
        setup = Setup.of(catalogue.recipe(self.recipe, words))
        self.seen = self.seen or read_dataset(setup)
        run = Run.of(setup, self.seen)
        begin = time.process_time()
        run.fit(lambda step, steps, figures: None)
        seconds = (time.process_time() - begin) / run.steps
        found = token_accuracy(setup.model, self.seen.val, setup.names, 8)
        kept = run.probe.measure(setup.model, setup.names, whole=True)
        accuracy = {channel: round(share, 4) for channel, share in found.items()}
        return {"accuracy": accuracy, "retention": kept.facts(), "core_seconds_of_a_step": round(seconds, 3)}


def plot(rows: dict[str, tuple[float, float]], path: Path) -> None:
    """Accuracy against retention, a point per setting."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, (kept, right) in rows.items():
        axis.plot(kept, right, "o")
        axis.annotate(name, (kept, right), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel("retention: share of the base's tokens that stay")
    axis.set_ylabel("held-out questions answered right")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="audio-playroom")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="for all settings")
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, help="for clips and features")
    options = parser.parse_args()
    name = catalogue.recipe(options.recipe, options.words).name
    study = Study(f"keep_{name}")
    bench = Bench(options.recipe, options.words, options.folder or Path(gettempdir()) / f"pave-keep-{name}")
    for seed in () if options.table else SEEDS:
        for setting, words in SETTINGS.items():
            if (key := f"{setting}, seed {seed}") not in study:
                study.add(key, bench.run(words, seed))
                print(key, study.runs[key], flush=True)
    rows = {}
    print(f"{'setting':26} {'runs':>4} {'right':>14} {'tokens kept':>14} {'KL':>7} {'answers':>8} {'s/step':>7}")
    for setting in SETTINGS:
        runs = [run for seed in SEEDS if (run := study.runs.get(f"{setting}, seed {seed}"))]
        if not runs:
            continue
        right, tokens, kl, answers = (
            [run[part][key] for run in runs]
            for part, key in (
                ("accuracy", "all"),
                *(("retention", figure) for figure in ("tokens", "kl", "answers")),
            )
        )
        rows[setting] = mean(tokens), mean(right)
        step = mean(run["core_seconds_of_a_step"] for run in runs)
        shares = "".join(f" {min(each):7.3f}-{max(each):.3f}" for each in (right, tokens))
        print(f"{setting:26} {len(runs):4}{shares} {mean(kl):8.3f} {mean(answers):8.3f} {step:7.2f}")
    if rows:
        plot(rows, RESULTS / f"keep_{name}.png")


if __name__ == "__main__":
    main()
