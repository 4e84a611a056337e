"""Does extraction lose, duplicate or change a clip when it is killed, and how fast is it compared with a plain loop?

    python benchmarks/extraction.py            # 1,000 clips; writes benchmarks/results/extraction.json; some minutes
    python benchmarks/extraction.py --small    # 60 clips; writes nothing

Clips of the Playroom, every fiftieth damaged in one of five ways. `pave encode` runs once uninterrupted, and once
killed with SIGKILL after a third and after two thirds of its files and restarted: each good clip must be there exactly
once, the quarantine list exact, every file equal to that of the uninterrupted run. Then wall-clock time of whole
processes, interpreter start included, best of two alternating rounds: `pave encode` with one worker per core, and a
loop over the same encoder that reads, encodes and saves, without limits, hashes or resuming.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from study import Study

from pave.features.files import files, read_header
from pave.playroom.writer import write_clips

ROOT = Path(__file__).parents[1]
SHARD, EVERY, ROUNDS = 16, 50, 2
DAMAGE = {  # changes to the bytes of a clip
    "empty": lambda data: b"",
    "text": lambda data: b"<html>404 Not Found</html>",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "no tracks": lambda data: data.replace(b"trak", b"free"),
}
LOOP = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from pave.encoder import load_encoder
from pave.errors import MediaError
from pave.media import Clip
encoder, found = load_encoder("logmel"), {}
for path in sorted(Path(sys.argv[1]).rglob("*.mp4")):
    try:
        found[path.name] = encoder.encode(Clip.read(path, frames=0, timeout=None)).x
    except MediaError as error:
        print(error)
save_file(found, sys.argv[2])
"""


def made(folder: Path, clips: int) -> dict[str, str]:
    """Write clips into a folder, some of them damaged; returns their names and kinds of damage."""
    write_clips(folder, clips)
    every = EVERY if clips >= 1000 else EVERY // 5
    damaged = {}
    for number, path in enumerate(sorted(folder.rglob("*.mp4"))[::every]):
        kind = list(DAMAGE)[number % len(DAMAGE)]
        path.write_bytes(DAMAGE[kind](path.read_bytes()))
        damaged[path.relative_to(folder).as_posix()] = kind
    return damaged


def begin(*words: object) -> subprocess.Popen[bytes]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # with more, the loop is slower
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def encoding(media: Path, out: Path) -> subprocess.Popen[bytes]:
    workers = os.cpu_count() or 1
    return begin("-m", "pave.cli.main", "encode", "logmel", media, out, "--shard", SHARD, "--workers", workers)


def killed(media: Path, folder: Path, damaged: dict[str, str], clips: int) -> dict[str, int]:
    """An uninterrupted run, and one that is killed twice; counts of the outcomes."""
    whole, out = folder / "whole", folder / "killed"
    assert encoding(media, whole).wait() == 0
    for third in (1, 2):
        with encoding(media, out) as process:
            while len(files(out)) < third * clips / SHARD / 3 and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert not (out / "quarantine.jsonl").exists(), "it was killed on the way"
    assert encoding(media, out).wait() == 0
    return verdict(whole, out, media, damaged)


def verdict(whole: Path, out: Path, media: Path, damaged: dict[str, str]) -> dict[str, int]:
    """Counts; none may be BAD."""
    told = Counter(entry.path for path in files(out) for entry in read_header(path).clips if not entry.why)
    good = {path.relative_to(media).as_posix() for path in media.rglob("*.mp4")} - damaged.keys()
    listed = [json.loads(line)["file"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
    equal = [path.read_bytes() == (out / path.name).read_bytes() for path in files(whole)]
    found = {
        "good clips, each once": sum(told[name] == 1 for name in good),
        "BAD: lost": sum(told[name] == 0 for name in good),
        "BAD: doubled, or encoded though damaged": told.total() - len(good),
        "damaged clips, each on the list": len(listed),
        "BAD: the list is not exact": int(sorted(listed) != sorted(damaged)),
        "files equal to the undisturbed ones": sum(equal),
        "BAD: other files": len(files(out)) - sum(equal),
    }
    return {name: count for name, count in found.items() if count}


def speeds(media: Path, folder: Path, clips: int) -> dict[str, float]:
    """Clips per second of whole processes, and their ratio."""
    best = {"pave encode": float("inf"), "plain loop": float("inf")}
    for _ in range(ROUNDS):
        for name in best:
            out = folder / "out"
            clock = time.perf_counter()
            process = encoding(media, out) if name == "pave encode" else begin("-c", LOOP, media, folder / "loop")
            assert process.wait() == 0
            best[name] = min(best[name], time.perf_counter() - clock)
            shutil.rmtree(out, ignore_errors=True)
    rates = {f"{name}: clips per second": round(clips / seconds, 1) for name, seconds in best.items()}
    ratio = round(best["plain loop"] / best["pave encode"], 2)
    return {**rates, "ratio": ratio, "workers": os.cpu_count() or 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="60 clips; writes no result")
    small = parser.parse_args().small
    clips, study = 60 if small else 1000, Study("extraction")
    with TemporaryDirectory() as name:
        folder, media = Path(name), Path(name) / "media"
        damaged = made(media, clips)
        parts = {"killed": lambda: killed(media, folder, damaged, clips), "speed": lambda: speeds(media, folder, clips)}
        for key, part in parts.items():
            if small or key not in study:
                figures = {"clips": clips, "damaged": dict(Counter(damaged.values())), **part()}
                print(key, json.dumps(figures), flush=True)
                if any(name.startswith("BAD") for name in figures):
                    raise SystemExit(1)
                if not small:
                    study.add(key, figures)


if __name__ == "__main__":
    main()
