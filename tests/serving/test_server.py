"""`pave serve playroom` as a process of its own: the shipped patches, many clients at once, and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import openai
import pytest
from places import ROOT
from served import about, inline, send

import pave

PATCHES = ("audio-playroom", "fast-playroom", "favor-playroom")
FILM = ROOT / "examples" / "room.mp4"
QUESTIONS = ("what colour is the ball when you hear the bell?", "what colour is the ball when you hear the drum?")
ASKED = [
    (names, question) for names in ((), PATCHES[:1], PATCHES[1:2], PATCHES[2:], PATCHES[:2]) for question in QUESTIONS
]


@dataclass
class Process:
    port: int
    running: subprocess.Popen[str]
    log: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="key", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    log = tmp_path_factory.mktemp("server") / "log"
    named = [part for name in PATCHES for part in ("--patch", name)]
    command = [sys.executable, "-m", "pave.cli.main", "serve", "playroom", "--port", "0", *named]
    command += ["--media-folder", str(FILM.parent), "--queue", "32"]
    variables = {**os.environ, "PAVE_API_KEY": "key", "PYTHONPATH": str(ROOT)}
    with open(log, "w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
    assert running.stdout is not None
    said = running.stdout.readline()
    assert said.startswith("serving playroom at http://127.0.0.1:"), log.read_text()
    yield Process(int(said.rpartition(":")[2].partition("/")[0]), running, log)
    running.kill()
    running.wait()


def test_many_at_once_with_patches_of_their_own_are_answered_as_one_by_one(server):
    model = pave.load("playroom")
    for name in PATCHES:
        model.apply_patch(name)
    film = inline(FILM)

    def answer(names: tuple[str, ...], question: str) -> str:
        body = {"model": "+".join(("playroom", *names)), "messages": [about(film, question)]}
        reply = json.load(send(server.port, "/v1/chat/completions", body, authorization="Bearer key"))
        return reply["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: answer(*one), ASKED * 2))
    alone = [str(model.ask(FILM, question, patches=names)) for names, question in ASKED]
    assert answers == alone * 2
    assert len({*alone}) > 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_an_answer_about_a_file_of_the_media_folder(server, tmp_path):
    body = {"model": "playroom+audio-playroom", "messages": [about(f"file://{FILM}", QUESTIONS[0])]}
    (tmp_path / "body").write_text(json.dumps(body))
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer key"]
    done = subprocess.run(["curl", "-sS", url, *headers, "-d", f"@{tmp_path}/body"], capture_output=True, text=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "red", done.stderr


def test_the_log_tells_how_requests_ended_and_not_what_they_said(server):
    ask: Any = server.client().chat.completions.with_raw_response.create
    reply = ask(model="playroom", messages=[about(inline(FILM), QUESTIONS[0])])
    number, end = reply.headers["x-request-id"], time.monotonic() + 60
    while not (lines := [line for line in server.log.read_text().splitlines() if f'"{number}"' in line]):
        assert time.monotonic() < end  # the line is written when the client has its answer already
    assert {"model": "playroom", "tokens": 1, "finish": "stop", "status": 200}.items() <= json.loads(lines[0]).items()
    assert "colour" not in server.log.read_text()
    assert b'pave_requests_total{path="/v1/chat/completions",status="200"}' in send(server.port, "/metrics").read()


def test_a_server_that_is_told_to_stop_answers_what_it_has_and_ends(server):
    with ThreadPoolExecutor(1) as pool:
        body = {"model": "playroom+favor-playroom", "messages": [about(inline(FILM), QUESTIONS[1] + " Tell me.")]}

        def ask() -> Future[HTTPResponse]:
            return pool.submit(send, server.port, "/v1/chat/completions", body, authorization="Bearer key")

        reply = ask()
        while (
            b"pave_waiting 1.0" not in (figures := send(server.port, "/metrics").read())
            and b"pave_running 1.0" not in figures
        ):
            if reply.done():  # between two looks
                reply = ask()
        server.running.send_signal(signal.SIGTERM)
        assert reply.result(60).status == 200
    assert server.running.wait(60) is not None
    with pytest.raises(ConnectionRefusedError):
        send(server.port, "/health")
