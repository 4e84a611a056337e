"""What does a row cost in which the questions about a clip share its prefix, with a dense mask and in parts?

    python benchmarks/packed.py            # some minutes; writes results/packed.json
    python benchmarks/packed.py --small    # short rows, writes nothing

A row is as at 7B: LLaVA-OneVision's 14 rows of 14 tokens and a newline for each key frame, then ten questions of 30
tokens. Attention alone, forward and backward, in bfloat16 for one head of 28, which all read the same mask.
    memory     of rows with 32 and 128 key frames, each in a process of its own: the bytes that the mask holds, and by
               how much the process's peak rises while it is made and used
    seconds    of processor time for rows of 256 tokens and more, in turn, medians: which is faster from what length on?
Targets: with 128 key frames in parts at most a tenth of the dense mask's memory, and equal sums of gradients.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from study import Study
from torch import Tensor

from pave.packing.mask import PREFIX, PackedMask, dense

PER_FRAME, BEFORE, QUESTIONS, LENGTH, WIDTH = 14 * 15, 14, 10, 30, 128
MASKS = {"dense": dense, "in parts": PackedMask}


def owners(prefix: int) -> Tensor:
    """A row of a prefix and ten questions (1 l)."""
    return torch.tensor([[PREFIX] * prefix + [i + 1 for i in range(QUESTIONS) for _ in range(LENGTH)]])


def step(mask: Tensor, inputs: list[Tensor]) -> float:
    """Attention of a row and its gradients; their sum."""
    out: Any = F.scaled_dot_product_attention(*inputs, attn_mask=mask)  # type: ignore[call-overload]
    gradients = torch.autograd.grad(out.float().square().mean(), inputs)
    return sum(each.float().abs().sum().item() for each in gradients)


def inputs_of(length: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 1, length, WIDTH, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]


def held(mask: Tensor) -> int:
    """Bytes of the tensors that a mask holds."""
    if not isinstance(mask, PackedMask):
        return mask.nbytes
    parts = [part for made in mask._parts.values() for *_, part in made]
    return mask.owners.nbytes + sum(part.nbytes for part in parts if part is not None)


def peak() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(kind: str, prefix: int) -> dict[str, float]:
    """One row in this process."""
    row, begin = owners(prefix), time.process_time()
    inputs = inputs_of(row.shape[1])
    step(PackedMask(owners(64)), inputs_of(64 + QUESTIONS * LENGTH))  # loads the kernels
    before = peak()
    mask = MASKS[kind](row)
    made, total = peak() - before, step(mask, inputs)
    figures = {"tokens": row.shape[1], "mask_bytes": held(mask), "peak_rise_made": made, "peak_rise": peak() - before}
    return {**figures, "gradients": total, "seconds": round(time.process_time() - begin, 1)}


def apart(kind: str, prefix: int) -> dict[str, float]:
    """One row in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, str(prefix)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def seconds(length: int, rounds: int) -> dict[str, float]:
    row = owners(length - QUESTIONS * LENGTH)
    inputs, found = inputs_of(length), {kind: list[float]() for kind in MASKS}
    for _ in range(rounds):
        for kind, made in MASKS.items():
            begin = time.process_time()
            step(made(row), inputs)
            found[kind].append(time.process_time() - begin)
    ours = {kind: round(median(times), 5) for kind, times in found.items()}
    return {**ours, "dense / in parts": round(ours["dense"] / ours["in parts"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("MASK", "PREFIX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(memory(options.one[0], int(options.one[1]))))
        return
    study = None if options.small else Study("packed")
    found: dict[str, Any] = {}
    for frames in (2, 8) if options.small else (32, 128):
        rows = {kind: apart(kind, BEFORE + frames * PER_FRAME) for kind in MASKS}
        shares = {
            f"{name}, share of dense": round(rows["in parts"][name] / rows["dense"][name], 4)
            for name in ("mask_bytes", "peak_rise")
        }
        found |= {f"{frames} key frames, {kind}": figures for kind, figures in rows.items()}
        found[f"{frames} key frames, in parts"] |= shares
    for length in (512, 1024) if options.small else (384, 512, 768, 1024, 2048, 4096):
        found[f"seconds, {length} tokens"] = seconds(length, 3 if options.small else max(3, 20_000 // length))
    for key, figures in found.items():
        print(f"{key}: {json.dumps(figures)}", flush=True)
        if study:
            study.add(key, figures)


if __name__ == "__main__":
    main()
