"""What does a patch cost on a model of real size? Prefill, decoding, memory, and applying and removing, on a GPU.

    python benchmarks/full_size.py                # 7B shape, bfloat16, random weights; writes results/full_size.json
    python benchmarks/full_size.py --size 0.5B    # the same for 0.5B, into the same file
    python benchmarks/full_size.py --small        # a model of two layers on the CPU; writes nothing

Every round runs each variant in turn; overheads are medians of ratios to the base in the same round. Clips have 32 key
frames of 196 tokens and a minute of sound, one side token per second; the vision tower is not run. `fusion` and `LoRA`
are the two halves of one patch; in `mixed` each row of a batch has its own patch. The time per further token is the
time difference between a long and a short answer, divided by the difference in tokens. Peak memory is measured with
all of these patches applied.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from large import empty_model, random_patch
from study import Study

from pave.config import FusionConfig
from pave.encoder import load_encoder
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.sidechannel import SideTokens

FUSIONS = {
    "folded": FusionConfig(),
    "official": FusionConfig(kind="official", values="shared", rope="off", head="norm"),
    "official, float32": FusionConfig(
        kind="official", values="shared", rope="off", head="norm", precision="float32"
    ),  # as converted patches have it
}
NEW = 32  # further tokens of the longer answer


def seconds(call: Callable[[], object]) -> float:
    """Milliseconds of one call, including the GPU's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def halves(patch: Patch) -> dict[str, Patch]:
    """A patch, its two halves, and its shrunk form."""
    lora = {name: tensor for name, tensor in patch.tensors.items() if name.startswith("lora.")}
    fusion = {name: tensor for name, tensor in patch.tensors.items() if name not in lora}
    return {
        "patch": patch,
        "fusion": Patch(patch.config.model_copy(update={"lora": None}), fusion),
        "LoRA": Patch(patch.config.model_copy(update={"senses": {}}), lora),
        "shrunk": patch.shrink(),
    }


def clip(model: PatchedModel, patch: Patch, seed: int, frames: int) -> ClipFeatures:
    draw = torch.Generator().manual_seed(seed)
    host = model.host
    shape = (frames, host.tokens_per_frame)
    here = {"device": host.device, "dtype": host.dtype}  # as the vision tower would return them
    vision, tokens = (torch.randn(*shape, d, generator=draw).to(**here) for d in (host.vision_dim, host.dim))
    (facts,) = patch.config.senses.values()
    side = SideTokens.regular(torch.randn(60, facts.dim, generator=draw).to(host.dtype), rate=1)
    times = torch.linspace(0, 60, frames, dtype=torch.float64)
    return ClipFeatures(vision, tokens, times, {facts.preprocessing: side})


def asking(model: PatchedModel, patch: Patch, batch: int, rounds: int, frames: int) -> dict[str, Any]:
    """Prefill and time per further token of a batch for every variant, and the overhead over the base."""
    clips = [clip(model, patch, seed, frames) for seed in range(batch)]
    ways: dict[str, list[list[str]]] = {"base": [[]] * batch}
    ways |= {name: [[name]] * batch for name in ("patch", "fusion", "LoRA", "shrunk")}
    ways |= {"mixed": [[f"{row}"] for row in range(batch)]} if batch > 1 else {}
    inputs = {name: model.prepare(clips, ["What do you hear?"] * batch, patches=names) for name, names in ways.items()}

    def prefill(each: Inputs) -> float:
        with torch.no_grad():
            return seconds(lambda: model.forward(each, logits_to_keep=1))

    def answer(each: Inputs, tokens: int) -> float:
        words = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return seconds(lambda: model.generate(each, **words))

    def token(each: Inputs) -> float:
        return (answer(each, 1 + NEW) - answer(each, 1)) / NEW

    found: dict[str, Any] = {"tokens": inputs["base"].input_ids.shape[1]}
    for what, measured in (("prefill", prefill), ("a further token", token)):
        took: dict[str, list[float]] = {name: [] for name in inputs}
        peaks: dict[str, float] = {}
        for number in range(rounds + 1):  # the first warms up
            for name, each in inputs.items():
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                spent = measured(each)
                if torch.cuda.is_available():
                    peaks[name] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
                if number:
                    took[name].append(spent)
        found[what] = {
            name: {
                "milliseconds": round(1000 * statistics.median(times), 2),
                "beyond the base, %": round(100 * (share(times, took["base"]) - 1), 2),
                **({"peak_GB": peaks[name]} if peaks else {}),
            }
            for name, times in took.items()
        }
    return found


def share(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def life(model: PatchedModel, parts: Mapping[str, Patch], rounds: int, folder: Path) -> dict[str, float]:
    """Milliseconds of each operation; the patch is in memory unless the name says otherwise."""
    file = parts["shrunk"].save(folder / "shrunk.safetensors")
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, call in (
            ("apply", lambda: model.apply_patch(parts["patch"], name="now")),
            ("swap", lambda: model.swap_patch("now", parts["patch"])),
            ("swap, shrunk", lambda: model.swap_patch("now", parts["shrunk"])),
            ("disable", lambda: model.disable("now")),
            ("remove", lambda: model.remove_patch("now")),
            ("apply, shrunk, from file", lambda: model.apply_patch(file, name="now")),
            ("remove again", lambda: model.remove_patch("now")),
        ):
            took.setdefault(name, []).append(seconds(call))
    return {name: round(1000 * statistics.median(times), 3) for name, times in took.items()}


def measure(size: str, kind: str, rounds: int, batches: tuple[int, ...], frames: int) -> dict[str, Any]:
    model = empty_model(size, "cuda" if torch.cuda.is_available() else "cpu")
    patch = random_patch(model, FUSIONS[kind], 8, channels=load_encoder("logmel").spec.dim)
    parts, found = halves(patch), {}
    with TemporaryDirectory() as folder:
        found["life"] = life(model, parts, rounds, Path(folder))
    for name, each in parts.items():
        model.apply_patch(each, name=name)
    for row in range(max(batches)):
        model.apply_patch(patch, name=f"{row}")
    for batch in batches:
        found[f"batch {batch}"] = asking(model, patch, batch, rounds, frames)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7B", choices=["0.5B", "7B"])
    parser.add_argument("--small", action="store_true", help="a few layers, short clips; writes no result")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        print("there is no GPU here; --small runs a model of a few layers on the CPU")
        return  # and `make bench` goes on
    study = Study("full_size")
    for kind in FUSIONS:
        key = f"{options.size}, {kind}"
        if options.small:
            print(f"small, {kind}", measure("small", kind, 2, (1, 2), 4), flush=True)
            continue
        if key not in study:
            study.add(key, {"gpu": torch.cuda.get_device_name(), **measure(options.size, kind, 9, (1, 8), 32)})
        print(key, study.runs[key], flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
