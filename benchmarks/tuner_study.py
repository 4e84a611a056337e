"""How much of the language model must a patch tune? LoRA of several shapes, and three of PEFT's smallest tuners.

    python benchmarks/tuner_study.py            # three rates on one seed, then 3 seeds per tuner; about 45 minutes
    python benchmarks/tuner_study.py --table    # table and plot of the results so far

Fusion, clips and steps are the same for all tuners. Every tuner is tuned over three learning rates on a seed that is
used for nothing else; the best one then runs on seeds 0 to 2. Accuracies are on held-out questions of the sound
channels, with the patch as it would be shared: fusion and LoRA in 4 bits, PEFT's vectors in bfloat16. Run again, it
continues with the missing runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any

import torch
from fusion_study import CHANNELS, TUNING_SEED, Bench, score
from large import empty_model
from peft import IA3Config, PeftConfig, TinyLoraConfig, VeraConfig, get_peft_model
from study import RESULTS, Study

from pave.config import LoraConfig
from pave.patch.lora import Layers, targets
from pave.training.loss import token_accuracy

ALL = list(LoraConfig().target_modules)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Tuner:
    """What is tuned: by recipe overrides, or by a tuner of PEFT instead of LoRA."""

    words: tuple[str, ...]
    rates: tuple[float, ...]
    count: Callable[[Layers], int]  # trained parameters in a language model with these layers
    peft: Callable[[], PeftConfig] | None = None


def lora(r: int, *only: str) -> Tuner:
    words = [f"lora.r={r}", f"lora.lora_alpha={r}"]
    words += [f"lora.target_modules=[{','.join(only)}]"] if only else []
    chosen = only or ALL
    return Tuner(
        tuple(words), (1e-3, 3e-3, 1e-2), lambda layers: sum(r * (i + o) for name, i, o in layers if ends(name, chosen))
    )


def ends(name: str, words: Any) -> bool:
    return name.rpartition(".")[2] in words


TUNERS = {
    "none": Tuner(("lora=null",), (0.0,), lambda layers: 0),
    "LoRA r=8": lora(8),
    "LoRA r=2": lora(2),
    "LoRA r=1": lora(1),
    "LoRA r=8, q and v": lora(8, "q_proj", "v_proj"),
    "VeRA r=64": Tuner(
        ("lora=null",),
        (3e-3, 1e-2, 3e-2),
        lambda layers: sum(64 + o for _, _, o in layers),
        lambda: VeraConfig(r=64, target_modules=ALL),
    ),
    "(IA)3": Tuner(
        ("lora=null",),
        (3e-3, 1e-2, 3e-2),
        lambda layers: sum(i if ends(name, ["down_proj"]) else o for name, i, o in layers if ends(name, IA3)),
        lambda: IA3Config(target_modules=IA3, feedforward_modules=["down_proj"]),
    ),
    "TinyLoRA u=64": Tuner(
        ("lora=null",),
        (3e-3, 1e-2, 3e-2),
        lambda layers: 64 * len(layers),
        lambda: TinyLoraConfig(target_modules=ALL),
    ),
}
IA3 = ["k_proj", "v_proj", "down_proj"]  # Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning", 2022


def run_one(bench: Bench, tuner: Tuner, rate: float, seed: int) -> dict[str, Any]:
    """One run of at most a minute: accuracy by channel of the patch as it would be shared."""
    run = bench.start([*tuner.words, f"train.seed={seed}", "train.fusion_lr=3e-3", f"train.lora_lr={rate or 1e-3}"])
    language_model, name = run.setup.model.host.language_model, run.setup.recipe.name
    layers = targets(LoraConfig(), language_model)
    extra: list[torch.nn.Parameter] = []
    if tuner.peft is not None:
        get_peft_model(language_model, tuner.peft())  # it changes the layers in place
        extra = [parameter for parameter in language_model.parameters() if parameter.requires_grad]
        run.trainee.optimiser.add_param_group({"params": extra, "part": "lora"})  # so its rate is train.lora_lr
    begin = time.perf_counter()
    run.fit(lambda step, steps, figures: None)
    seconds = time.perf_counter() - begin
    trained = run.setup.model.patches[name].lora_params + sum(parameter.numel() for parameter in extra)
    if trained != tuner.count(layers):
        raise SystemExit(f"{trained} trained numbers, expected {tuner.count(layers)}")
    shared = run.setup.model.export(name).shrink()
    run.setup.model.swap_patch(name, shared)
    for parameter in extra:
        parameter.data = parameter.data.bfloat16().float()
    return {
        "accuracy": {
            key: round(value, 4)
            for key, value in token_accuracy(run.setup.model, run.dataset.val, run.setup.names, 8).items()
        },
        "numbers": trained,
        "bytes": shared.nbytes + 2 * sum(parameter.numel() for parameter in extra),
        "seconds": round(seconds, 1),
        "last_loss": round(mean(run.losses[-10:]), 4),
    }


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot bytes of the shared patch against accuracy, lowest to highest seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (name, runs) in enumerate(found.items()):
        scores = [100 * score(run) for run in runs]
        low, middle, high = min(scores), mean(scores), max(scores)
        kind = "o" if name.startswith("LoRA") or name == "none" else "s"
        kilobytes = runs[0]["bytes"] / 1000
        axes.errorbar(kilobytes, middle, [[middle - low], [high - middle]], fmt=kind, color=f"C{i}", label=name)
    axes.set(
        xlabel="tensors of the shared patch, kB",
        ylabel="held-out questions of the sound channels, %",
        title="audio-playroom: what is tuned in the language model",
    )
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only show the results so far")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "pave-fusion-study")
    options = parser.parse_args()
    study, bench = Study("tuner_study"), Bench(options.folder)

    def get(name: str, rate: float, seed: int) -> dict[str, Any] | None:
        key = f"{name}, rate {rate:g}, seed {seed}"
        if key not in study and not options.table:
            study.add(key, run_one(bench, TUNERS[name], rate, seed))
            print(key, study.runs[key], flush=True)
        return study.runs.get(key)

    found: dict[str, list[dict[str, Any]]] = {}
    large = targets(LoraConfig(), empty_model("7B").host.language_model)
    print(f"{'tuner':18} {'rate':>6} {'numbers':>8} {'at 7B':>11} {'bytes':>7} {'runs':>4}  sound  lowest  {CHANNELS}")
    for name, tuner in TUNERS.items():
        tuned = {rate: run for rate in tuner.rates if (run := get(name, rate, TUNING_SEED))}
        best = max(tuned, key=lambda rate: score(tuned[rate])) if tuned else tuner.rates[0]
        runs = [run for seed in SEEDS if (run := get(name, best, seed))]
        if runs:
            found[name], scores = runs, [score(run) for run in runs]
            counts = f"{runs[0]['numbers']:8,} {tuner.count(large):11,} {runs[0]['bytes']:7,} {len(runs):4}"
            parts = "  ".join(f"{mean(run['accuracy'][c] for run in runs):.3f}" for c in CHANNELS)
            print(f"{name:18} {best:6g} {counts}  {mean(scores):.3f}  {min(scores):.3f}   {parts}", flush=True)
    draw(found, RESULTS / "tuner_study.png")


if __name__ == "__main__":
    main()
