"""Is a server that is asked by many at once faster than the same server asked by one, with the same answers?

    python benchmarks/serving.py            # 64 requests at once, 8 patches; writes benchmarks/results/serving.json
    python benchmarks/serving.py --small    # 16 requests; writes nothing

`pave serve playroom` runs in a process of its own, with eight patches: those shipped, under several names. Every
request is about a clip of its own. `new`: clips that the server has not seen, so that decoding, the vision tower and
encoders are part of it; `again`: the same clips with another patch of the same senses; `told`: the same with a question
whose answer is a list instead of one word. `one`: requests one after the other; `many`: all at once. `gain`: seconds of
`one` over those of `many`. `equal`: the share of answers to `again` and `told` that are the same in both ways. Then, of
the second question of a dialogue about a known clip: milliseconds to the first text of a stream over HTTP and of
`model.stream` in Python, in turn; `ratio` is the median over the rounds.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

from study import Study

import pave
from pave.media.clip import Clip
from pave.playroom.writer import write_clips

SOURCES = ("audio-playroom", "fast-playroom", "favor-playroom", "fast-on-audio-playroom") * 2
ROOT = Path(__file__).parents[1]
QUESTION = "what colour is the ball when you hear the bell?"
LONG = "what do you see and hear, first to last?"


class Server:
    """A server with eight patches, p0 to p7."""

    def __init__(self, requests: int) -> None:
        command = [sys.executable, "-m", "pave.cli.main", "serve", "playroom", "--port", "0", "--queue", str(requests)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PAVE_ADMIN_KEY": "admin"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2].partition("/")[0])
        for number, source in enumerate(SOURCES):
            self.send("/v1/load_patch", {"source": source, "name": f"p{number}"})

    def send(self, path: str, body: dict) -> dict:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer admin"}
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        found = json.load(reply)
        assert reply.status == 200, found
        return found

    def ask(self, film: str, patch: int, question: str) -> str:
        body = {"model": f"playroom+p{patch}", "messages": messages_about(film, question)}
        return self.send("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def asked(
    server: Server, films: Sequence[str], shift: int, workers: int, question: str = QUESTION
) -> tuple[list[str], float]:
    """Answers about films, a patch each, and the seconds of all."""
    begin, patches = time.perf_counter(), [(number + shift) % 8 for number in range(len(films))]
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(server.ask, films, patches, repeat(question)))
    return answers, time.perf_counter() - begin


def first_text(server: Server, film: str, file: Path, rounds: int) -> dict[str, float]:
    """Milliseconds to the first text of a further question."""
    model = pave.load("playroom")
    patch = model.apply_patch(SOURCES[0]).name
    wanted = [*model.export(patch).config.senses.values()]
    clip = model.encode_clip(Clip.read(file, frames=model.host.frames), wanted)
    answer = server.ask(film, 0, LONG)
    messages = [*messages_about(film, LONG), {"role": "assistant", "content": answer}]
    messages += [{"role": "user", "content": QUESTION}]
    body = json.dumps({"model": "playroom+p0", "messages": messages, "stream": True}).encode()

    def python() -> None:
        next(iter(model.stream(clip, QUESTION, history=[(LONG, answer)])))

    def http() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=600)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        while not json.loads(reply.readline()[6:])["choices"][0]["delta"].get("content"):
            reply.readline()  # the empty line between events
        connection.close()

    times: dict[str, list[float]] = {"python": [], "http": []}
    for number in range(rounds + 1):
        for name, call in (("python", python), ("http", http)):
            begin = time.perf_counter()
            call()
            times[name] += [time.perf_counter() - begin] if number else []  # the first round warms up
    ratio = statistics.median(a / b for a, b in zip(times["http"], times["python"], strict=True))
    shown = {f"milliseconds, {name}": round(statistics.median(each) * 1000, 1) for name, each in times.items()}
    return {**shown, "ratio": round(ratio, 2), "rounds": rounds}


def messages_about(film: str, question: str) -> list[dict]:
    content = [{"type": "video_url", "video_url": {"url": film}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def gain(one: float, many: float) -> dict[str, float]:
    return {"one": round(one, 2), "many": round(many, 2), "gain": round(one / many, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of pave serve.")
    parser.add_argument("--small", action="store_true", help="16 requests; writes nothing")
    small = parser.parse_args().small
    count = 16 if small else 64
    folder = TemporaryDirectory()
    write_clips(folder.name, 2 * count, seed=0)
    files = sorted(Path(folder.name).rglob("*.mp4"))
    films = [f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
    early, second = films[:count], films[count : 2 * count]
    server = Server(count)
    try:
        asked(server, films[:1] * 8, 0, 1)  # builds the encoders
        _, new_one = asked(server, early[1:], 0, 1)
        _, new_many = asked(server, second, 0, count)
        one, again_one = asked(server, second, 4, 1)
        many, again_many = asked(server, second, 4, count)
        long_one, told_one = asked(server, second, 4, 1, LONG)
        long_many, told_many = asked(server, second, 4, count, LONG)
        first = first_text(server, films[0], files[0], 3 if small else 31)
    finally:
        server.process.terminate()
        server.process.wait()
        folder.cleanup()
    pairs = list(zip(one + long_one, many + long_many, strict=True))
    figures = {
        "new": gain(new_one * count / (count - 1), new_many),
        "again": gain(again_one, again_many),
        "told": gain(told_one, told_many),
        "words_of_told": round(sum(len(each.split()) for each in long_many) / count, 1),
        "equal": sum(a == b for a, b in pairs) / len(pairs),
        "different_answers": len({*many}),
    }
    print(f"{count} requests, 8 patches: {figures}\nfirst text: {first}", flush=True)
    if not small:
        Study("serving").add("first text of a further question", first)
        Study("serving").add(f"{count} requests, 8 patches", figures)


if __name__ == "__main__":
    main()
