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
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from study import Study

from pave.model.patched import PatchedModel, load
from pave.patch.vllm import export_vllm
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data
from pave.serving.vllm import Front

PATCHES = ("audio-playroom", "fast-playroom", "favor-playroom")
Row = tuple[Path, str, tuple[str, ...]]  # clip, question, patches
START = 900  # seconds in which a server must be ready


@contextmanager
def server(vllm: str, command: str, folder: Path, flags: str) -> Iterator[str]:
    """The address of a server of an exported folder, for the block. flags: further ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [vllm, *shlex.split(command.replace("\\\n", ""))[1:], "--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*words, *shlex.split(flags)], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + START
        while not ready(port):
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"vLLM did not start:\n{(folder / 'server.log').read_text()[-4000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    """Whether a server takes requests."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def asked(front: Front, rows: Sequence[Row], workers: int) -> tuple[Sequence[str], float]:
    """Answers to all questions, and the seconds that they took."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(lambda row: front.ask(row[0], row[1], patches=row[2]), rows))
    return answers, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers through vLLM.")
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="the command of vLLM")
    parser.add_argument("--flags", default="", help="further flags of vllm serve, as '--enforce-eager'")
    parser.add_argument("--url", help="of a server that serves an export of these patches already")
    parser.add_argument("--small", action="store_true", help="4 questions; writes nothing")
    options = parser.parse_args()
    vllm: str = options.vllm or ""
    if not vllm and options.url is None:
        return print("no vllm here: install it in an environment of its own, and pass --vllm PATH")
    model, command = load("playroom", dtype="float32", device="cpu"), ""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, url = Path(name), options.url
        for patch in PATCHES:
            model.apply_patch(patch)
            command = export_vllm(model.export(patch), model.host, folder / "export")
        if url is None:
            url = stack.enter_context(server(vllm, command, folder / "export", options.flags))
        lines = read_data(write_clips(folder / "clips", 4 if options.small else 16, seed=0, split="test"))
        rows = [(line.video, line.question, (PATCHES[i % len(PATCHES)],)) for i, line in enumerate(lines)]
        figures = compared(model, Front(model, url), rows[: 4 if options.small else 32])
    with urlopen(f"{url.removesuffix('/v1')}/version") as reply:
        key = f"vLLM {json.load(reply)['version']}"
    print(f"{key}: {figures}", flush=True)
    if not options.small:
        Study("vllm_server").add(key, figures)


def compared(model: PatchedModel, front: Front, rows: Sequence[Row]) -> dict[str, float]:
    """Answers of a model and through its front."""
    through, one = asked(front, rows, 1)
    again, many = asked(front, rows, len(rows))
    bare, _ = asked(front, [(*row[:2], ()) for row in rows], 1)
    own = [model.ask(clip, question, patches=patches) for clip, question, patches in rows]
    base = [model.ask(clip, question, patches=()) for clip, question, _ in rows]

    def equal(some: Sequence[str], others: Sequence[str]) -> float:
        return sum(a == b for a, b in zip(some, others, strict=True)) / len(rows)

    return {
        "questions": len(rows),
        "equal": equal(own, through),
        "equal, all at once": equal(own, again),
        "equal, base": equal(base, bare),
        "patch and base alike": equal(own, base),
        "one": round(one, 2),
        "many": round(many, 2),
    }


if __name__ == "__main__":
    main()
