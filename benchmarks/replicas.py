"""Do replicas on Ray Serve come and go with the load, have the same patches, and lose no answers?

    python benchmarks/replicas.py    # about two minutes; writes benchmarks/results/replicas.json

`serve run` starts the server with one replica, and at most two. First each question is asked alone: these are the right
answers. Then eight clients ask without a pause, half of them with a stream, while a patch is loaded and unloaded again
and again. When the second replica answers, one of the two is killed; when that is replaced, all clients but one stop,
until one replica is left. Ray decides within seconds here, by default within 30 (more replicas) and 600 (fewer).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from load import QUESTIONS, ROOT, Server, body_of, text_of
from study import Study

PATCHES = ("", "audio-playroom", "fast-playroom")
CLIENTS = 8
PORT = 18421
SERVE = "from ray.serve.scripts import cli; cli()"  # the command `serve`, of this environment
SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 3,
    "upscale_delay_s": 1,
    "downscale_delay_s": 5,
    "metrics_interval_s": 1,
    "look_back_period_s": 2,
}


class Cluster(Server):
    """The processes of `serve run`, and requests to them."""

    def __init__(self, folder: Path) -> None:
        application = {
            "name": "pave",
            "import_path": "pave.serving:app",
            "args": {"base": "playroom", "replicas": 1, "max_replicas": 2, "gpus": 0},
            "deployments": [{"name": "Replica", "autoscaling_config": SCALING}],
        }
        file = folder / "config.yaml"  # JSON is YAML
        file.write_text(json.dumps({"http_options": {"port": PORT}, "applications": [application]}))
        own = {"PYTHONPATH": str(ROOT), "PAVE_ADMIN_KEY": "admin", "RAY_worker_niceness": "0"}
        command = [sys.executable, "-c", SERVE, "run", str(file)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=null, stderr=null, env={**os.environ, **own})
        self.port = PORT
        until(self.ready)

    def ready(self) -> bool:
        assert self.process.poll() is None, "serve run has ended; run it by hand to see why"
        try:
            return self.send("/ready")[0] == 200
        except OSError:
            return False

    def answering(self) -> set[str]:
        """The replicas that have answered a question, and run."""
        lines = self.send("/metrics")[2].decode().splitlines()
        told = [line for line in lines if line.startswith("pave_requests_total{") and "completions" in line]
        names = {line.partition('replica="')[2].partition('"')[0] for line in told if 'status="200"' in line}
        return names - {"front"}


def until(wanted: Callable[[], Any], seconds: float = 300.0) -> float:
    """Wait until something is the case; the seconds that it took."""
    begin = time.monotonic()
    while not wanted():
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.2)
    return round(time.monotonic() - begin, 1)


def asked(server: Server, film: str, patch: str, question: str, stream: bool) -> str:
    """The answer, or the code of an error."""
    status, _, reply = server.send("/v1/chat/completions", body_of(film, patch, question, stream=stream))
    if stream and status == 200:
        return text_of(reply) or ("replica_lost" if b"replica_lost" in reply else "cut")
    body = json.loads(reply)
    return body["choices"][0]["message"]["content"] if status == 200 else body["error"]["code"]


def measure(server: Cluster, film: str) -> dict[str, Any]:
    questions = [(patch, question) for patch in PATCHES for question in QUESTIONS]
    alone = {each: asked(server, film, *each, False) for each in questions}
    seen, light, idle = Counter[str](), threading.Event(), threading.Event()

    def client(number: int) -> None:
        turn, stream = number, number % 2 == 1
        while not (idle if number == 0 else light).is_set():
            each, turn = questions[turn % len(questions)], turn + 1
            answer = asked(server, film, *each, stream)
            lost = f"{'stream' if stream else 'whole answer'}: {answer}"
            right = answer == alone[each]
            seen["answered" if right else lost if answer in ("replica_lost", "no_replica", "cut") else "wrong"] += 1

    def swap() -> None:
        while not light.is_set():
            for path, body in (
                ("/v1/load_patch", {"source": "favor-playroom", "name": "changing"}),
                ("/v1/unload_patch", {"name": "changing"}),
            ):
                status = server.send(path, body, "admin")[0]
                seen["patch loaded or unloaded" if status == 200 else f"change refused: {status}"] += 1

    threads = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    threads += [threading.Thread(target=swap)]
    for thread in threads:
        thread.start()
    seconds = {"until the second replica answers": until(lambda: len(server.answering()) == 2)}
    both = server.answering()
    os.kill(min(server.replicas()), signal.SIGKILL)
    seconds["until another is there for the one that was killed"] = until(
        lambda: len(server.answering()) == 2 and server.answering() != both
    )
    light.set()
    seconds["of little load until one is left"] = until(lambda: len(server.replicas()) == 1)
    idle.set()
    for thread in threads:
        thread.join()
    lists = {server.send("/v1/models")[2] for _ in range(8)}
    models = [model["id"].partition("+")[2] for model in json.loads(lists.pop())["data"]]
    return {
        **dict(sorted(seen.items())),
        "wrong": seen["wrong"],
        "all replicas have the patches of before": not lists and models == [*PATCHES],
        "seconds": seconds,
    }


def main() -> None:
    film = f"data:video/mp4;base64,{base64.b64encode((ROOT / 'examples' / 'room.mp4').read_bytes()).decode()}"
    with TemporaryDirectory() as folder:
        server = Cluster(Path(folder))
        try:
            figures = measure(server, film)
        finally:
            server.process.send_signal(signal.SIGINT)  # a kill would leave the processes of Ray
            code = server.process.wait(120)
    print(json.dumps({**figures, "exit": code}, indent=1), flush=True)
    Study("replicas").add(f"{CLIENTS} clients, a patch that changes, one replica killed", figures)


if __name__ == "__main__":
    main()
