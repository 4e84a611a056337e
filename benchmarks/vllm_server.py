"""Does a real vLLM server give the answers of the patched model itself?

    python benchmarks/vllm_server.py --vllm PATH    # 32 questions; writes benchmarks/results/vllm_server.json
    python benchmarks/vllm_server.py --small ...    # 4 questions; writes nothing

PATH: the command `vllm` of an environment of its own, which has vLLM and not PAVE (default: the one on PATH). Shipped
patches are exported into one folder, and served as its README.md says. Each question is asked of the patched model, and
through a front of the server; so is the same question of the base alone. `equal`: the share of equal answers.
`many`: seconds for all questions at once, `one`: one after the other. Without vLLM it says so and ends.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from study import Study

from pave.model.patched import PatchedModel, load
from pave.patch.vllm import export_vllm
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data
from pave.serving.vllm import Front

PATCHES = ("audio-playroom", "fast-playroom", "favor-playroom")
START = 900  # seconds in which a server must be ready


def started(vllm: str, command: str, folder: Path, flags: str) -> tuple[subprocess.Popen, int]:
    """A server of an exported folder, and its port. flags: further ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [vllm, *shlex.split(command.replace("\\\n", ""))[1:], "--host", "127.0.0.1", "--port", str(port)]
    words += shlex.split(flags)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return process, port
        except OSError:
            time.sleep(1)
    process.terminate()
    raise SystemExit(f"vLLM did not start:\n{(folder / 'server.log').read_text()[-4000:]}")


def asked(front: Front, rows: Sequence[tuple[Path, str, tuple[str, ...]]], workers: int) -> tuple[list[str], float]:
    """Answers to all questions, and the seconds that they took."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(lambda row: front.ask(row[0], row[1], patches=row[2]), rows))
    return answers, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers through vLLM.")
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="the command of vLLM")
    parser.add_argument("--flags", default="", help="further flags of vllm serve, as '--enforce-eager'")
    parser.add_argument("--small", action="store_true", help="4 questions; writes nothing")
    options = parser.parse_args()
    if options.vllm is None:
        return print("no vllm here: install it in an environment of its own, and pass --vllm PATH")
    version = subprocess.run([options.vllm, "--version"], capture_output=True, text=True).stdout.split()[-1]
    model: PatchedModel = load("playroom", dtype="float32", device="cpu")
    with TemporaryDirectory() as name:
        folder, command = Path(name), ""
        for patch in PATCHES:
            model.apply_patch(patch)
            command = export_vllm(model.export(patch), model.host, folder / "export")
        lines = read_data(write_clips(folder / "clips", 4 if options.small else 16, seed=0, split="test"))
        rows = [(line.video, line.question, (PATCHES[i % len(PATCHES)],)) for i, line in enumerate(lines)]
        rows = rows[:4] if options.small else rows[:32]
        process, port = started(options.vllm, command, folder / "export", options.flags)
        try:
            front = Front(model, f"http://127.0.0.1:{port}/v1")
            through, one = asked(front, rows, 1)
            again, many = asked(front, rows, len(rows))
            bare, _ = asked(front, [(*row[:2], ()) for row in rows], 1)
        finally:
            process.terminate()
            process.wait()
        own = [model.ask(clip, question, patches=patches) for clip, question, patches in rows]
        base = [model.ask(clip, question, patches=()) for clip, question, _ in rows]
    figures = {
        "equal": sum(a == b for a, b in zip(own, through, strict=True)) / len(rows),
        "equal, all at once": sum(a == b for a, b in zip(own, again, strict=True)) / len(rows),
        "equal, base": sum(a == b for a, b in zip(base, bare, strict=True)) / len(rows),
        "patch and base differ": sum(a != b for a, b in zip(own, base, strict=True)) / len(rows),
        "one": round(one, 2),
        "many": round(many, 2),
    }
    print(f"vLLM {version}, {len(rows)} questions: {figures}", flush=True)
    if not options.small:
        Study("vllm_server").add(f"vLLM {version}, {len(rows)} questions", figures)


if __name__ == "__main__":
    main()
