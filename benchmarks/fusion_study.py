"""Which fusion should new recipes use: `folded` or `official` (the PAVE paper's)? Equal data, steps, size and tuning.

    python benchmarks/fusion_study.py            # tunes on one seed, then 5 seeds per kind; half an hour
    python benchmarks/fusion_study.py --table    # the results so far

Every kind is tuned over the same three learning rates on a seed that is used for nothing else; the rate with the best
held-out accuracy then runs on seeds 0 to 4. Widths are chosen for about equal parameter counts. Accuracies are on
held-out questions of the sound channels. Run again, it continues with the missing runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean, stdev
from tempfile import gettempdir
from typing import Any

from study import Study

from pave.hub.catalogue import folder_of
from pave.recipe import read_recipe
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.run import Run
from pave.training.setup import Setup

KINDS = {
    "folded": ["fusion.kind=folded", "fusion.width=160"],
    "official": [
        "fusion.kind=official",
        "fusion.width=64",
        "fusion.head=norm",
        "fusion.values=shared",
    ],
    "official, linear head": [
        "fusion.kind=official",
        "fusion.width=64",
        "fusion.head=linear",
        "fusion.values=shared",
    ],
}
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
BUDGET = ["train.steps=100", "train.batch=12", "data.playroom.clips=800", "data.playroom.seed=7"]
CHANNELS = ("audio", "audio+video", "order")


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: Dataset | None = None

    def start(self, words: list[str]) -> Run:
        """A run within the budget, before its first step."""
        words = [*words, *BUDGET, f"train.output={self.folder}"]
        setup = Setup.of(
            read_recipe(
                folder_of("audio-playroom"), [*words, "train.eval_every=100000", "train.checkpoint_every=100000"]
            )
        )
        self.seen = self.seen or read_dataset(setup)
        return Run.of(setup, self.seen)

    def run(self, kind: str, rate: float, seed: int) -> dict[str, Any]:
        """One run of at most a minute: accuracy by channel, and its cost."""
        run = self.start([*KINDS[kind], f"train.fusion_lr={rate}", f"train.seed={seed}"])
        begin = time.perf_counter()
        run.fit(lambda step, steps, figures: None)
        report = run.setup.model.patches["audio-playroom"]
        return {
            "accuracy": {
                key: round(value, 4)
                for key, value in token_accuracy(run.setup.model, run.dataset.val, run.setup.names, 8).items()
            },
            "seconds": round(time.perf_counter() - begin, 1),
            "fusion_params": report.fusion_params,
            "last_loss": round(mean(run.losses[-10:]), 4),
        }


def score(run: dict[str, Any]) -> float:
    """Mean over the sound channels."""
    return mean(run["accuracy"][channel] for channel in CHANNELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "pave-fusion-study")
    options = parser.parse_args()
    study, bench = Study("fusion_study"), Bench(options.folder)

    def get(kind: str, rate: float, seed: int) -> dict[str, Any] | None:
        key = f"{kind}, rate {rate:g}, seed {seed}"
        if key not in study and not options.table:
            study.add(key, bench.run(kind, rate, seed))
            print(key, study.runs[key], flush=True)
        return study.runs.get(key)

    best = {}
    for kind in KINDS:
        tuned = {rate: run for rate in RATES if (run := get(kind, rate, TUNING_SEED))}
        best[kind] = max(tuned, key=lambda rate: score(tuned[rate])) if tuned else RATES[0]
    print(f"\n{'kind':23} {'rate':>6} {'params':>8} {'runs':>4}  {'sound channels':>15}  " + "  ".join(CHANNELS))
    for kind in KINDS:
        runs = [run for seed in SEEDS if (run := get(kind, best[kind], seed))]
        if runs:
            scores = [score(run) for run in runs]
            spread = stdev(scores) if len(scores) > 1 else 0.0
            parts = "  ".join(f"{mean(run['accuracy'][c] for run in runs):{len(c)}.3f}" for c in CHANNELS)
            counts = f"{best[kind]:6g} {runs[0]['fusion_params']:8,} {len(runs):4}"
            print(f"{kind:23} {counts}  {mean(scores):7.3f} ± {spread:.3f}  {parts}")


if __name__ == "__main__":
    main()
