"""Files and texts of strangers: real ones, changed at random where it hurts, and judged by the code that reads them.

    python benchmarks/strangers patches 0 10000          # class, seed, cases; BAD ones to patches.bad.jsonl
    python benchmarks/strangers patches 0 --only 4711    # one case in this process, with its traceback

patches: headers and configs with a fitting sha256, tensors, metadata, bytes; by `patch info`, `Patch.load`, applying,
asking. texts: recipes and overrides by `pave-train --dry-run`, JSONL lines by the reader of a training run, aliases,
prompts, questions. bases: folders of small bases by `pave.load` and asking. adapters: PEFT folders, by applying.
sensors: arrays, scans, cameras, sound, feature files, and files that are no files, by the encoder and by the reader of
a training run, which must go on without the clip.

Equal class, seed and number give an equal case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PAVE_NONCOMMERCIAL": "1"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "parts"))

import torch
from adapters import Adapters
from bases import Bases
from kind import Kind
from patch_files import PatchFiles
from sensors import Sensors
from texts import Texts
from watched import judged, verdicts

from pave.errors import PaveError

KINDS: dict[str, type[Kind]] = {
    "patches": PatchFiles,
    "texts": Texts,
    "bases": Bases,
    "adapters": Adapters,
    "sensors": Sensors,
}


def judge(name: str, seed: int, numbers: Sequence[int], bad: Path | None = None) -> dict[str, Any]:
    """Try cases of a class; figures for benchmarks/results. bad: file to which BAD cases are added, to reproduce."""
    found, first, most, longest = Counter[str](), {}, 0, 0.0
    with TemporaryDirectory(prefix="pave-strangers-") as folder:
        kind = KINDS[name](Path(folder))
        for verdict in verdicts(numbers, lambda number: kind.case(seed, number)):
            found[verdict.kind] += 1
            if not sum(found.values()) % 250:
                print(f"{name} {seed}: {sum(found.values())} of {len(numbers)}, {dict(found)}", file=sys.stderr)
            most, longest = max(most, verdict.growth), max(longest, verdict.seconds)
            if verdict.kind.startswith("BAD"):
                first.setdefault(verdict.kind, f"{name} {seed} {verdict.number}: {verdict.message[:100]}")
                if bad:
                    with bad.open("a") as lines:
                        lines.write(json.dumps({"class": name, "seed": seed, **vars(verdict)}) + "\n")
    limits = {"longest_CPU_seconds": longest, "most_memory_MB": most >> 20}
    return {
        "tries": len(numbers),
        "seed": seed,
        **dict(sorted(found.items())),
        **limits,
        **({"first": first} if first else {}),
    }


def show(name: str, seed: int, number: int) -> None:
    """One case in this process, which may hang or die of it."""
    with TemporaryDirectory(prefix="pave-strangers-") as folder:
        case = KINDS[name](Path(folder)).case(seed, number)
        print("files:", *sorted((Path(folder) / "case").rglob("*")), sep="\n  ")
        for step in case.steps:
            try:
                step()
            except PaveError as error:
                print(f"refused: {str(error)[:600]!r}")
        print(judged(case))


def serve() -> None:
    """Answer lines of [class, seed, tries, file or null] with figures: the imports are needed once."""
    for line in sys.stdin:
        name, seed, tries, bad = json.loads(line)
        print(json.dumps(judge(name, seed, range(tries), bad and Path(bad))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "serve"])
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("tries", type=int, nargs="?", default=10_000)
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="this case, in this process, with its traceback")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kind == "serve":
        serve()
    elif options.only is not None:
        show(options.kind, options.seed, options.only)
    else:
        numbers = range(options.begin, options.begin + options.tries)
        print(json.dumps(judge(options.kind, options.seed, numbers, Path(f"{options.kind}.bad.jsonl")), indent=1))


if __name__ == "__main__":
    main()
