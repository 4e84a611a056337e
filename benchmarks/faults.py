"""What becomes of patches when bytes, disks and processes fail? Counts that must be zero, in many tries.

    python benchmarks/faults.py            # writes benchmarks/results/faults.json; some minutes
    python benchmarks/faults.py --small    # a few tries of each; writes nothing

mutated: files changed at random, half in the header, half in the data; each must be refused by a PatchError, or hold
the very tensors and config that were written. killed: a process that saves one patch over another, again and again, is
killed with SIGKILL at a random instant; the file must be the one or the other, whole. full: the disk ends somewhere in
a save. writers: two processes save to one file at once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from study import Study

from pave.config import BaseFacts, FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.errors import PatchError
from pave.patch import Patch, fusion_of

SAVER = """
import sys
from pathlib import Path
from pave.patch import Patch
one, other, target = sys.argv[1:]
patches = [Patch.load(one), Patch.load(other)]
print("ready", flush=True)
while True:
    for patch in patches:
        patch.save(target)
"""


def made(seed: int, width: int = 8, dim: int = 16) -> Patch:
    """A small patch with random weights."""
    torch.manual_seed(seed)
    facts = BaseFacts(
        model_type="llava_onevision", dim=dim, vision_dim=dim, tokens_per_frame=4, frames=2, fingerprint="0" * 64
    )
    sense = SenseFacts(encoder="logmel", dim=dim, preprocessing="0" * 64)
    lora = LoraConfig(r=4, target_modules=("q_proj",))
    config = PatchConfig(
        name="small", base=facts, senses={"audio": sense}, fusion=FusionConfig(width=width, heads=2), lora=lora
    )
    tensors = {f"fusion.audio.{name}": value for name, value in fusion_of(config, "audio").state_dict().items()}
    tensors |= {"lora.q_proj.A": torch.randn(4, dim), "lora.q_proj.B": torch.randn(dim, 4)}
    return Patch(config, tensors)


def mutate(data: bytes, rng: Random) -> bytes:
    """One file with a few faults."""
    length = int.from_bytes(data[:8], "little")
    low, high = (0, 8 + length) if rng.random() < 0.5 else (8 + length, len(data))
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(low, high)
        match rng.randrange(7):
            case 0:
                out[place % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[place % len(out)] = rng.randrange(256)
            case 2:
                del out[place:]
            case 3:
                out[place:place] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                del out[place : place + rng.randrange(1, 40)]
            case 5:  # numbers of the header are where most can go wrong
                digits = [i for i in range(8, min(8 + length, len(out))) if 48 <= out[i] <= 57]
                if digits:
                    out[rng.choice(digits)] = rng.choice(b"0123456789-e.")
            case 6:
                other = rng.randrange(low, high)
                out[place : place + 16], out[other : other + 16] = out[other : other + 16], out[place : place + 16]
        if not out:
            break
    return bytes(out)


def mutated(tries: int, folder: Path) -> dict[str, Any]:
    rng, found = Random(0), Counter[str]()
    wholes = [made(0).save(folder / "a").read_bytes(), made(1).shrink(4, None).save(folder / "b").read_bytes()]
    right = [Patch.load(folder / name).sha256 for name in "ab"]
    file = folder / "mutated"
    for number in range(tries):
        which = number % 2
        file.write_bytes(mutate(wholes[which], rng))
        try:
            patch = Patch.load(file)
        except PatchError as error:
            found[type(error).__name__] += 1
            if not (error.file and error.cause and error.remedy):
                found["without cause or remedy"] += 1
        except Exception as error:
            found[f"FOREIGN {type(error).__name__}"] += 1
        else:
            found["unharmed" if patch.sha256 == right[which] else "ACCEPTED WITH OTHER CONTENT"] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"tries": tries, **dict(sorted(found.items())), "peak_memory_MB": peak}


def killed(tries: int, folder: Path) -> dict[str, Any]:
    rng, found = Random(0), Counter[str]()
    names, target = two_large(folder), folder / "target.safetensors"
    whole = {Patch.load(name).sha256 for name in names}
    for _ in range(tries):
        with saver(names, target) as process:
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        found[verdict(target, whole)] += 1
    left = [file for file in folder.iterdir() if file.name.startswith(".target")]
    for file in left:  # those of a killed save count as such after an hour
        os.utime(file, (0, 0))
    Patch.load(names[0]).save(target)
    swept = not [file for file in folder.iterdir() if file.name.startswith(".target")]
    return {"tries": tries, **dict(sorted(found.items())), "left_by_kills": len(left), "swept_by_next_save": swept}


def full(tries: int, folder: Path) -> dict[str, Any]:
    rng, found = Random(0), Counter[str]()
    names, target = two_large(folder), folder / "target.safetensors"
    old, new = (Patch.load(name) for name in names)
    old.save(target)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for _ in range(tries):
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1, names[0].stat().st_size), limit[1]))
        try:
            new.save(target)
            found["SAVED"] += 1
        except PatchError:
            found["refused"] += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        found[f"file: {verdict(target, {old.sha256})}"] += 1
    left = len([file for file in folder.iterdir() if file.name.startswith(".target")])
    return {"tries": tries, **dict(sorted(found.items())), "left": left}


def writers(tries: int, folder: Path) -> dict[str, Any]:
    found = Counter[str]()
    names, target = two_large(folder), folder / "target.safetensors"
    whole = {Patch.load(name).sha256 for name in names}
    with saver(names, target) as one, saver(names[::-1], target) as other:
        for _ in range(tries):
            time.sleep(0.02)
            found[verdict(target, whole)] += 1
        alive = one.poll() is None and other.poll() is None
        one.kill()
        other.kill()
    return {"looks": tries, **dict(sorted(found.items())), "both_writers_alive": alive}


def two_large(folder: Path) -> list[Path]:
    """Patches whose save takes some milliseconds."""
    return [made(seed, 1024, 1024).save(folder / f"{seed}.safetensors") for seed in (0, 1)]


def saver(names: list[Path], target: Path) -> subprocess.Popen[bytes]:
    """A process that saves without end; it has begun when this returns."""
    command = [sys.executable, "-c", SAVER, *map(str, names), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    while not target.exists():
        time.sleep(0.005)
    return process


def verdict(file: Path, whole: set[str]) -> str:
    try:
        return "whole" if Patch.load(file).sha256 in whole else "ANOTHER"
    except PatchError as error:
        return f"BROKEN: {error.cause}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few tries of each; writes no result")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    study = Study("faults")
    parts: dict[str, tuple[Callable[[int, Path], dict[str, Any]], int, int]] = {
        "mutated": (mutated, 2000, 100_000),
        "killed": (killed, 5, 200),
        "full": (full, 5, 20),
        "writers": (writers, 20, 300),
    }
    for key, (part, few, many) in parts.items():
        if small or key not in study:
            with TemporaryDirectory() as folder:
                figures = part(few if small else many, Path(folder))
            if not small:
                study.add(key, figures)
        else:
            figures = study.runs[key]
        print(key, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
