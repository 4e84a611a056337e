"""Does a training of 100,000 clips start, resume and end as one of 1,000 does, clip by clip? Is it whole when killed?

    python benchmarks/scale.py            # all; writes benchmarks/results/scale.json; an hour
    python benchmarks/scale.py 1000 keep  # some parts: 1000, 10000 and 100000 clips, keep and none
    python benchmarks/scale.py --small    # 500 clips, and three kills; writes nothing

A number: every clip is a file of its own with one question and synthetic features (random numbers in the cache, as if
it had been encoded), read by a base of two layers: so time goes into what there is per clip, not into networks. One
epoch of `pave.train` in a process of its own, which is killed with SIGKILL half-way and resumed in another one: seconds
from the start of a process to the end of its first step, seconds of a step per clip, memory, and the most lines that
/proc/self/maps ever had. Seconds of a core do not count what other processes of the machine take. Targets for 100,000
clips: start and resume below 60 s, no map of features, and at most 1.2 times the time per clip that 1,000 clips take.

flawed: 10,000 lines of which 0.5 % are broken, and 1 % are about clips that are missing or cut short: the training must
end, and its quarantine hold exactly these; with --strict it must stop, with their lines; a dry run must count them.

keep, none: runs of 60 steps on real clips with this `data.cache`, each killed with SIGKILL at a random instant of its
start, its encoding or its steps, and resumed: the patch file must be that of an uninterrupted run with `keep`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "parts"))
from clips import click, counting_frames, write_clip
from small import make_tokenizer, write_base, write_line
from study import Study

from pave.data import Source
from pave.features.cache import record
from pave.features.stored import known
from pave.model.inputs import ClipFeatures
from pave.playroom.writer import write_clips
from pave.recipe import read_recipe
from pave.sidechannel import SideTokens
from pave.training.run import train
from pave.training.setup import Setup

ROOT = Path(__file__).parents[1]
PARTS, SMALL = ("1000", "10000", "100000", "flawed", "keep", "none"), ("500", "flawed", "keep", "none")
FLAWED, FEW = 10_000, 400  # lines
BATCH, LOOKS, KILLS, RETRIES = 50, 20, 20, 5
MAPS = Path("/proc/self/maps")


def made(folder: Path, clips: int) -> float:
    """A base, clips, questions, a recipe and features in a folder; returns a core's seconds of writing features."""
    steps = clips // BATCH
    every = max(1, steps // LOOKS)
    base = write_base(folder / "base", make_tokenizer())
    media = folder / "clips"
    media.mkdir()
    content = write_clip(folder / "film.mp4", counting_frames(2), audio=click(0.25, 0.1)).read_bytes()
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
train:
  {{steps: {steps}, batch: {BATCH}, keep: 0, checkpoint_every: {every}, eval_every: 1000000, output: {folder / "out"}}}
""")
    store = Setup.of(read_recipe(folder)).store
    host, (encoder,), shards = store.model.host, store.encoders, store.shards
    assert shards is not None
    draw = torch.Generator().manual_seed(0)
    begin = time.process_time()
    with shards.filling():
        for number in range(clips):
            vision, tokens = (
                torch.randn(host.frames, host.tokens_per_frame, size, generator=draw)
                for size in (host.vision_dim, host.dim)
            )
            heard = SideTokens.regular(torch.randn(5, 16, generator=draw), rate=5)
            times = torch.arange(host.frames, dtype=torch.float64)
            features = ClipFeatures(vision, tokens, times, {encoder.spec.preprocessing: heard})
            key = store.key(Source(media / f"{number}.mp4"))
            assert key
            shards.add(key, *record(features, {}), known(features))
    return time.process_time() - begin


def run(folder: Path, resume: bool) -> None:
    """The process that trains: prints a line of figures every few steps, and at the first one."""
    begun: list[int] = []

    def tell(step: int, steps: int, figures: dict[str, float]) -> None:
        begun.append(step)
        if (step - begun[0]) % max(1, steps // LOOKS) == 0 or step == steps:
            maps = MAPS.read_text().splitlines() if MAPS.exists() else []
            ours = sum(str(folder / "out") in line for line in maps)
            told = {"step": step, "clock": time.monotonic(), "work": time.process_time()}
            print(json.dumps(told | {"maps": len(maps), "maps of features": ours}), flush=True)

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
    *after, end = after
    told = [*before, *after]
    pairs = [pair for run in (before, after) for pair in pairwise(run)]
    each = {
        name: median((b[name] - a[name]) / (b["step"] - a["step"]) / BATCH for a, b in pairs)
        for name in ("clock", "work")
    }
    return {
        "clips": clips,
        "steps": steps,
        "start, s": round(start, 1),
        "start, s of a core": round(before[0]["work"], 1),
        "resume, s": round(resume, 1),
        "resume, s of a core": round(after[0]["work"], 1),
        "writing features per clip, ms of a core": round(1000 * filling / clips, 3),
        "step per clip, ms": round(1000 * each["clock"], 3),
        "step per clip, ms of a core": round(1000 * each["work"], 3),
        **{f"{name}, at most": max(line[name] for line in told) for name in ("maps", "maps of features")},
        "memory, MB": round(end["memory"] / 1000),
        "files of features": len(files),
        "bytes of features per clip": size // clips,
    }


def flawed(lines: int) -> dict[str, Any]:
    """Seconds of a training whose data have flaws, and counts, of which none may be BAD."""
    draw = random.Random(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        made(folder, lines)
        chosen = draw.sample(range(lines), lines // 100 + lines // 200)
        bad, broken = set(chosen[: lines // 100]), set(chosen[lines // 100 :])
        for place, number in enumerate(sorted(bad)):
            film = folder / "clips" / f"{number}.mp4"
            film.write_bytes(film.read_bytes()[:500]) if place % 2 else film.unlink()
        text = (folder / "train.jsonl").read_text().splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join("{\n" if n in broken else line for n, line in enumerate(text)))

        def timed(*words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
            command = [sys.executable, "-m", "pave.cli.train", str(folder), *words]
            environment, begin = {**os.environ, "PYTHONPATH": str(ROOT)}, time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            return time.monotonic() - begin, done

        places = {f"train.jsonl, line {number + 1}" for number in chosen}
        gone = set(sorted(bad)[::2])
        at_once = {f"train.jsonl, line {number + 1}" for number in broken | gone}  # known before any clip is opened
        _, strict = timed("--strict")
        named = set(re.findall(r"train\.jsonl, line \d+", strict.stderr))
        looked, dry = timed("--dry-run")
        trained, whole = timed()
        file = folder / "out" / "features" / "quarantine.jsonl"
        listed = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        found = sorted(place for each in listed for place in each.get("records", [each.get("record")]))
        left = f"left out: {len(bad):,} clips and {len(broken):,} broken records"
        return {
            "lines": lines,
            "broken": len(broken),
            "bad clips": len(bad),
            "dry run, s": round(looked, 1),
            "training, s": round(trained, 1),
            "places that --strict names": len(named),
            "BAD: --strict": int(strict.returncode != 2 or named != at_once),
            "BAD: dry run": int(dry.returncode != 0 or left not in dry.stdout.splitlines()[-1]),
            "BAD: training": int(whole.returncode != 0 or not (folder / "out" / "patch.safetensors").is_file()),
            "BAD: quarantine": int(found != sorted(places)),
        }


def begun(folder: Path, out: str, cache: str, resume: bool = False) -> int:
    """A forked process that trains; it saves the seconds of importing everything again."""
    if child := os.fork():
        return child
    try:
        train(read_recipe(folder, [f"train.output={folder / out}", f"data.cache={cache}"]), resume=resume)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed(cache: str, kills: int) -> dict[str, int]:
    """Counts of runs that were killed at a random instant and resumed; none may be BAD."""
    draw = random.Random(cache)
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = write_base(folder / "base", make_tokenizer())
        file = write_clips(folder, 12, split="train", channels=("audio",))
        (folder / "patch.yaml").write_text(f"""\
name: ears
base: {base}
senses:
  audio: {{encoder: logmel, options: {{bands: 16, rate: 5}}}}
fusion: {{width: 32, heads: 2, dropout: 0.1}}
lora: {{r: 4}}
data: {{train: {file}}}
train: {{steps: 60, batch: 4, checkpoint_every: 5}}
""")
        begin = time.monotonic()
        os.waitpid(begun(folder, "whole", "keep"), 0)
        seconds, whole = time.monotonic() - begin, (folder / "whole" / "patch.safetensors").read_bytes()
        found = {"killed before a checkpoint": 0, "killed later": 0, "equal": 0, "BAD: different": 0}
        for number in range(kills):
            out = folder / f"{number}"
            process = begun(folder, out.name, cache)
            time.sleep(draw.random() * seconds)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            found["killed later" if (out / "checkpoint.safetensors").exists() else "killed before a checkpoint"] += 1
            for _ in range(RETRIES):  # a child that it was starting may hold its lock for a moment longer
                if (out / "patch.safetensors").exists():
                    break
                os.waitpid(begun(folder, out.name, cache, resume=True), 0)
            found["equal" if (out / "patch.safetensors").read_bytes() == whole else "BAD: different"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="little of all; writes no result")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.resume)
        return
    study = Study("scale")
    for part in SMALL if options.small else options.parts or PARTS:
        if options.small or part not in study:
            if part == "flawed":
                figures = flawed(FEW if options.small else FLAWED)
            else:
                figures = measure(int(part)) if part.isdigit() else killed(part, 3 if options.small else KILLS)
            print(part, json.dumps(figures), flush=True)
            if any(name.startswith("BAD") and count for name, count in figures.items()):
                raise SystemExit(1)
            if not options.small:
                study.add(part, figures)


if __name__ == "__main__":
    main()
