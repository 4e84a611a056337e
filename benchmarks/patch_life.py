"""How long does it take to apply, swap and remove a patch, compared with PEFT? Does removing restore the base exactly?

    python benchmarks/patch_life.py            # writes benchmarks/results/patch_life.json
    python benchmarks/patch_life.py --small    # few rounds and changes; writes nothing

Each round runs PAVE and PEFT in turn on one embedded base; only ratios within a round count. PEFT loads the LoRA of the
same patch from its own files; PAVE reads the whole patch, fusion included, checks hashes, base and values, and loads
it. `cold` opens a shrunk patch of a 7B base that is not in the page cache. `processes` applies a patch to a base of
2 GB in one process after the other. `changes` applies, swaps, reweights, enables, disables and removes at random, asks
in between, and compares every weight, hook and answer with the base whenever no patch is left. `compiled` counts the
graphs of torch.compile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from large import empty_model, random_patch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from study import Study
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import Qwen2Config, Qwen2Model

from pave.config import FusionConfig, LoraConfig
from pave.encoder import load_encoder
from pave.files.tensorfile import digest
from pave.hub.catalogue import folder_of
from pave.media.clip import Clip
from pave.model.patched import PatchedModel, load
from pave.patch.file import Patch
from pave.patch.lora import Call, Lora, Loras, running, targets
from pave.patch.peft import export_peft
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def beside_peft(rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds, and PAVE's time as a share of PEFT's."""
    file = folder_of("audio-playroom") / "patch.safetensors"
    ours, patch = load("playroom"), Patch.load(file)
    other = patch.shrink(bits=8, rank=None)
    export_peft(patch, ours.host, folder / "lora")
    base: Any = load("playroom").base
    theirs: Any = PeftModel.from_pretrained(base, str(folder / "lora"))
    took: dict[str, list[float]] = {}

    def add(name: str, call: Callable[[], object]) -> None:
        took.setdefault(name, []).append(seconds(call))

    for _ in range(rounds):
        add("apply from file", lambda: ours.apply_patch(file))
        add("peft load_adapter", lambda: theirs.load_adapter(str(folder / "lora"), "two"))
        add("swap in memory", lambda: ours.swap_patch("audio-playroom", other))
        add("swap from file", lambda: ours.swap_patch("audio-playroom", file))
        add("peft hotswap_adapter", lambda: hotswap_adapter(theirs, str(folder / "lora"), "default"))
        add("disable", lambda: ours.disable("audio-playroom"))
        add("remove", lambda: ours.remove_patch("audio-playroom"))
        add("peft delete_adapter", lambda: theirs.delete_adapter("two"))
        add("apply in memory", lambda: ours.apply_patch(patch))
        ours.remove_patch("audio-playroom")
    pairs = {
        "apply from file": "peft load_adapter",
        "swap from file": "peft hotswap_adapter",
        "remove": "peft delete_adapter",
    }
    shares = {
        f"{mine}, of {peft}": statistics.median(a / b for a, b in zip(took[mine], took[peft], strict=True))
        for mine, peft in pairs.items()
    }
    return {
        "rounds": rounds,
        "milliseconds": {name: round(1000 * statistics.median(each), 3) for name, each in took.items()},
        "share": {name: round(value, 3) for name, value in shares.items()},
    }


def cold(rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds to apply a shrunk patch of a 7B base from disk, and to only read and hash its bytes."""
    import hashlib

    model = empty_model("7B")
    fusion = FusionConfig(kind="official", values="shared", rope="off", head="norm")
    file = random_patch(model, fusion, 16, channels=64).shrink().save(folder / "large.safetensors")
    whole, bare = [], []
    for _ in range(rounds):
        for times, call in ((bare, lambda: hashlib.sha256(file.read_bytes()).digest()), (whole, None)):
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
            times.append(seconds(call or (lambda: model.apply_patch(file))))
        model.remove_patch("large")
    middle = {name: round(1000 * statistics.median(each), 1) for name, each in (("apply", whole), ("bytes", bare))}
    return {"rounds": rounds, "bytes": file.stat().st_size, "milliseconds": middle}


def sixteen(rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of a forward pass of 16 rows: without patches, with one for all, with one each, with two for all;
    and the same for patches of LoRA only, which dominates the cost in a large model."""
    whole = Patch.load(folder_of("audio-playroom"))
    lora = {name: tensor for name, tensor in whole.tensors.items() if name.startswith("lora.")}
    bare = Patch(whole.config.model_copy(update={"senses": {}}), lora)
    return {"rounds": rounds} | {
        name: rows_of_sixteen(patch, rounds, folder) for name, patch in (("whole", whole), ("LoRA alone", bare))
    }


def rows_of_sixteen(patch: Patch, rounds: int, folder: Path) -> dict[str, Any]:
    model = load("playroom")
    for number in range(16):
        model.apply_patch(patch, name=f"{number}")
    examples = {each.video: each for each in read_data(write_clips(folder / "16", 16, 0, "test"))}
    seen = model.encode([Clip.read(path, frames=model.host.frames) for path in examples])
    questions = [each.question for each in examples.values()]
    ways: dict[str, list[list[str]]] = {
        "none": [[]] * 16,
        "one for all": [["0"]] * 16,
        "one each": [[f"{number}"] for number in range(16)],
        "two for all": [["0", "1"]] * 16,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, patches in ways.items():
            inputs = model.prepare(seen, questions, patches=patches)
            with torch.no_grad():
                took[name].append(seconds(lambda inputs=inputs: model.forward(inputs)))
    share = statistics.median(a / b for a, b in zip(took["one each"], took["one for all"], strict=True))
    middle = {name: round(1000 * statistics.median(each), 1) for name, each in took.items()}
    return {"milliseconds": middle, "one each, of one for all": round(share, 3)}


FIRST = """
import sys, time
import pave
model = pave.load(sys.argv[1])
begin = time.perf_counter()
model.apply_patch(sys.argv[2])
print(time.perf_counter() - begin)
"""


def in_processes(size: str, folder: Path) -> dict[str, Any]:
    """Seconds of the first `apply_patch` in each of two processes, which must hash the base, and find its hash."""
    model = empty_model(size)
    model.base.save_pretrained(folder / "base")
    model.host.tokenizer.save_pretrained(folder / "base")
    model.host.weights.known = None
    patch = folder / "patch.safetensors"
    random_patch(model, FusionConfig(width=96), rank=8, channels=load_encoder("logmel").spec.dim).save(patch)
    stored = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    del model
    took = []
    for _ in range(3):
        command = [sys.executable, "-c", FIRST, str(folder / "base"), str(patch)]
        environment = {**os.environ, "PAVE_HOME": str(folder / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        took.append(round(float(done.stdout.split()[-1]), 3))
    return {"gigabytes": round(stored / 1e9, 2), "first process, s": took[0], "next ones, s": took[1:]}


def decoding(rounds: int) -> dict[str, Any]:
    """Milliseconds of a core for one token in each of 16 rows of a random decoder of 512 channels, by how many LoRAs of
    rank 64 the rows have in turn."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=512,
    )
    decoder, shape = Qwen2Model(config).eval(), LoraConfig(r=64, lora_alpha=64)
    loras, inside = Loras(decoder), [Lora(shape, targets(shape, decoder)).eval() for _ in range(16)]
    for lora in inside:
        for parameter in lora.requires_grad_(False).parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        loras.add(lora)
    ids = torch.randint(0, 512, (16, 1))
    took: dict[int, list[float]] = {0: [], 1: [], 2: [], 8: [], 16: []}
    for _ in range(rounds):
        for many, times in took.items():
            gates = {lora: torch.arange(16).remainder(many).eq(i).float() for i, lora in enumerate(inside[:many])}
            with torch.no_grad(), running(Call(gates)):
                decoder(input_ids=ids, use_cache=False)  # prepares the weights, as the prefill does
                begin = time.process_time()
                for _ in range(10):
                    decoder(input_ids=ids, use_cache=False)
                times.append((time.process_time() - begin) / 10)
    share = statistics.median(a / b for a, b in zip(took[16], took[1], strict=True))
    middle = {f"{many} LoRAs": round(1000 * statistics.median(times), 1) for many, times in took.items()}
    return {"rounds": rounds, "milliseconds": middle, "16, of one for all": round(share, 3)}


def changes(count: int, folder: Path) -> dict[str, Any]:
    """Random changes with real questions between them."""
    model, patch = load("playroom"), Patch.load(folder_of("audio-playroom"))
    patches = [patch, patch.shrink(), patch.shrink(8, 2)]
    example = read_data(write_clips(folder, 1, 0, "test", ("audio",)))[0]
    seen = model.encode([Clip.read(example.video, frames=model.host.frames)], list(patch.config.senses.values()))

    def ask() -> torch.Tensor:
        with torch.no_grad():
            return model.forward(model.prepare(seen, [example.question])).logits

    reference, rng, bare, other = ask(), Random(0), 0, 0
    before = trace(model)
    for _ in range(count):
        change(model, patches, rng)
        answer = ask()
        if model.patches:
            other += not torch.equal(answer, reference)
        else:
            bare += 1
            if not torch.equal(answer, reference) or trace(model) != before:
                raise SystemExit("a removed patch has left a trace")
    return {"changes": count, "times_without_a_patch": bare, "answers_that_a_patch_changed": other}


def change(model: PatchedModel, patches: list[Patch], rng: Random) -> None:
    here = list(model.patches)
    free = [name for name in "abc" if name not in here]
    verb = rng.choice(["apply", "swap", "weight", "switch", "remove", "remove"])
    if verb == "apply" and free:
        model.apply_patch(rng.choice(patches), name=rng.choice(free))
    elif here:
        name = rng.choice(here)
        match verb:
            case "swap":
                model.swap_patch(name, rng.choice(patches))
            case "weight":
                model.set_weight(name, rng.choice([0.0, 0.5, 1.0, 2.0]))
            case "switch":
                rng.choice([model.enable, model.disable])(name)
            case "remove":
                model.remove_patch(name)


def trace(model: PatchedModel) -> str:
    """All state that a patch could leave behind as one string: weights, names, types, modes and hooks."""
    hooks = [
        (
            name,
            type(module).__name__,
            module.training,
            *(len(v) for k, v in vars(module).items() if k.endswith("_hooks")),
        )
        for name, module in model.base.named_modules()
    ]
    wanted = [(name, each.requires_grad, each.grad is None) for name, each in model.base.named_parameters()]
    return digest(repr((hooks, wanted)), model.base.state_dict())


def compiled(swaps: int, folder: Path) -> dict[str, Any]:
    """Graphs of a compiled base, then of the same base with a patch, and how many more its swaps need."""
    torch._dynamo.reset()
    counter, model = CompileCounter(), load("playroom")
    patch = Patch.load(folder_of("audio-playroom") / "patch.safetensors")
    clip = Clip.read(read_data(write_clips(folder / "compiled", 1, 0, "test", ["audio"]))[0].video)
    language: Any = model.host.language_model
    language.compile(backend=counter, dynamic=True)

    def ask() -> Tensor:
        with torch.no_grad():
            return model.forward(model.prepare([clip], ["What do you hear?"])).logits

    def so_far(before: int = 0) -> int:
        ask()
        return int(counter.frame_count) - before

    bare = so_far()
    model.apply_patch(patch, name="a")
    patched = so_far(bare)
    for step in range(swaps):
        scaled = {name: value * (0.5 + step / swaps) for name, value in patch.tensors.items()}
        model.swap_patch("a", replace(patch, tensors=scaled))
        ask()
    with_graph = ask()
    language._compiled_call_impl = None
    return {
        "graphs, bare": bare,
        "graphs, patched": patched,
        "swaps": swaps,
        "graphs for the swaps": so_far(bare + patched),
        "largest difference to the uncompiled base": (ask() - with_graph).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few rounds and changes; writes no result")
    small = parser.parse_args().small
    study = Study("patch_life")
    with TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "beside PEFT": lambda: beside_peft(3 if small else 30, folder),
            "sixteen rows": lambda: sixteen(3 if small else 31, folder),
            "decoding": lambda: decoding(2 if small else 15),
            "cold, 7B": lambda: cold(2 if small else 15, folder),
            "processes": lambda: in_processes("small" if small else "2 GB", folder),
            "compiled": lambda: compiled(3 if small else 50, folder),
            "changes": lambda: changes(50 if small else 10_000, folder),
        }
        for key, part in parts.items():
            if small or key not in study:
                figures = part()
                if not small:
                    study.add(key, figures)
            else:
                figures = study.runs[key]
            print(key, figures, flush=True)


if __name__ == "__main__":
    main()
