"""Does a server survive ten minutes of clients as they are: many, impatient, sending broken media and broken JSON?

    python benchmarks/load.py                 # 600 s; writes benchmarks/results/load.json
    python benchmarks/load.py --replicas 2    # on Ray Serve, and half way one replica is killed
    python benchmarks/load.py --small         # 20 s; writes nothing

`pave serve playroom` runs in a process of its own. First each question is asked alone: these are the right answers.
Then sixteen clients at once draw what they do: ask, with a stream or without; leave in the middle; send media that no
decoder reads, or a body that is no JSON; name a patch that is not there. Meanwhile one patch is loaded and unloaded all
the time, under one name with two contents. An answer is wrong if it differs from that asked alone (for the patch that
changes: from both). A refusal has a reason if it is in OpenAI's error form, with a message. `lost` are the answers of
a replica that was killed: the client is told, by a status or by the last event of the stream.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from study import Study

from pave.playroom.writer import write_clips

ROOT = Path(__file__).parents[1]
PATCHES = ("audio-playroom", "fast-playroom", "favor-playroom")
CHANGING = ("audio-playroom", "fast-playroom")  # both under the name `changing`
QUESTIONS = ("what sound do you hear?", "what do you see and hear, first to last?")
CLIENTS = 16
SHARES = {"ask": 6, "stream": 3, "changing": 2, "leave": 4, "broken media": 2, "broken JSON": 2, "unknown patch": 1}
LOST = "replica_lost"  # the code of its error
EXPECTED = {"broken media": 400, "broken JSON": 400, "unknown patch": 404}  # the status of a refusal


class Server:
    """The process, and requests to it."""

    def __init__(self, replicas: int = 0) -> None:
        command = [sys.executable, "-m", "pave.cli.main", "serve", "playroom", "--port", "0", "--queue", "12"]
        command += [f"--patch={patch}" for patch in PATCHES]
        command += ["--engine", "ray", "--replicas", str(replicas)] if replicas else []
        # By default Ray's processes have a low priority, which is slow beside other work.
        own = {"PYTHONPATH": str(ROOT), "PAVE_ADMIN_KEY": "admin", "RAY_worker_niceness": "0"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **own}
        )
        assert self.process.stdout is not None
        told = next(line for line in self.process.stdout if "http://" in line)
        self.port = int(told.rpartition(":")[2].partition("/")[0])
        self.watched = next(iter(self.replicas()), self.process.pid)  # whose memory and open files are measured

    def send(self, path: str, body: Any = None, key: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection.request("GET" if data is None else "POST", path, data, headers)
        reply = connection.getresponse()
        found = reply.status, dict(reply.getheaders()), reply.read()
        connection.close()
        return found

    def replicas(self) -> list[int]:
        """The processes of replicas, by Ray's names for them."""
        done = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        above = {pid: parent for pid, parent, _ in rows}
        named = [pid for pid, _, name in rows if name.startswith("ray::ServeReplica:pave:Replica")]
        return sorted(int(pid) for pid in named if above.get(above[pid]) == str(self.process.pid))  # a raylet between

    def figures(self) -> dict[str, float]:
        """Its metrics without labels, or with the replica's name alone: sums over replicas."""
        found = dict[str, float]()
        for family in text_string_to_metric_families(self.send("/metrics")[2].decode()):
            for sample in family.samples:
                if sample.labels.keys() <= {"replica"}:
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.watched}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.watched}/fd"))


def body_of(film: str, patch: str, question: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": film}}, {"type": "text", "text": question}]
    model = f"playroom+{patch}" if patch else "playroom"
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def text_of(stream: bytes) -> str:
    """The text of an event stream; "" for one that ended with an error or not at all."""
    events = events_of(stream)
    if not events or events[-1] != "[DONE]":
        return ""
    pieces = [json.loads(event) for event in events[:-1]]
    return "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece.get("choices", []))


def events_of(stream: bytes) -> list[str]:
    return [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]


def lost(stream: bytes) -> bool:
    """Whether an event stream ends with the error that its replica has died."""
    events = events_of(stream)
    return (
        bool(events) and json.loads(events[-1] if events[-1] != "[DONE]" else "{}").get("error", {}).get("code") == LOST
    )


@dataclass
class Load:
    """What happens to a server, and what came of it."""

    server: Server
    films: list[str]
    alone: dict[tuple[int, str, str], str]  # film, patch, question -> the answer asked alone
    end: float
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.seen[what] += 1

    def client(self, number: int) -> None:
        rng = Random(number)
        while time.monotonic() < self.end:
            act = rng.choices([*SHARES], [*SHARES.values()])[0]
            try:
                self.leave(rng) if act == "leave" else self.act(act, rng)
            except (OSError, HTTPException) as error:
                self.count(f"connection failed, {act}: {type(error).__name__}")

    def act(self, act: str, rng: Random) -> None:
        film, question = rng.randrange(len(self.films)), rng.choice(QUESTIONS)
        patch = {"changing": "changing", "unknown patch": "nobody"}.get(act) or rng.choice(["", *PATCHES])
        body: Any = body_of(self.films[film], patch, question, stream=act == "stream")
        if act == "broken media":
            body = body_of(self.broken(film, rng), patch, question)
        if act == "broken JSON":
            body = json.dumps(body).encode()[: rng.randrange(1, 400)]
        status, headers, reply = self.server.send("/v1/chat/completions", body)
        if status != 200:
            error = json.loads(reply).get("error", {})
            if error.get("code") == LOST:
                return self.count("lost, with a status")
            self.count("refused with a reason" if error.get("message") else "refused without a reason")
            self.count(f"{act}: {status}")
            wanted = {EXPECTED.get(act, 429), 429, *([404] if act == "changing" else [])}
            if status not in wanted:
                self.count("another status than expected")
            if status == 429:
                time.sleep(min(float(headers.get("retry-after", 1)), 1.0))
            return
        if act in EXPECTED:
            self.count(f"not refused: {act}")
            return
        if act == "stream" and lost(reply):
            return self.count("lost, with the last event of a stream")
        answer = text_of(reply) if act == "stream" else json.loads(reply)["choices"][0]["message"]["content"]
        right = {self.alone[film, name, question] for name in (CHANGING if patch == "changing" else [patch])}
        self.count("answered" if answer in right else "wrong answers")

    def broken(self, film: int, rng: Random) -> str:
        head, _, body = self.films[film].partition(",")
        kind = rng.randrange(5)
        if kind == 0:
            return f"{head},{base64.b64encode(rng.randbytes(3000)).decode()}"
        if kind == 1:
            return f"{head},{body[: rng.randrange(0, 400) // 4 * 4]}"
        return ["http://127.0.0.1/film.mp4", "file:///etc/passwd", f"{head},no base64!"][kind - 2]

    def leave(self, rng: Random) -> None:
        """Send a request, or a part of it, and go, at once or after some bytes of the answer."""
        question = rng.choice(QUESTIONS)
        body = json.dumps(body_of(rng.choice(self.films), rng.choice(PATCHES), question, stream=True)).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=300) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            connection.sendall(body if rng.random() < 0.7 else body[: rng.randrange(len(body))])
            if (wait := rng.random()) < 0.5:
                time.sleep(wait)
            else:
                connection.settimeout(3 * wait)
                with suppress(TimeoutError):
                    connection.recv(rng.randrange(1, 2000))
        self.count("left")

    def swap(self) -> None:
        """One name, loaded with two contents by turns."""
        sources = [*CHANGING]
        while time.monotonic() < self.end:
            for path, body in (
                ("/v1/load_patch", {"source": sources[0], "name": "changing"}),
                ("/v1/unload_patch", {"name": "changing"}),
            ):
                status, _, reply = self.server.send(path, body, "admin")
                self.count("patch loaded or unloaded" if status == 200 else f"swap failed: {reply.decode()[:200]}")
                time.sleep(0.5)
            sources.reverse()


def right_answers(server: Server, films: list[str]) -> Iterator[tuple[tuple[int, str, str], str]]:
    for number, film in enumerate(films):
        for patch in ("", *PATCHES):
            for question in QUESTIONS:
                status, _, reply = server.send("/v1/chat/completions", body_of(film, patch, question))
                assert status == 200, reply
                yield (number, patch, question), json.loads(reply)["choices"][0]["message"]["content"]


def measure(server: Server, seconds: float, clips: int, folder: Path) -> dict[str, Any]:
    write_clips(folder, clips, seed=0)
    files = sorted(folder.rglob("*.mp4"))
    films = [f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
    load = Load(server, films, dict(right_answers(server, films)), time.monotonic() + seconds)
    threads = [threading.Thread(target=load.client, args=[number]) for number in range(CLIENTS)]
    threads += [threading.Thread(target=load.swap)]
    files_before, sizes, replicas = server.files(), list[float](), server.replicas()
    kill = time.monotonic() + seconds / 2
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sizes.append(server.megabytes())
        time.sleep(min(2.0, seconds / 20))
        if replicas and time.monotonic() > kill and server.replicas() == replicas:
            os.kill(replicas[-1], signal.SIGKILL)  # the first one is watched
            load.count("replicas killed")
    limit = time.monotonic() + 60
    while (now := server.figures())["pave_running"] + now["pave_waiting"] and time.monotonic() < limit:
        time.sleep(0.2)
    quarter = len(sizes) // 4
    figures = {
        "seconds": seconds,
        "clients": CLIENTS,
        **dict(sorted(load.seen.items())),
        "wrong answers": load.seen["wrong answers"],
        "refused without a reason": load.seen["refused without a reason"],
        "sessions left": now["pave_running"] + now["pave_waiting"],
        "cancelled, by the server's count": now["pave_cancelled_total"],
        "open files before and after": [files_before, server.files()],
        "megabytes, second quarter": round(mean(sizes[quarter : 2 * quarter]), 1),
        "megabytes, last quarter": round(mean(sizes[-quarter:]), 1),
    }
    if replicas:
        figures["replicas at the end"] = len(server.replicas())
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    return {**figures, "exit": server.process.wait(120), "seconds to stop": round(time.monotonic() - begin, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="20 s; writes nothing")
    parser.add_argument("--replicas", type=int, default=0, metavar="N", help="on Ray Serve; default: one process")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        server = Server(given.replicas)
        try:
            figures = measure(server, 20 if given.small else 600, 4 if given.small else 12, Path(folder))
        finally:
            server.process.terminate()  # a kill would leave the processes of Ray
            server.process.wait(120)
    print(json.dumps(figures, indent=1), flush=True)
    if not given.small:
        where = f", {given.replicas} replicas" if given.replicas else ""
        Study("load").add(f"{CLIENTS} clients, {figures['seconds']} s{where}", figures)


if __name__ == "__main__":
    main()
