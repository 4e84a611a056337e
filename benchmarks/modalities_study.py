"""Does training with pictures, sound and both by turns help, and can a patch then answer from sound alone?

    python benchmarks/modalities_study.py            # five seeds of four schedules; forty minutes
    python benchmarks/modalities_study.py --table    # the results so far

Equal data, steps and rates; the schedules differ in `train.modalities` alone:

together       every clip with all that it has
mixed          the three kinds in every batch (MAT: Shu et al., arXiv 2312.06720)
joint first    together, then pictures and sound apart (PT1 there)
apart first    pictures and sound apart, then together (PT2 there)

Accuracy is that of the held-out questions under teacher forcing: of clips with both, with their sound alone, and with
their pictures alone. Run again, it continues with the missing runs.
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
from pave.recipe import MODALITIES, read_recipe
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.modalities import seen_with
from pave.training.run import Run
from pave.training.setup import Setup

STEPS = 120
NEEDS = "needs: {video: pictures, audio: sound, order: sound, audio+video: both}"
TOGETHER = f"{{pictures: 0, sound: 0, both: 1, {NEEDS}}}"
APART = f"{{pictures: 0.5, sound: 0.5, both: 0, {NEEDS}}}"
MIXED = f"{{pictures: 0.34, sound: 0.33, both: 0.33, {NEEDS}}}"


def halves(first: str, second: str) -> list[str]:
    parts = ", ".join(f"{{steps: {STEPS // 2}, modalities: {each}}}" for each in (first, second))
    return ["train.steps=null", f"train.stages=[{parts}]"]


SCHEDULES = {
    "together": [f"train.modalities={TOGETHER}"],
    "mixed": [f"train.modalities={MIXED}"],
    "joint first": halves(TOGETHER, APART),
    "apart first": halves(APART, TOGETHER),
}
SEEDS = (0, 1, 2, 3, 4)
BUDGET = [
    f"train.steps={STEPS}",
    "train.batch=12",
    "train.keep_lora_when_absent=true",  # pictures alone are trained, too
    "data.playroom={clips: 800, seed: 7, channels: [video, audio, audio+video, order]}",
    "train.eval_every=100000",
    "train.checkpoint_every=100000",
]


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: Dataset | None = None

    def run(self, schedule: str, seed: int) -> dict[str, Any]:
        """One run: accuracy by what is seen and by channel."""
        words = [*BUDGET, *SCHEDULES[schedule], f"train.seed={seed}", f"train.output={self.folder}"]
        setup = Setup.of(read_recipe(folder_of("audio-playroom"), words))
        self.seen = self.seen or read_dataset(setup)
        run = Run.of(setup, self.seen)
        begin = time.process_time()
        run.fit(lambda step, steps, figures: None)
        spent = time.process_time() - begin
        heard = [clip for clip in run.dataset.val if run.acts(clip)]
        alone = setup.config().sound_alone  # otherwise nothing stands for the pictures
        found: dict[str, Any] = {"core_seconds": round(spent, 1)}
        for kind in MODALITIES:
            if kind != "sound" or alone:
                clips = [seen_with(clip, kind) for clip in heard]
                accuracy = token_accuracy(setup.model, clips, setup.names, 8)
                found[kind] = {channel: round(share, 4) for channel, share in accuracy.items()}
        return found


def shown(runs: list[dict[str, Any]], kind: str, channel: str) -> str:
    values = [run[kind][channel] for run in runs if kind in run]
    if not values:
        return f"{'-':>15}"
    return f"{mean(values):7.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir(), "pave-modalities"), help="for clips")
    options = parser.parse_args()
    study, bench = Study("modalities"), Bench(options.folder)
    for seed in () if options.table else SEEDS:
        for schedule in SCHEDULES:
            if (key := f"{schedule}, seed {seed}") not in study:
                study.add(key, bench.run(schedule, seed))
                print(key, study.runs[key], flush=True)
    columns = [("audio", kind) for kind in MODALITIES] + [("audio+video", kind) for kind in ("pictures", "both")]
    print(f"{'schedule':12} runs " + " ".join(f"{channel + ', ' + kind:>22}" for channel, kind in columns))
    for schedule in SCHEDULES:
        runs = [run for seed in SEEDS if (run := study.runs.get(f"{schedule}, seed {seed}"))]
        if runs:
            cells = " ".join(f"{shown(runs, kind, channel):>22}" for channel, kind in columns)
            print(f"{schedule:12} {len(runs):4} {cells}")


if __name__ == "__main__":
    main()
