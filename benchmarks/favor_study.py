"""Which parts of FAVOR's causal Q-Former matter? Ablations, and patches without a Q-Former.

    python benchmarks/favor_study.py            # three seeds of everything; one to two minutes a run, sixty runs
    python benchmarks/favor_study.py sound dir  # only rows with these prefixes
    python benchmarks/favor_study.py long       # two read-outs, twice the steps, five seeds; half an hour
    python benchmarks/favor_study.py --table    # table and plot of the results so far
    python benchmarks/favor_study.py --small    # a quick test of the script; writes no result

Every row is the recipe `favor-playroom` at a twelfth of its budget, on questions about sounds only, with one change:
same clips, same rates. This compares how fast a variant learns; words take several times as long in every row. Rows of
`sound` are patches without a resampler, whose fusion reads the given number of log-mel spectra per second; one per
second is the baseline that FAVOR should beat. In `senses: apart` the Q-Former reads frames and sound separately, with
two queries each. `long` rows are trained twice as long. Accuracies are on held-out questions, by channel; `beside
favor` is the difference to the first row of the same budget in points over all questions, lowest and highest of the
seeds. Run again, it continues with the missing rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any

import torch
from study import RESULTS, Study
from torch import Tensor

from pave.fusion.clock import Clock
from pave.fusion.qformer import Queries
from pave.hub.catalogue import folder_of
from pave.playroom.writer import write_clips
from pave.recipe import read_recipe
from pave.sidechannel import SideBatch
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.run import Run
from pave.training.setup import Setup

SEEDS = (0, 1, 2)
LONG, MORE_SEEDS = "long: ", (0, 1, 2, 3, 4)
BUDGET = ["train.steps=150", "train.batch=6", "train.eval_every=100000", "train.checkpoint_every=100000"]
CLIPS, TEST_CLIPS = 600, 300
CHANNELS = ("audio", "audio+video", "order")


def hearing(rate: int) -> str:
    """Sound only, with this number of spectra per second."""
    return f"senses={{audio: {{encoder: logmel, options: {{bands: 48, rate: {rate}}}}}}}"


APART = "senses: apart"
STATES = ["resampler={window: 2, stride: 1, width: 128, heads: 4, readout: states}"]
MORE_STEPS = ["train.steps=300"]
ROWS: dict[str, list[str]] = {
    "favor": [],
    "sound, 1 a second": ["resampler=null", hearing(1)],
    "sound, 50 a second": ["resampler=null", hearing(50)],
    "direction: future": ["resampler.causal_direction=future"],
    "direction: none": ["resampler.causal_direction=none"],
    "window: 1 step": ["resampler.window=1", "resampler.queries=2"],
    "window: 4 steps": ["resampler.window=4", "resampler.queries=8"],
    "stride: whole window": ["resampler.stride=2"],
    "queries: 1": ["resampler.queries=1", "resampler.diversity=0"],
    "queries: 8": ["resampler.queries=8"],
    "diversity: 0": ["resampler.diversity=0"],
    "diversity: 0.1": ["resampler.diversity=0.1"],
    "diversity: 1": ["resampler.diversity=1"],
    "pictures: 1 a second": ["senses.fast.options.rate=1"],
    "pictures: 4 a second": [
        "senses.fast.options.rate=4",
        "resampler={width: 128, heads: 4, rate: 4, window: 4, stride: 2, queries: 4}",
    ],
    "pictures: none": [hearing(50)],
    APART: [],
    "read-out: states": STATES,
    "read-out: prefix": ["fusion.combine=prefix"],
    "read-out: interleave": ["fusion.combine=interleave"],
    LONG + "favor": MORE_STEPS,
    LONG + "states": [*STATES, *MORE_STEPS],
}


def seeds_of(name: str) -> tuple[int, ...]:
    return MORE_SEEDS if name.startswith(LONG) else SEEDS


class Apart(Queries):
    """Reads each sense separately, with its own queries, and concatenates the outputs."""

    own = slice(None)

    @property
    def queries(self) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The queries of the current sense."""
        every: Any = self._modules["queries"]
        return {k: queries[self.own] for k, queries in every.items()}

    def part(self, sides: Mapping[str, SideBatch | None], clock: Clock) -> tuple[Tensor, Tensor]:
        made, each = [], self.config.queries // len(sides)
        for i, sense in enumerate(sides):
            if sides[sense] is not None:
                self.own = slice(i * each, (i + 1) * each)
                made.append(super().part({other: sides[other] if other == sense else None for other in sides}, clock))
        tokens, alike = zip(*made, strict=True)
        return torch.cat(tokens, 1), torch.stack(alike).mean(0)


class Bench:
    """Each encoder encodes every clip once; all runs use the same features."""

    def __init__(self, folder: Path, budget: list[str], clips: int, test_clips: int) -> None:
        train = write_clips(folder / "clips", clips, 0, "train", [*CHANNELS, "caption"])
        test = write_clips(folder / "clips", test_clips, 0, "test", CHANNELS)
        self.fixed = [*budget, f"data={{train: {train}, val: {test}}}", f"train.output={folder}"]
        self.seen: dict[tuple[str, ...], Dataset] = {}

    def run(self, name: str, seed: int, more: Sequence[str] = ()) -> dict[str, Any]:
        """One run: accuracy by channel, and its cost."""
        words = [*self.fixed, *ROWS[name], *more, f"train.seed={seed}"]
        setup = Setup.of(read_recipe(folder_of("favor-playroom"), words))
        encoders = tuple(encoder.spec.preprocessing for encoder in setup.senses.values())
        if encoders not in self.seen:
            self.seen[encoders] = read_dataset(setup)
        run = Run.of(setup, self.seen[encoders])
        if name == APART and run.trainee.attached.resampler is not None:
            run.trainee.attached.resampler.__class__ = Apart
        begin = time.perf_counter()
        run.fit(lambda step, steps, figures: None)
        return {
            "accuracy": {
                key: round(value, 4)
                for key, value in token_accuracy(run.setup.model, run.dataset.val, run.setup.names, 8).items()
            },
            "seconds": round(time.perf_counter() - begin, 1),
            "parameters": sum(each.numel() for part in run.trainee.parameters.values() for each in part.values()),
            "last_loss": round(mean(run.losses[-20:]), 4),
        }


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot every row, lowest to highest seed, by channel."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(CHANNELS), figsize=(10, 0.6 + 0.26 * len(found)), sharey=True)
    for axes, channel in zip(panels, CHANNELS, strict=True):
        for i, runs in enumerate(found.values()):
            scores = [100 * run["accuracy"][channel] for run in runs]
            axes.plot([min(scores), max(scores)], [i, i], color="C0", alpha=0.5)
            axes.plot(mean(scores), i, "o", color="C0", markersize=5)
        axes.axvline(100 * mean(run["accuracy"][channel] for run in found["favor"]), color="0.8", zorder=0)
        axes.set(title=channel, xlim=(0, 101), xlabel="% right")
    panels[0].set_yticks(range(len(found)), found)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="prefixes of names of rows")
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--small", action="store_true", help="few clips and steps; writes no result")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "pave-favor-study")
    options = parser.parse_args()
    rows = [name for name in ROWS if not options.rows or name.startswith(tuple(options.rows))]
    if options.small:
        bench = Bench(options.folder / "small", BUDGET, 12, 8)
        for name in rows:
            print(name, bench.run(name, 0, ["train.steps=2"]), flush=True)
        return
    study, bench = Study("favor_study"), Bench(options.folder, BUDGET, CLIPS, TEST_CLIPS)
    for seed, name in product(MORE_SEEDS, rows):
        key = f"{name}, seed {seed}"
        if seed in seeds_of(name) and key not in study and not options.table:
            study.add(key, bench.run(name, seed))
            print(key, study.runs[key], flush=True)
    found = {
        name: runs
        for name in ROWS
        if (runs := [study.runs[key] for s in seeds_of(name) if (key := f"{name}, seed {s}") in study])
    }
    print(f"{'':21} {'parameters':>10} runs  {'  '.join(CHANNELS)}  beside favor")
    for name, runs in found.items():
        parts = "  ".join(f"{mean(run['accuracy'][c] for run in runs):{len(c)}.3f}" for c in CHANNELS)
        first = LONG + "favor" if name.startswith(LONG) else "favor"
        pairs = zip(runs, found.get(first, ()), strict=False)
        beside = sorted(100 * (one["accuracy"]["all"] - other["accuracy"]["all"]) for one, other in pairs)
        difference = f"{beside[0]:+5.1f} to {beside[-1]:+5.1f}" if beside else ""
        print(f"{name:21} {runs[0]['parameters']:10,} {len(runs):4}  {parts}  {difference}")
    if "favor" in found:
        draw(found, RESULTS / "favor_study.png")


if __name__ == "__main__":
    main()
