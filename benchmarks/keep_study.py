"""What keeps a base from forgetting what it knew while a patch is trained, and what does that cost in accuracy?

    python benchmarks/keep_study.py                 # audio-playroom, three seeds per setting; two hours
    python benchmarks/keep_study.py RECIPE [KEY=VALUE ...]   # another recipe: a file, its folder, or a catalogue name
    python benchmarks/keep_study.py --table         # the results so far, and the plot

Every setting differs from the recipe in the keys named below, alone. Accuracy is that of the held-out questions under
teacher forcing; retention is measured as by `pave-train`, on 50 questions that training never asks, without a gate. Run
again, it continues with the missing runs.

The digits of `make real`, with PAVE_WHISPER=real/whisper-tiny.en in the environment:
    python benchmarks/keep_study.py benchmarks/real/words.yaml name=real-digits train.steps=160 \
        data.train=real/digits/train.jsonl data.val=real/digits/test.jsonl base=real/base
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
from pave.training.loss import score
from pave.training.run import Run
from pave.training.setup import Setup

SETTINGS: dict[str, tuple[str, ...]] = {
    "nothing kept": ("train.keep=0",),
    "keep 1": ("train.keep=1",),
    "keep 10": ("train.keep=10",),
    "keep 1, LoRA at 3e-3": ("train.keep=1", "train.lora_lr=3e-3"),
    "keep 1, LoRA at 3e-4": ("train.keep=1", "train.lora_lr=3e-4"),
    "keep 1, no LoRA": ("train.keep=1", "lora=null"),
    "keep 1, LoRA of attention": ("train.keep=1", "lora.target_modules=[q_proj, k_proj, v_proj, o_proj]"),
    "keep 1, LoRA of rank 1": ("train.keep=1", "lora.r=1", "lora.lora_alpha=1"),
    "no LoRA": ("train.keep=0", "lora=null"),
}
COMMON = ("train.mean_over=questions", "train.eval_every=1000000", "train.checkpoint_every=1000000")
SEEDS = (0, 1, 2)


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, recipe: str, words: Sequence[str], folder: Path) -> None:
        self.recipe, self.words, self.folder = recipe, words, folder
        self.seen: Dataset | None = None

    def run(self, words: tuple[str, ...], seed: int) -> dict[str, Any]:
        """One training: held-out accuracy by channel and loss, retention without a gate, and seconds of a step."""
        words = (*self.words, *COMMON, *words, f"train.seed={seed}", f"train.output={self.folder}")
        setup = Setup.of(catalogue.recipe(self.recipe, words))
        self.seen = self.seen or read_dataset(setup)
        run = Run.of(setup, self.seen)
        begin = time.process_time()
        run.fit(lambda step, steps, figures: None)
        seconds = (time.process_time() - begin) / run.steps
        found = score(setup.model, self.seen.val, setup.names, 8)
        kept = run.probe.measure(setup.model, setup.names, whole=True)
        return {
            "accuracy": {channel: round(share, 4) for channel, share in found.right.items()},
            "loss": round(found.loss, 4),
            "retention": kept.facts(),
            "core_seconds_of_a_step": round(seconds, 3),
        }


def plot(rows: dict[str, tuple[float, float]], path: Path) -> None:
    """Held-out loss against retention, a point per setting; accuracy may be the same for all."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, (kept, loss) in rows.items():
        axis.plot(kept, loss, "o")
        axis.annotate(name, (kept, loss), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
    axis.set_yscale("log")
    axis.margins(x=0.2)  # for the names
    axis.set_xlabel("retention: share of the base's tokens that stay")
    axis.set_ylabel("loss of held-out questions, nats")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="audio-playroom")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="for all settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, help="for clips and features")
    options = parser.parse_args()
    name = catalogue.recipe(options.recipe, options.words).name
    study = Study(f"keep_{name}")
    bench = Bench(options.recipe, options.words, options.folder or Path(gettempdir()) / f"pave-keep-{name}")
    for seed in () if options.table else options.seeds:
        for setting, words in SETTINGS.items():
            if (key := f"{setting}, seed {seed}") not in study:
                study.add(key, bench.run(words, seed))
                print(key, study.runs[key], flush=True)
    rows = {}
    print(f"{'setting':25} runs {'right':>11} {'loss':>6} {'tokens kept':>11} {'KL':>6} answers s/step")
    for setting in SETTINGS:
        runs = [run for seed in options.seeds if (run := study.runs.get(f"{setting}, seed {seed}"))]
        if not runs:
            continue
        right = [run["accuracy"]["all"] for run in runs]
        tokens, kl, answers = ([run["retention"][figure] for run in runs] for figure in ("tokens", "kl", "answers"))
        loss, step = (mean(run[figure] for run in runs) for figure in ("loss", "core_seconds_of_a_step"))
        rows[setting] = mean(tokens), loss
        rights, kept = (f"{min(each):.3f}-{max(each):.3f}" for each in (right, tokens))
        print(
            f"{setting:25} {len(runs):4} {rights} {loss:6.3f} {kept} {mean(kl):6.3f} {mean(answers):7.3f} {step:6.2f}"
        )
    if rows:
        plot(rows, RESULTS / f"keep_{name}.png")


if __name__ == "__main__":
    main()
