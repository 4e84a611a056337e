"""What do few tokens in place of all visual ones cost and save? `compact` beside a patch that adds to visual tokens.

    python benchmarks/compact.py            # three seeds of each kind; a quarter of an hour of one core
    python benchmarks/compact.py --table    # the results so far

Equal clips, steps, batches and LoRA on the embedded base. The residual patch has the rate that `fusion_study.py` found;
the compact one the better of two rates on a seed that is used for nothing else. Accuracy is that of held-out questions
under teacher forcing. Tokens are those of the prompt of one question about a clip of eight key frames. The prefill, one
forward pass with the fusion and without the vision tower, is a ratio: kinds take turns, and the median of a round's
ratios to the residual patch counts, because other load on the machine slows all. Run again, it continues with the
missing runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import gettempdir
from typing import Any

import torch
from study import Study

from pave.hub.catalogue import folder_of
from pave.media.clip import Clip
from pave.model.patched import load
from pave.recipe import read_recipe
from pave.training.dataset import Dataset, read_dataset
from pave.training.loss import token_accuracy
from pave.training.run import Run
from pave.training.setup import Setup

RESIDUAL, COMPACT = "residual", "compact"
KINDS = {RESIDUAL: "add", COMPACT: "compact"}  # fusion.combine
RATES = {RESIDUAL: (3e-3,), COMPACT: (3e-3, 1e-2)}
TUNING_SEED, SEEDS = 100, (0, 1, 2)
CHANNELS = ("video", "audio", "audio+video", "order")
BUDGET = [
    "train.steps=150",
    "train.batch=12",
    f"data.playroom={{clips: 600, seed: 7, channels: [{', '.join(CHANNELS)}]}}",
    "train.eval_every=100000",
    "train.checkpoint_every=100000",
]
CLIP = Path(__file__).parents[1] / "examples" / "room.mp4"
QUESTION = "what colour is the ball when you hear the bell?"
ROUNDS = 200


class Bench:
    """Clips are encoded once; all runs use the same features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: Dataset | None = None

    def start(self, kind: str, *words: str) -> Setup:
        """A kind within the budget, before its training."""
        return Setup.of(
            read_recipe(
                folder_of("audio-playroom"),
                [*BUDGET, f"fusion.combine={KINDS[kind]}", *words, f"train.output={self.folder}"],
            )
        )

    def run(self, kind: str, rate: float, seed: int) -> dict[str, Any]:
        """One training: accuracy by channel, and its cost."""
        setup = self.start(kind, f"train.fusion_lr={rate}", f"train.seed={seed}")
        self.seen = self.seen or read_dataset(setup)
        run, begin = Run.of(setup, self.seen), time.process_time()
        run.fit(lambda step, steps, figures: None)
        spent = time.process_time() - begin
        accuracy = token_accuracy(setup.model, self.seen.val, setup.names, 8)
        return {
            "accuracy": {channel: round(share, 4) for channel, share in accuracy.items()},
            "core_seconds": round(spent, 1),
            "parameters": sum(each.numel() for each in run.trainee.attached.parameters()),
        }

    @torch.no_grad()
    def prefill(self) -> dict[str, dict[str, Any]]:
        """Tokens of a prompt, and the time of its forward pass by that of the residual patch, per kind."""
        model = load("playroom")
        clip = Clip.read(CLIP, frames=model.host.frames)
        passes: dict[str, Callable[[], Any]] = {}
        found: dict[str, dict[str, Any]] = {}
        for number, kind in enumerate(KINDS):
            name = f"kind{number}"
            model.attach(name, self.start(kind).config().model_copy(update={"name": name}), trainable=False)
            inputs = model.prepare([clip], [QUESTION], patches=[name])
            passes[kind] = lambda inputs=inputs: model.forward(inputs, logits_to_keep=1)
            found[kind] = {"tokens": inputs.input_ids.shape[1]}
        rounds = [{kind: _seconds(call) for kind, call in passes.items()} for _ in range(ROUNDS)]
        for kind, each in found.items():
            each["time"] = round(median(times[kind] / times[RESIDUAL] for times in rounds), 3)
            each["milliseconds"] = round(1000 * median(times[kind] for times in rounds), 2)
        return found


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def score(run: dict[str, Any]) -> float:
    return mean(run["accuracy"][channel] for channel in CHANNELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir(), "pave-compact"), help="for clips")
    options = parser.parse_args()
    study, bench = Study("compact"), Bench(options.folder)

    def get(key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        if key not in study and not options.table:
            study.add(key, measure())
            print(key, study.runs[key], flush=True)
        return study.runs.get(key)

    def trained(kind: str, rate: float, seed: int) -> dict[str, Any] | None:
        return get(f"{kind}, rate {rate:g}, seed {seed}", lambda: bench.run(kind, rate, seed))

    costs = get("prefill", bench.prefill) or {}
    best = {}
    for kind, rates in RATES.items():
        tuned = {rate: run for rate in rates[1:] and rates if (run := trained(kind, rate, TUNING_SEED))}
        best[kind] = max(tuned, key=lambda rate: score(tuned[rate])) if tuned else rates[0]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        for kind, runs in found.items():
            if run := trained(kind, best[kind], seed):
                runs.append(run)
    print(f"| | rate | runs | tokens | prefill | {' | '.join(CHANNELS)} |\n|---|{'---|' * (4 + len(CHANNELS))}")
    for kind, runs in found.items():
        if len(runs) > 1 and kind in costs:
            shares = [[run["accuracy"][channel] for run in runs] for channel in CHANNELS]
            cells = " | ".join(f"{mean(each):.3f} ± {stdev(each):.3f}" for each in shares)
            cost = f"{costs[kind]['tokens']} | {costs[kind]['time']:.2f}"
            print(f"| {kind} | {best[kind]:g} | {len(runs)} | {cost} | {cells} |")


if __name__ == "__main__":
    main()
