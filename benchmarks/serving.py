"""Is a server that is asked by many at once faster than the same server asked by one, with the same answers?

    python benchmarks/serving.py            # 64 requests at once, 8 patches; writes benchmarks/results/serving.json
    python benchmarks/serving.py --small    # 8 requests; writes nothing

`pave serve` runs in a process of its own, with eight patches, and every request is about a clip of its own. Of the
embedded base, with the shipped patches under several names: `new` are clips that the server has not seen, so that
decoding, the vision tower and encoders are part of it; `again` the same clips with another patch of the same senses;
`told` the same with a question whose answer is a list, not one word; `further` a second question of each dialogue.
Of a random base of 44 million parameters with random patches: `sentences`, second questions whose answers have 32
tokens. `one`: requests one after the other; `many`: all at once. `gain`: seconds of `one` over those of `many`.
`equal`: the share of answers, but those to `new`, that are the same in both ways. Then, of the second question of a
dialogue about a clip that is known: milliseconds to the first text of a stream over HTTP and of `chat.stream` in
Python, in turn; `ratio` is the median over the rounds.
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
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "parts"))
import chat
from patched import hears
from study import Study

import pave
from pave.playroom.writer import write_clips

SOURCES = ("audio-playroom", "fast-playroom", "favor-playroom", "fast-on-audio-playroom") * 2
ROOT = Path(__file__).parents[1]
QUESTION = "what colour is the ball when you hear the bell?"
LONG = "what do you see and hear, first to last?"


class Server:
    """A server with eight patches, p0 to p7."""

    def __init__(self, base: str, sources: Sequence[str], requests: int, *more: str) -> None:
        command = [sys.executable, "-m", "pave.cli.main", "serve", base, "--served-model-name", "base"]
        command += ["--port", "0", "--queue", str(requests), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PAVE_ADMIN_KEY": "admin"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2].partition("/")[0])
        for number, source in enumerate(sources):
            self.send("/v1/load_patch", {"source": source, "name": f"p{number}"})

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def send(self, path: str, body: dict) -> dict:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer admin"}
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        found = json.load(reply)
        assert reply.status == 200, found
        return found

    def ask(self, film: str, patch: int, *spoken: str) -> str:
        """The answer to the last of a question, its answer, a question and so on."""
        body = {"model": f"base+p{patch}", "messages": messages_about(film, *spoken), "max_tokens": 32}
        return self.send("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def asked(
    server: Server, films: Sequence[str], shift: int, workers: int, *spoken: str | Sequence[str]
) -> tuple[list[str], float]:
    """Answers about films, a patch each, and the seconds of all. spoken: of all dialogues, or of each."""
    begin, patches = time.perf_counter(), [(number + shift) % 8 for number in range(len(films))]
    said = [repeat(each) if isinstance(each, str) else each for each in spoken]
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(server.ask, films, patches, *said))
    return answers, time.perf_counter() - begin


def first_text(server: Server, film: str, file: Path, rounds: int) -> dict[str, float]:
    """Milliseconds to the first text of a further question."""
    model = pave.load("playroom")
    model.apply_patch(SOURCES[0])
    times: dict[str, list[float]] = {"python": [], "http": []}
    for number in range(rounds + 1):
        with model.chat(file) as chat:
            answer = chat.ask(LONG)
            begin = time.perf_counter()
            next(iter(chat.stream(QUESTION)))
            times["python"] += [time.perf_counter() - begin] if number else []  # the first round warms up
        server.ask(film, 0, LONG)
        body = {"model": "base+p0", "messages": messages_about(film, LONG, answer, QUESTION), "stream": True}
        sent = json.dumps(body).encode()
        begin = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", server.port, timeout=600)
        connection.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        while not json.loads(reply.readline()[6:])["choices"][0]["delta"].get("content"):
            reply.readline()  # the empty line between events
        times["http"] += [time.perf_counter() - begin] if number else []
        connection.close()
    ratio = statistics.median(a / b for a, b in zip(times["http"], times["python"], strict=True))
    shown = {f"milliseconds, {name}": round(statistics.median(each) * 1000, 1) for name, each in times.items()}
    return {**shown, "ratio": round(ratio, 2), "rounds": rounds}


def messages_about(film: str, *spoken: str) -> list[dict]:
    return said({"type": "video_url", "video_url": {"url": film}}, *spoken)


def said(film: dict, *spoken: str) -> list[dict]:
    """A dialogue about a film: a question, its answer, a question and so on."""
    rest = [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(spoken[1:])]
    return [{"role": "user", "content": [film, {"type": "text", "text": spoken[0]}]}, *rest]


def middle(folder: Path) -> tuple[str, list[str]]:
    """A random base of middle size with eight random patches, in files."""
    model = chat.middle()
    model.base.save_pretrained(folder / "base")
    model.host.tokenizer.backend_tokenizer.save(str(folder / "base" / "tokenizer.json"))
    (folder / "base" / "pave.json").write_text(json.dumps({"frames": model.host.frames}))
    for number in range(8):
        hears(model, f"p{number}")
        model.export(f"p{number}").save(folder / f"p{number}.safetensors")
    return str(folder / "base"), [str(folder / f"p{number}.safetensors") for number in range(8)]


def gain(one: float, many: float) -> dict[str, float]:
    return {"one": round(one, 2), "many": round(many, 2), "gain": round(one / many, 2)}


def compared(
    server: Server, films: Sequence[str], shift: int, *spoken: str | Sequence[str]
) -> tuple[dict[str, float], list[str], list[bool]]:
    """The same requests one after the other and all at once: figures, answers, and which are the same."""
    one, alone = asked(server, films, shift, 1, *spoken)
    many, together = asked(server, films, shift, len(films), *spoken)
    return gain(alone, together), many, [a == b for a, b in zip(one, many, strict=True)]


def embedded(films: Sequence[str], files: Sequence[Path], small: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    count = len(films) // 2
    early, second = films[:count], films[count:]
    with Server("playroom", SOURCES, count) as server:
        asked(server, [films[0]] * 8, 0, 1, QUESTION)  # builds the encoders
        _, new_one = asked(server, early[1:], 0, 1, QUESTION)
        _, new_many = asked(server, second, 0, count, QUESTION)
        again, words, equal = compared(server, second, 4, QUESTION)
        told, lists, equal_lists = compared(server, second, 4, LONG)
        further, _, equal_further = compared(server, second, 4, LONG, lists, QUESTION)
        first = first_text(server, films[0], files[0], 3 if small else 31)
    pairs = [*equal, *equal_lists, *equal_further]
    figures = {
        "new": gain(new_one * count / (count - 1), new_many),
        "again": again,
        "told": told,
        "further": further,
        "words_of_told": round(sum(len(each.split()) for each in lists) / count, 1),
        "equal": sum(pairs) / len(pairs),
        "different_answers": len({*words}),
    }
    return figures, first


def random(films: Sequence[str]) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        base, sources = middle(Path(folder))
        with Server(base, sources, len(films)) as server:
            before, _ = asked(server, films, 0, len(films), QUESTION)
            figures, answers, equal = compared(server, films, 0, QUESTION, before, LONG)
    return {"sentences": figures, "equal": sum(equal) / len(equal), "different_answers": len({*answers})}


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of pave serve.")
    parser.add_argument("--small", action="store_true", help="8 requests; writes nothing")
    small = parser.parse_args().small
    count = 8 if small else 64
    with TemporaryDirectory() as folder:
        write_clips(folder, 2 * count, seed=0)
        files = sorted(Path(folder).rglob("*.mp4"))
        films = [f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
        figures, first = embedded(films, files, small)
        print(f"{count} requests, 8 patches: {figures}\nfirst text: {first}", flush=True)
        longer = random(films[:count])
        print(f"random base: {longer}", flush=True)
    if not small:
        study = Study("serving")
        study.add("first text of a further question", first)
        study.add(f"{count} requests, 8 patches", figures)
        study.add(f"{count} requests, 8 patches, random base", longer)


if __name__ == "__main__":
    main()
