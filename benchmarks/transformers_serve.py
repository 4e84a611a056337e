"""Is `pave serve` with eight patches as fast as `transformers serve` with the base alone?

    python benchmarks/transformers_serve.py PYTHON           # writes benchmarks/results/transformers_serve.json
    python benchmarks/transformers_serve.py PYTHON --small   # 4 requests; writes nothing

PYTHON is that of an environment with `transformers[serving]` and what its processors need to read videos:
`pip install "transformers[serving]" torch torchvision torchcodec`, and FFmpeg's libraries.

The base is chat.py's random LLaVA-OneVision of 44 million parameters, 16 key frames of 64 tokens, in float32 on the
CPU. 64 clients ask at once about 64 clips of their own, by name, for answers of 32 tokens: clips that the server has
not seen (`new`), and a second question of each dialogue (`further`). Of `pave serve`, each request names one of eight
patches, or the base (`base`). Both servers run with two threads; one after the other. `requests per minute` are of all
64 together. `ratio`: those of `pave serve` over those of `transformers serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serving import LONG, QUESTION, Server, middle, said
from study import Study

from pave.playroom.writer import write_clips

# Run by the other environment: what its server needs beside the weights.
PROCESSOR = """
import sys
from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
from transformers import PreTrainedTokenizerFast, __version__
import torch
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1] + "/tokenizer.json", eos_token="<|im_end|>")
size = {"height": 224, "width": 224}
images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[224, 224]])
videos = LlavaOnevisionVideoProcessor(size=size, num_frames=16, do_sample_frames=True)
template = (
    "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n{% for m in messages %}<|im_start|>{{ m.role }}\\n"
    "{% for c in m.content if c.type == 'video' %}<video>\\n{% endfor %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content if c.type == 'text' %}{{ c.text }}"
    "{% endfor %}{% endif %}<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
LlavaOnevisionProcessor(
    images, tokenizer, videos, num_image_tokens=256, vision_feature_select_strategy="full", chat_template=template
).save_pretrained(sys.argv[1])
print(__version__, torch.__version__)
"""


@contextmanager
def peer(python: Path, base: str) -> Iterator[int]:
    """`transformers serve`, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python.with_name("transformers")), "serve", base, "--port", str(port), "--device", "cpu"]
    with subprocess.Popen([*command, "--dtype", "float32"], stdout=subprocess.DEVNULL, env=environment()) as process:
        try:
            wait(port)
            yield port
        finally:
            process.terminate()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def wait(port: int) -> None:
    """Until the server answers."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.5)
    raise SystemExit("transformers serve does not answer")


def post(port: int, body: dict[str, Any]) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    found = json.loads(text)
    return found["choices"][0]["message"]["content"]


def measured(ask: Callable[[int, list[dict]], str], urls: Sequence[str]) -> dict[str, float]:
    """Requests per minute, about new clips and further ones."""
    count, found, answers = len(urls), {}, [""] * len(urls)
    for name in ("new", "further"):
        spoken = [(LONG,) if name == "new" else (LONG, answer, QUESTION) for answer in answers]
        films = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
        messages = [said(film, *each) for film, each in zip(films, spoken, strict=True)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(ask, range(count), messages))
        found[name] = round(60 * count / (time.perf_counter() - begin), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="of an environment with transformers[serving] and torchvision")
    parser.add_argument("--requests", type=int, default=64, metavar="N", help="at once; default: 64")
    parser.add_argument("--small", action="store_true", help="4 requests; writes nothing")
    options = parser.parse_args()
    count = 4 if options.small else options.requests
    with TemporaryDirectory() as folder:
        base, sources = middle(Path(folder))
        done = subprocess.run([options.python, "-c", PROCESSOR, base], capture_output=True, text=True, check=True)
        write_clips(Path(folder) / "clips", count + 1, seed=0)
        first, *files = sorted((Path(folder) / "clips").rglob("*.mp4"))
        with peer(options.python, base) as port:

            def of_peer(number: int, messages: list[dict]) -> str:
                body = {"model": base, "messages": messages, "max_tokens": 32, "temperature": 0}
                return post(port, {**body, "chat_template_kwargs": {"num_frames": 16}})

            measured(of_peer, [str(first)])
            theirs = measured(of_peer, [str(file) for file in files])
        print("transformers serve:", theirs, flush=True)
        figures: dict[str, Any] = {"versions of the peer": done.stdout.split(), "transformers serve": theirs}
        for name in ("eight patches", "base"):
            with Server(base, sources, count, "--media-folder", folder) as server:

                def of_ours(number: int, messages: list[dict], name: str = name, port: int = server.port) -> str:
                    model = "base" if name == "base" else f"base+p{number % 8}"
                    return post(port, {"model": model, "messages": messages, "max_tokens": 32})

                measured(of_ours, [first.as_uri()])
                ours = measured(of_ours, [file.as_uri() for file in files])
            figures[f"pave serve, {name}"] = ours
            figures[f"ratio, {name}"] = {each: round(ours[each] / theirs[each], 2) for each in ours}
            print(name, ours, figures[f"ratio, {name}"], flush=True)
    if not options.small:
        Study("transformers_serve").add(f"{count} requests at once", figures)


if __name__ == "__main__":
    main()
