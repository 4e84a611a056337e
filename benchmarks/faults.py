"""Do patches survive failures of bytes, disks, processes and connections? Many tries of each; no count may be BAD.

    python benchmarks/faults.py            # writes benchmarks/results/faults.json; some minutes
    python benchmarks/faults.py --small    # a few tries of each; writes nothing

mutated: files changed at random, half in the header, half in the data; each must be refused with a PatchError, or hold
exactly the tensors and config that were written. killed: a process that saves two patches to one file in turn is killed
with SIGKILL at a random time; the file must be one of them, complete. full: the disk is full at some point of a save.
writers: two processes save to one file at the same time. cold: 16 processes request an uncached Hub patch at the same
time. killed downloads: a process is killed at a random time of a download, and another requests the patch. broken
downloads: the Hub's responses are corrupted at random, once or always; the patch must be right, or refused with a
PatchError.

strangers: patches, texts, bases, adapters, sensors: see `benchmarks/strangers`. Every case must be fine, or refused
by a PaveError that names the file or the value, within 5 s of CPU time and 300 MB. Only on Linux. To reproduce BAD
cases, look into `pave-strangers.bad.jsonl` in the folder of temporary files.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import Any

import torch
from study import Study

sys.path.append(str(Path(__file__).parents[1] / "tests" / "parts"))
from forked import Forked, begin
from hub_server import FAULTS, HubServer

from pave.config import BaseFacts, FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.errors import PatchError
from pave.files.locks import SWEPT
from pave.hub.locate import locate
from pave.patch.file import Patch, fusion_of

# Forks a process for every line that it reads, {"cache": folder, "answer": file}: the child requests the patch and
# writes the result. Forks start at the same time, and a thousand of them need no imports.
ASKER = """
import json, os, signal, sys
from pathlib import Path
from huggingface_hub import constants
from pave.hub.locate import locate
from pave.errors import PatchError
from pave.files.locks import SWEPT
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        continue
    constants.HF_HUB_CACHE = asked["cache"]
    try:
        got = locate("tester/small").load().sha256
    except PatchError as error:
        got = "REFUSED: " + error.cause
    except BaseException as error:
        got = "FOREIGN " + repr(error)
    part = Path(asked["answer"] + ".part")
    part.write_text(got)
    part.rename(asked["answer"])
    os._exit(0)
"""
PATCH = "tester/small"
BAD = "pave-strangers.bad.jsonl"


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
    """The file with a few random changes."""
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
            case 5:  # numbers of the header: the changes most likely to pass a parser
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
                found["BAD: without cause or remedy"] += 1
        except Exception as error:
            found[f"BAD: {type(error).__name__}"] += 1
        else:
            found["unharmed" if patch.sha256 == right[which] else "BAD: accepted with other content"] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"tries": tries, **counts(found), "peak_memory_MB": peak}


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
    SWEPT.clear()  # a process sweeps a folder before its first save there
    Patch.load(names[0]).save(target)
    found["BAD: not swept"] += len([file for file in folder.iterdir() if file.name.startswith(".target")])
    return {"tries": tries, **counts(found), "left_by_kills_and_swept_by_the_next_save": len(left)}


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
            found["BAD: saved"] += 1
        except PatchError:
            found["refused"] += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        found[f"file: {verdict(target, {old.sha256})}"] += 1
    found["BAD: left behind"] += len([file for file in folder.iterdir() if file.name.startswith(".target")])
    return {"tries": tries, **counts(found)}


def writers(tries: int, folder: Path) -> dict[str, Any]:
    found = Counter[str]()
    names, target = two_large(folder), folder / "target.safetensors"
    whole = {Patch.load(name).sha256 for name in names}
    with saver(names, target) as one, saver(names[::-1], target) as other:
        for _ in range(tries):
            time.sleep(0.02)
            found[verdict(target, whole)] += 1
        found["BAD: a writer has ended"] += (one.poll() is not None) + (other.poll() is not None)
    return {"looks": tries, **counts(found)}


def cold(rounds: int, folder: Path) -> dict[str, Any]:
    found = Counter[str]()
    with hub_of_one(folder) as (server, right), Asker(server) as asker:
        for number in range(rounds):
            answers = [folder / f"{number}-{each}" for each in range(16)]
            for answer in answers:
                asker.ask(folder / f"cache-{number}", answer)
            found.update("whole" if got(answer) == right else f"BAD: {got(answer)}" for answer in answers)
        sent = len([one for one in server.asked("GET", "/store*") if one.status == 200])
    return {"rounds": rounds, "processes": 16, **counts(found), "times_the_file_was_sent": sent}


def killed_downloads(tries: int, folder: Path) -> dict[str, Any]:
    rng, found = Random(0), Counter[str]()
    with hub_of_one(folder) as (server, right), Asker(server) as asker:
        for number in range(tries):
            cache, one, two = (folder / f"{kind}-{number}" for kind in ("cache", "one", "two"))
            slow = server.fail("slow", "/store*", seconds=0.4)
            child = asker.ask(cache, one)
            time.sleep(rng.uniform(0.0, 1.0))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            begun = one.exists() or any(file.stat().st_size for file in cache.rglob("*.incomplete"))
            found["ended before" if one.exists() else "killed in the file" if begun else "killed before the file"] += 1
            slow.times = 0
            asker.ask(cache, two)
            found["whole" if got(two) == right else f"BAD: {got(two)}"] += 1
            left = [file for file in cache.rglob("*") if file.suffix in (".incomplete", ".tmp")]
            found["left behind"] += len(left)
            shutil.rmtree(cache)
    return {"tries": tries, **counts(found)}


def broken_downloads(tries: int, folder: Path) -> dict[str, Any]:
    rng, found = Random(0), Counter[str]()
    kinds = sorted(FAULTS - {"moved", "hang"})  # "moved" has no effect here; "hang" would only wait for the timeout
    with hub_of_one(folder) as (server, right):
        for number in range(tries):
            kind, places = rng.choice(kinds), ("*", "/store*", "/api*", "*/resolve/*")
            fault = server.fail(kind, rng.choice(places), method=rng.choice(("GET", "HEAD")), times=rng.choice((1, 99)))
            fault.at, fault.by, fault.seconds = rng.randrange(9_000_000), rng.randrange(1, 99), 0.1
            fault.code = rng.choice((401, 403, 404, 429, 500, 502, 503))
            with server.client(folder / f"cache-{number % 2}", timeout=1):
                try:
                    found["whole" if locate(PATCH).load().sha256 == right else "BAD: another"] += 1
                except PatchError as error:
                    found["refused" if error.file and error.cause and error.remedy else "BAD: without remedy"] += 1
                except Exception as error:
                    found[f"BAD: {type(error).__name__}"] += 1
            server.faults.clear()
            if number % 2:
                shutil.rmtree(folder / "cache-1", ignore_errors=True)
    return {"tries": tries, **counts(found)}


class Strangers:
    """A process that runs `benchmarks/strangers` for all its classes: its imports take seconds."""

    def __init__(self) -> None:
        settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, str(Path(__file__).with_name("strangers")), "serve"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=settings)
        atexit.register(self.process.communicate)  # the end of its input ends it

    def judge(self, kind: str, tries: int, bad: Path) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([kind, 0, tries, str(bad)]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


strangers = cache(Strangers)


def of_strangers(kind: str) -> Callable[[int, Path], dict[str, Any]]:
    return lambda tries, folder: strangers().judge(kind, tries, Path(gettempdir(), BAD))


@contextmanager
def hub_of_one(folder: Path) -> Iterator[tuple[HubServer, str]]:
    """A local Hub server with one patch of some megabytes, and the sha256 of the patch."""
    patch = made(0, 1024, 1024)
    with HubServer() as server:
        server.create(PATCH, {"patch.safetensors": patch.save(folder / "patch.safetensors").read_bytes()})
        yield server, patch.sha256


class Asker:
    """A process whose forks request the patch."""

    def __init__(self, server: HubServer) -> None:
        hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        settings = {**os.environ, **hub, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        settings |= {"PYTHONPATH": str(Path(__file__).parents[1])}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", ASKER], stdin=pipe, stdout=pipe, text=True, env=settings)

    def __enter__(self) -> Asker:
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, cache: Path, answer: Path) -> int:
        """Request the patch in a new process; returns its process id."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"cache": str(cache), "answer": str(answer)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def got(answer: Path) -> str:
    """The result of a process, once it is written."""
    end = time.monotonic() + 600
    while not answer.exists():
        if time.monotonic() > end:
            return "no answer within ten minutes"
        time.sleep(0.005)
    return answer.read_text()


def counts(found: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(found.items()) if count}


def two_large(folder: Path) -> list[Path]:
    """Two patches large enough that saving takes some milliseconds."""
    return [made(seed, 1024, 1024).save(folder / f"{seed}.safetensors") for seed in (0, 1)]


def saver(names: list[Path], target: Path) -> Forked:
    """A process that saves in an endless loop; it is running when this returns."""

    def save() -> None:
        SWEPT.clear()  # as in a process that has not saved anything yet
        patches = [Patch.load(name) for name in names]
        (output / "ready").touch()
        while True:
            for patch in patches:
                patch.save(target)

    output = Path(mkdtemp(dir=target.parent))
    process = begin(output, save)
    while not ((output / "ready").exists() and target.exists()) and process.poll() is None:
        time.sleep(0.005)
    return process


def verdict(file: Path, whole: set[str]) -> str:
    try:
        return "whole" if Patch.load(file).sha256 in whole else "BAD: another"
    except PatchError as error:
        return f"BAD: {error.cause}"


PARTS: dict[str, tuple[Callable[[int, Path], dict[str, Any]], int, int]] = {  # few tries and many
    "mutated": (mutated, 2000, 100_000),
    "killed": (killed, 5, 200),
    "full": (full, 5, 20),
    "writers": (writers, 20, 300),
    "cold": (cold, 1, 20),
    "killed downloads": (killed_downloads, 5, 200),
    "broken downloads": (broken_downloads, 20, 500),
}
if sys.platform == "linux":
    for kind, few in {"patches": 40, "texts": 40, "bases": 30, "adapters": 30, "sensors": 40}.items():
        PARTS[f"strangers: {kind}"] = (of_strangers(kind), few, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few tries of each; writes no result")
    parser.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be repeated")
    options = parser.parse_args()
    small = options.small
    torch.set_num_threads(1)
    study, bad = Study("faults"), False
    for key in options.part or PARTS:
        part, few, many = PARTS[key]
        if small or key not in study:
            with TemporaryDirectory() as folder:
                figures = part(few if small else many, Path(folder))
            if not small:
                study.add(key, figures)
        else:
            figures = study.runs[key]
        print(key, json.dumps(figures), flush=True)
        bad |= any(name.startswith("BAD") for name in figures)
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
