"""Does a training of 100,000 clips start, resume and end as one of 1,000 does, clip by clip?

    python benchmarks/scale.py            # 1,000, 10,000 and 100,000 clips; writes benchmarks/results/scale.json; an hour
    python benchmarks/scale.py --clips 10000   # one of them
    python benchmarks/scale.py --small    # 300 clips; writes nothing

Every clip is a file of its own with one question and synthetic features (random numbers in the cache, as if it had been
encoded), read by a base of two layers: so time goes into what there is per clip, not into networks. One epoch of
`pave.train` in a process of its own, which is killed with SIGKILL half-way and resumed in another one: seconds from the
start of a process to the end of its first step, seconds of a step per clip, memory, and the most lines that
/proc/self/maps ever had. The targets, of 100,000 clips: start and resume below 60 s, fewer than 1,000 maps, and at most
1.2 times the time per clip that 1,000 clips take.
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
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "parts"))
from clips import counting_frames, write_clip  # noqa: E402
from small import make_tokenizer, write_base, write_line  # noqa: E402
from study import Study  # noqa: E402

from pave.data import Source  # noqa: E402
from pave.features.cache import _record  # noqa: E402
from pave.features.stored import known  # noqa: E402
from pave.model.inputs import ClipFeatures  # noqa: E402
from pave.recipe import read_recipe  # noqa: E402
from pave.sidechannel import SideTokens  # noqa: E402
from pave.training.run import train  # noqa: E402
from pave.training.setup import Setup  # noqa: E402

SIZES, SMALL, BATCH, LOOKS = (1_000, 10_000, 100_000), 300, 50, 20
MAPS = Path("/proc/self/maps")


def made(folder: Path, clips: int) -> float:
    """A base, clips, questions, a recipe and features in a folder; returns the seconds that writing features took."""
    steps = clips // BATCH
    every = max(1, steps // LOOKS)
    base = write_base(folder / "base", make_tokenizer())
    media = folder / "clips"
    media.mkdir()
    content = write_clip(folder / "film.mp4", counting_frames(2)).read_bytes()
    for number in range(clips):
        (media / f"{number}.mp4").write_bytes(content)
    words = ("red", "blue", "green")
    lines = (write_line(f"clips/{i}.mp4", "what do you hear?", words[i % 3]) for i in range(clips))
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "patch.yaml").write_text(f"""\
name: ears
base: {base}
senses:
  audio: {{encoder: logmel, options: {{bands: 16, rate: 5}}}}
fusion: {{width: 32, heads: 2}}
lora: {{r: 4}}
data: {{train: train.jsonl}}
train: {{steps: {steps}, batch: {BATCH}, output: {folder / "out"}, eval_every: {clips}, checkpoint_every: {every}, keep: 0}}
""")
    store = Setup.of(read_recipe(folder)).store
    host, (encoder,), shards = store.model.host, store.encoders, store.shards
    assert shards is not None
    draw = torch.Generator().manual_seed(0)
    begin = time.perf_counter()
    with shards.filling():
        for number in range(clips):
            vision, tokens = (
                torch.randn(host.frames, host.tokens_per_frame, size, generator=draw)
                for size in (host.vision_dim, host.dim)
            )
            heard = SideTokens.regular(torch.randn(5, 16, generator=draw), rate=5)
            times = torch.arange(host.frames, dtype=torch.float64)
            features = ClipFeatures(vision, tokens, times, {encoder.spec.preprocessing: heard})
            key = store._key(Source(media / f"{number}.mp4"))
            assert key
            shards.add(key, *_record(features, {}), known(features))
    return time.perf_counter() - begin


def run(folder: Path, resume: bool) -> None:
    """The process that trains: prints a line of figures every few steps, and at the first one."""
    begun: list[int] = []

    def tell(step: int, steps: int, figures: dict[str, float]) -> None:
        begun.append(step)
        if (step - begun[0]) % max(1, steps // LOOKS) == 0 or step == steps:
            maps = MAPS.read_text().splitlines() if MAPS.exists() else []
            ours = sum(str(folder) in line for line in maps)
            told = {"step": step, "clock": time.monotonic(), "maps": len(maps), "maps of the data": ours}
            print(json.dumps(told), flush=True)

    train(folder, resume=resume, progress=tell)
    print(json.dumps({"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


def watched(folder: Path, resume: bool, last: int | None) -> tuple[float, list[dict[str, Any]]]:
    """Seconds until the first step of a run in its own process has ended, and all its lines; killed at step `last`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    command = [sys.executable, __file__, "--run", str(folder), *(["--resume"] if resume else [])]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(json.loads(line))
            if last is not None and lines[-1].get("step", 0) >= last:
                process.send_signal(signal.SIGKILL)
    if process.returncode != (0 if last is None else -signal.SIGKILL):
        raise SystemExit(f"the run ended with {process.returncode}")
    return lines[0]["clock"] - begin, lines


def measure(clips: int) -> dict[str, Any]:
    """The figures of one size."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        filling = made(folder, clips)
        steps = clips // BATCH
        start, before = watched(folder, False, steps // 2)
        resume, after = watched(folder, True, None)
        files = list((folder / "out" / "features").iterdir())
        size = sum(file.stat().st_size for file in files)
        assert (folder / "out" / "patch.safetensors").is_file()
    told = [line for line in (*before, *after) if "step" in line]
    each = [
        (b["clock"] - a["clock"]) / (b["step"] - a["step"]) / BATCH
        for a, b in zip(told, told[1:], strict=False)
        if b["step"] > a["step"] and a is not before[-1]
    ]
    return {
        "clips": clips,
        "steps": steps,
        "start, s": round(start, 1),
        "resume, s": round(resume, 1),
        "writing features per clip, ms": round(1000 * filling / clips, 3),
        "step per clip, ms": round(1000 * median(each), 3),
        **{f"{name}, at most": max(line[name] for line in told) for name in ("maps", "maps of the data")},
        "memory, MB": round(after[-1]["memory"] / 1000),
        "files of features": len(files),
        "bytes of features per clip": size // clips,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} clips; writes no result")
    parser.add_argument("--clips", type=int, metavar="N", help="one size")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.resume)
        return
    study = Study("scale")
    for clips in [SMALL] if options.small else [options.clips] if options.clips else SIZES:
        if options.small or f"{clips}" not in study:
            figures = measure(clips)
            print(json.dumps(figures), flush=True)
            if not options.small:
                study.add(f"{clips}", figures)


if __name__ == "__main__":
    main()
