"""The ablations of the PAVE paper in the Playroom: queries, where side tokens go, positions, values, layers, LoRA.

    python benchmarks/tables.py            # three seeds of every row, about a minute each; an hour and a half
    python benchmarks/tables.py rope lora  # only rows with these prefixes
    python benchmarks/tables.py --table    # the results so far, and the page benchmarks/TABLES.md
    python benchmarks/tables.py --small    # a row with few steps: a quick test of the script; writes nothing

Every row is `audio-playroom` with one change: same clips, steps and rates, on seeds fixed in advance. Rows of `base`
are on bases of `playroom_bases.py`, which are made first (twenty minutes) if they are missing. Accuracy is that of
held-out questions under teacher forcing. FLOPs, tokens and parameters are counted as `pave profile` does, for a clip
of four seconds; bytes are those of the file after `shrink`. Run again, it continues with the missing runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import gettempdir
from typing import Any

import playroom_bases
from study import RESULTS, Study

from pave.evaluation.cost import cost_of
from pave.hub.catalogue import folder_of
from pave.recipe import read_recipe
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.run import Run
from pave.training.setup import Setup

SEEDS = (0, 1, 2)
BUDGET = (
    "train.steps=150",
    "train.batch=6",
    "train.fusion_lr=3e-3",
    "data.playroom={clips: 800, seed: 7, channels: [video, audio, audio+video, order, caption]}",
    "train.eval_every=100000",
    "train.checkpoint_every=100000",
)
SIDE = {"audio": 80, "fast": 8}  # steps of four seconds
CHANNELS = ("video", "audio", "audio+video", "order")
PLAIN = "plain: sound added to visual tokens"
NOTHING = "none: the base"
ALONE = ", without a patch"
DEEP, NEXT = "base: ten layers instead of five", "base: LLaVA-NeXT-Video, of Llama"
BASES = Path(gettempdir(), "pave-playroom-bases")
OFFICIAL = ("fusion.kind=official", "fusion.width=64", "fusion.values=shared", "fusion.head=norm", "fusion.rope=off")
DENSE = (
    "senses={audio: {encoder: logmel, options: {bands: 48, rate: 20}}, "
    "fast: {encoder: base-tower, options: {sense: fast, rate: 2, grid: [4, 4]}}}"
)
ROWS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    NOTHING: ("train.steps=1",),
    "none: LoRA on pictures alone": (
        "train.modalities={pictures: 1, sound: 0, both: 0}",
        "train.keep_lora_when_absent=true",
    ),
    "tokens: interleaved": ("fusion.combine=interleave",),
    "tokens: prefix": ("fusion.combine=prefix",),
    "tokens: compact": ("fusion.combine=compact",),
    "query: projected": ("fusion.query=projected",),
    "query: learned": ("fusion.query=learnable",),
    "official": OFFICIAL,
    "official, query: learned": (*OFFICIAL, "fusion.query=learnable"),
    "official, values: own": (*OFFICIAL, "fusion.values=own"),
    "official, rope: time": (*OFFICIAL, "fusion.rope=time"),
    "official, layers: 1": (*OFFICIAL, "fusion.layers=1"),
    "official, layers: 3": (*OFFICIAL, "fusion.layers=3"),
    "rope: off": ("fusion.rope=off",),
    "rope: 3d": ("fusion.rope=3d", "fusion.width=128", "fusion.heads=1"),
    "rope: time, one head of 128": ("fusion.width=128", "fusion.heads=1"),
    "senses: dense frames, too": (DENSE,),
    "Q-Former": ("resampler={width: 128, heads: 4, window: 4, stride: 2, queries: 4}",),
    "Q-Former, two resolutions": ("resampler={width: 128, heads: 4, window: 4, stride: 2, queries: 4, finer: [1]}",),
    "Q-Former, its states": ("resampler={width: 128, heads: 4, window: 4, stride: 2, readout: states}",),
    "lora: none": ("lora=null",),
    "lora: rank 1": ("lora.r=1", "lora.lora_alpha=1"),
    "lora: rank 32": ("lora.r=32", "lora.lora_alpha=32"),
    DEEP: (f"base={BASES / 'deep'}",),
    DEEP + ALONE: (f"base={BASES / 'deep'}", "train.steps=1"),
    NEXT: (f"base={BASES / 'next'}",),
    NEXT + ALONE: (f"base={BASES / 'next'}", "train.steps=1"),
}


PAGE = Path(__file__).with_name("TABLES.md")
# Ablation of the PAVE paper (arXiv 2503.19794) on ScanQA, 0.5B: refined exact match, TFLOPs of a prefill, trained.
PAPER = """\
| of the paper | EM (refined) | TFLOPs | trained |
|---|---|---|---|
| zero-shot | 0.2 (28.0) | 8.01 | |
| LoRA on pictures alone | 20.5 (36.3) | 8.01 | 35.1M |
| LoRA, side tokens interleaved | 23.0 (39.9) | 71.41 | 35.1M |
| PAVE, learnable queries | 22.5 (39.3) | 8.13 | 43.9M |
| PAVE, visual queries | 23.1 (40.0) | 8.13 | 41.4M |
"""
TEXT = """\
# The ablations of the PAVE paper, in the Playroom

Made by `benchmarks/tables.py`, from `benchmarks/results/tables.json`. Mean ± standard deviation over the seeds.

{rows}

![Questions about sound answered right, by row](results/tables.png)

{paper}
**What this can show**: how fast each variant learns to use a sound that is aligned with pictures, with equal clips,
steps and rates, when no answer can be guessed from the pictures. **What it cannot**: what a variant reaches in the end
(150 steps of six clips are a sixth of what the shipped patch has), what pretrained encoders and large language models
make of it, and anything about scans, cameras or speech. The paper's rows are of another sense, another base and another
measure: only the order of rows can be compared. The rates are those of the first row, so a row that wants others is at
a disadvantage; `fusion_study.py` tunes them for `folded` and `official`. Rows of `base` are on the embedded base grown
in depth, and on its weights in the modules and prompts of another family, both tuned again (`playroom_bases.py`): they
show that a patch does not depend on depth and family, not what a base that learned from other data makes of it.
"""


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[tuple[Any, ...], Dataset] = {}

    def run(self, name: str, seed: int, more: Sequence[str] = ()) -> dict[str, Any]:
        """One run: accuracy by channel, and what the patch costs."""
        if name.startswith((DEEP, NEXT)):
            playroom_bases.make(BASES, "deep" if name.startswith(DEEP) else "next")
        words = [*BUDGET, *ROWS[name], *more, f"train.seed={seed}", f"train.output={self.folder}"]
        setup = Setup.of(read_recipe(folder_of("audio-playroom"), words))
        key = setup.model.host.fingerprint(), *(encoder.spec.preprocessing for encoder in setup.senses.values())
        if key not in self.seen:
            self.seen[key] = read_dataset(setup)
        seen, patched = self.seen[key], not name.endswith((NOTHING, ALONE))
        run, begin = Run.of(setup, seen), time.process_time()
        if patched:
            run.fit(lambda step, steps, figures: None)
        spent = time.process_time() - begin
        names = setup.names if patched else setup.names[:-1]
        accuracy = token_accuracy(setup.model, seen.val, names, 8)
        cost = cost_of(
            setup.model.host, run.trainee.attached.export(), side_steps=[SIDE[sense] for sense in setup.senses]
        )
        return {
            "accuracy": {channel: round(share, 4) for channel, share in accuracy.items()},
            "core_seconds": round(spent, 1),
            "gflops": round(cost.honest.total / 1e9, 3),
            "tokens": cost.prompt,
            "parameters": cost.params,
            "shrunk_bytes": cost.shrunk_bytes,
        }


def rows_of(study: Study) -> dict[str, list[dict[str, Any]]]:
    """The runs of each row so far."""
    runs = {name: [run for seed in SEEDS if (run := study.runs.get(f"{name}, seed {seed}"))] for name in ROWS}
    return {name: found for name, found in runs.items() if found}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The rows as a table of Markdown."""
    lines = [
        f"| | runs | {' | '.join(CHANNELS)} | GFLOPs | tokens | parameters | kB shrunk |",
        f"|---|{'---|' * (len(CHANNELS) + 5)}",
    ]
    for name, runs in found.items():
        cells = [spread([run["accuracy"][channel] for run in runs]) for channel in CHANNELS]
        nothing = name.endswith((NOTHING, ALONE))
        last = runs[-1]
        costs = (
            ["", "", "", ""]
            if nothing
            else [
                f"{last['gflops']:.2f}",
                f"{last['tokens']:,}",
                f"{last['parameters']:,}",
                f"{last['shrunk_bytes'] / 1000:.0f}",
            ]
        )
        lines.append(f"| {name} | {len(runs)} | {' | '.join([*cells, *costs])} |")
    return lines


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Accuracy of the questions that need the sound, by row, a point per run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names = list(found)[::-1]
    figure, axis = plt.subplots(figsize=(9, 0.3 * len(names) + 1), layout="constrained")
    for place, name in enumerate(names):
        right = [mean(run["accuracy"][channel] for channel in CHANNELS[1:]) for run in found[name]]
        axis.plot(right, [place] * len(right), "o", alpha=0.6, color="C0")
        axis.plot(mean(right), place, "|", markersize=14, color="C3")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("held-out questions about sound answered right")
    axis.set_ylim(-1, len(names))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"prefixes of: {'; '.join(ROWS)}")
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--small", action="store_true", help="a row with few steps; writes nothing")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir(), "pave-tables"), help="for clips and features")
    options = parser.parse_args()
    study, bench = Study("tables"), Bench(options.folder)
    if options.small:
        print(bench.run(PLAIN, 0, ["train.steps=2", "data.playroom.clips=24"]))
        return
    for seed in () if options.table else SEEDS:
        for name in ROWS:
            key = f"{name}, seed {seed}"
            if name.startswith(tuple(options.rows) or "") and key not in study:
                study.add(key, bench.run(name, seed))
                print(key, study.runs[key], flush=True)
    found = rows_of(study)
    if found:
        print("\n".join(table(found)))
        draw(found, RESULTS / "tables.png")
        PAGE.write_text(TEXT.format(rows="\n".join(table(found)), paper=PAPER), "utf-8")


if __name__ == "__main__":
    main()
