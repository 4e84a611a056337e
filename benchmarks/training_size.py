"""What does a training step cost on a model of real size? Questions a second, and peak memory, on a GPU.

    python benchmarks/training_size.py            # 7B shape, random weights; writes results/training_size.json
    python benchmarks/training_size.py --size 0.5B
    python benchmarks/training_size.py --small    # a model of two layers on the CPU; writes nothing
    torchrun --nproc_per_node 4 benchmarks/training_size.py --shard   # the base divided among GPUs

A clip has 32 key frames of 196 tokens (with its questions some 6.7k), a minute of sound, and four questions. A step
trains a patch (folded fusion, LoRA of rank 64) on one clip:
    cached        features of the vision tower are given, the questions share one prefill
    recomputed    the same, and the vision tower (SigLIP so400m: 27 layers of 1152 channels) runs in the step
    per sample    as the PAVE authors train: every question has a row of its own, for which the tower runs
For each way of storing the base: bfloat16, the same with activations recomputed, int8 and nf4, both also recomputed.
Targets: `cached` and `recomputed` at least twice the questions a second of `per sample`; nf4 below 24 GB.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from full_size import clip, seconds
from large import empty_model, random_patch
from study import Study

from pave.config import FusionConfig
from pave.encoder import load_encoder
from pave.loading import low_memory
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.packing.rows import Turn
from pave.training.dataset import packed
from pave.training.loss import cross_entropy, scores
from pave.training.ranks import Ranks, joined
from pave.training.sharding import sharded
from pave.training.trainee import checkpoint_activations, training

STORED = {"bfloat16": (None, False), "recomputing": (None, True), "int8": ("int8", True), "nf4": ("nf4", True)}
QUESTIONS, TOWER, FRAMES, ROUNDS = 4, 27, 32, 5
ANSWER = "a kettle, and somebody who sings"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def made(size: str, stored: str, tower: int, ranks: Ranks, divided: bool) -> tuple[PatchedModel, ClipFeatures]:
    """A model with a patch in training, and the features of a clip."""
    kind, recomputes = STORED[stored]
    where = "cpu" if kind or divided else device()
    model = sharded(lambda: empty_model(size, where, tower), ranks) if divided else empty_model(size, where, tower)
    if kind:
        low_memory.quantiser(kind)(model.host.language_model)
        torch.nn.Module.to(model.base, device())
    patch = random_patch(model, FusionConfig(), 64, channels=load_encoder("logmel").spec.dim)
    model.attach("ears", patch.config, patch.weights(), trainable=True)
    checkpoint_activations(model, recomputes)
    return model, clip(model, patch, ranks.rank, FRAMES if tower == TOWER else 4)


def stepping(model: PatchedModel, features: ClipFeatures) -> dict[str, Callable[[], None]]:
    """A step in each of the ways."""
    host, (attached,) = model.host, model.attached()
    optimiser = torch.optim.AdamW(attached.parameters(), lr=1e-5)
    turn = Turn(host.prompt("What do you hear in the kitchen?")[1], [*host.encode_text(ANSWER), host.end])
    pictures = torch.zeros(len(features.times), 3, *host.size, dtype=torch.uint8)

    def step(rows: list[ClipFeatures], turns: list[list[Turn]]) -> None:
        optimiser.zero_grad()
        with training(attached):
            cross_entropy(*scores(model, *packed(model, rows, turns, ["ears"]))).mean().backward()
        optimiser.step()

    def seen() -> ClipFeatures:
        return model.perception.see(features, pictures, features.times)

    def apart() -> None:
        for _ in range(QUESTIONS):
            step([seen()], [[turn]])

    return {
        "cached": lambda: step([features], [[turn] * QUESTIONS]),
        "recomputed": lambda: step([seen()], [[turn] * QUESTIONS]),
        "per sample": apart,
    }


def measure(size: str, stored: str, tower: int, rounds: int, ranks: Ranks, divided: bool) -> dict[str, Any]:
    """Medians over rounds of all ways in turn, the first of which warms up."""
    ways = stepping(*made(size, stored, tower, ranks, divided))
    took: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, step in ways.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            spent = seconds(step)
            if torch.cuda.is_available():
                peaks[name] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if number:
                took[name].append(spent)
    return {
        name: {
            "questions a second, each process": round(QUESTIONS / statistics.median(times), 3),
            "times per sample": round(statistics.median(took["per sample"]) / statistics.median(times), 2),
            **({"peak_GB": peaks[name]} if peaks else {}),
        }
        for name, times in took.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7B", choices=["0.5B", "7B"])
    parser.add_argument("--small", action="store_true", help="a few layers, short clips; writes no result")
    parser.add_argument("--shard", action="store_true", help="divide the base among the processes of torchrun")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        print("there is no GPU here; --small runs a model of a few layers on the CPU")
        return  # and `make bench` goes on
    size, tower, rounds = ("small", 1, 1) if options.small else (options.size, TOWER, ROUNDS)
    study = Study("training_size")
    with joined() as ranks:
        for stored in ("bfloat16", "recomputing") if options.shard else STORED:
            key = f"{size}, {stored}" + (f", divided among {ranks.count}" if options.shard else "")
            if key in study and not options.small:
                continue
            found = measure(size, stored, tower, rounds, ranks, options.shard)
            if ranks.first and not options.small:
                study.add(key, {"gpu": torch.cuda.get_device_name(), **found})
            if ranks.first:
                print(key, found, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
