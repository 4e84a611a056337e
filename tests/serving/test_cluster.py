"""`pave serve BASE --engine ray` with two replicas: patches that both have or none, one that is killed, and the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from places import ROOT
from prometheus_client.parser import text_string_to_metric_families
from served import about, send
from small import awaken, make_config, write_base
from transformers import PreTrainedTokenizerFast

import pave
from pave.serving.metrics import Merged

FILM = ROOT / "examples" / "room.mp4"
QUESTION = "What do you hear?"
LONG = {"max_tokens": 900, "stream": True}  # the answers of this base do not end by themselves
PATCHES = ("ears", "more", "late")
ADMIN = {"authorization": "Bearer admin"}


def test_the_figures_of_servers_stay_apart():
    text = '# HELP pave_x Things\n# TYPE pave_x counter\npave_x_total{{path="/"}} {}.0\n'
    found = Merged({name: text.format(i) for i, name in enumerate("ab")}).text().decode()
    assert found.count("# TYPE pave_x_total counter") == 1
    assert 'pave_x_total{path="/",replica="a"} 0.0' in found and 'pave_x_total{path="/",replica="b"} 1.0' in found


@pytest.mark.parametrize("words", [("--replicas", 2), ("--engine", "ray", "--replicas", 3, "--max-replicas", 2)])
def test_numbers_of_replicas_that_cannot_be_are_refused(command, words):
    code, _, err = command("serve", "playroom", *words)
    assert code == 2 and "replicas" in err


def test_serve_run_builds_the_application_before_it_has_joined_a_cluster():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from pave.serving.cluster import app

    assert not ray.is_initialized()
    app({"base": "playroom", "patches": "audio-playroom,fast-playroom", "gpus": 0})
    with pytest.raises(ValueError, match="replica"):
        app({"replica": 2})
    assert not ray.is_initialized()


@dataclass
class Ending:
    """In place of Ray's handle of the replicas: what each answer sends before its replica dies, or it merely ends."""

    answers: list[list[dict[str, Any] | type[Exception]]]

    def options(self, stream: bool) -> Any:
        return SimpleNamespace(answer=SimpleNamespace(remote=lambda *_: Messages(self.answers.pop(0))))


@dataclass
class Messages:
    left: list[dict[str, Any] | type[Exception]]

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self.left:
            raise StopAsyncIteration
        if isinstance(message := self.left.pop(0), dict):
            return message
        raise message

    def cancel(self) -> None: ...


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize("dies", [True, False])
def test_no_answer_ends_without_its_end(kind: str, sent: int, dies: bool):
    """Its replica dies after so many messages. An answer of which nothing has been sent on is asked again."""
    pytest.importorskip("ray.serve")
    from ray.exceptions import RayActorError  # pyright: ignore[reportMissingImports]
    from starlette.testclient import TestClient

    from pave.serving.cluster import Front
    from pave.serving.settings import Settings

    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]}
    parts = [{"type": "http.response.body", "body": body, "more_body": body == b"{"} for body in (b"{", b"}")]
    whole = [start, *parts]
    replicas = Ending([[*whole[:sent], *([RayActorError] if dies else [])], [*whole]])
    front = Front(replicas, Settings("tiny"))
    front._held = 0, {}
    with TestClient(front.__serve_build_asgi_app__(), base_url="http://localhost") as client:
        text = client.get("/v1/models").text
    assert (text == "{}") == (sent < 2) == (not replicas.answers)
    if sent == 2:  # of a whole answer, the connection ends before its length
        assert ("replica_lost" in text) == (kind == "text/event-stream")


@dataclass
class Cluster:
    port: int
    process: subprocess.Popen[str]
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=600)

    def ask(self, patch: str = "", **options: Any) -> Any:
        model = f"tiny+{patch}" if patch else "tiny"
        messages: Any = [about(f"file://{FILM}", QUESTION)]
        return self.client.chat.completions.create(model=model, messages=messages, **{"max_tokens": 12, **options})

    def answer(self, patch: str = "") -> str:
        return self.ask(patch).choices[0].message.content

    def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        reply = send(self.port, path, body, **headers)
        return reply.status, json.load(reply)

    def figure(self, name: str, **labels: str) -> Counter[str]:
        """A figure of each replica that is running."""
        found = Counter[str]()
        while (reply := send(self.port, "/metrics")).status == 503:  # a replica is slow
            pass
        for family in text_string_to_metric_families(reply.read().decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found[sample.labels["replica"]] += int(sample.value)
        return found

    def answered(self) -> Counter[str]:
        found = self.figure("pave_requests_total", path="/v1/chat/completions", status="200")
        return Counter({name: count for name, count in found.items() if name != "front" and count})

    def replicas(self) -> set[int]:
        """The processes of replicas."""
        below = processes_below(self.process.pid)
        return {pid for pid, name in below.items() if name.startswith("ray::") and "ServeReplica:pave:Replica" in name}

    def until(self, wanted: Callable[[], Any]) -> None:
        end = time.monotonic() + 600
        while not wanted():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


def processes() -> dict[int, tuple[int, str]]:
    """The processes of this machine that have not ended: the parent of each, and its name."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    return {int(pid): (int(parent), name) for pid, parent, state, name in rows if not state.startswith("Z")}


def processes_below(parent: int) -> dict[int, str]:
    """The processes that a process has started, and those that these have; the name of each."""
    there, found, above = processes(), dict[int, str](), {parent}
    while above := {pid for pid, (of, _) in there.items() if of in above}:
        found |= {pid: there[pid][1] for pid in above}
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """`tiny/`, a base whose answers do not end by themselves, and its sound patches, as PATCHES.safetensors."""
    folder = tmp_path_factory.mktemp("house")
    model = pave.load(write_base(folder / "tiny", tokenizer))
    head: Any = model.base.get_output_embeddings()
    head.weight.data[model.host.stops] = 0
    model.base.save_pretrained(folder / "tiny")
    model = pave.load(folder / "tiny")
    for seed, name in enumerate(PATCHES):
        model.attach(name, make_config(model.host, name), trainable=False)
        awaken(model, name, seed=seed)
        model.export(name).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def cluster(house: Path) -> Iterator[Cluster]:
    pytest.importorskip("ray.serve", reason='pip install "pave[serve,serve-ray]"')
    log = house / "log"
    command = [sys.executable, "-m", "pave.cli.main", "serve", str(house / "tiny"), "--port", "0", "--engine", "ray"]
    command += [f"--patch={house / name}.safetensors" for name in PATCHES[:2]]
    command += ["--replicas", "2", "--queue", "16", "--media-folder", str(FILM.parent)]
    # By default Ray runs at low priority, which is slow beside other tests, and sends usage statistics.
    settings = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    variables = {**os.environ, **settings, "PYTHONPATH": str(ROOT), "PAVE_ADMIN_KEY": "admin"}
    with open(log, "w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables, cwd=ROOT)
    assert running.stdout is not None
    said = running.stdout.readline()
    assert said.startswith("serving tiny at http://127.0.0.1:"), log.read_text()
    yield Cluster(int(said.rpartition(":")[2].partition("/")[0]), running, log)
    running.terminate()  # a kill would leave the processes of Ray
    assert running.wait(300) == 0, log.read_text()


def test_both_replicas_answer_as_one_process_whole_and_in_pieces(cluster: Cluster, house: Path):
    model = pave.load(house / "tiny")
    model.apply_patch(house / "ears.safetensors")
    alone = {
        name: model.ask(FILM, QUESTION, patches=[name] if name else [], max_new_tokens=12) for name in ("", "ears")
    }
    assert len({*alone.values()}) == 2
    with ThreadPoolExecutor(8) as pool:
        for name, answer in alone.items():
            assert {*pool.map(cluster.answer, [name] * 8)} == {answer}
    chunks = list(cluster.ask("ears", stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == alone["ears"]
    assert len(cluster.answered()) == 2
    assert cluster.send("/ready") == (200, {"status": "ready"})


def test_errors_are_those_of_one_process(cluster: Cluster):
    assert cluster.send("/v1/chat/completions", {"model": "none", "messages": []})[0] == 400
    assert cluster.send("/v1/chat/completions", {}, host="evil.example")[1]["error"]["code"] == "forbidden_host"
    assert cluster.send("/v1/models/none")[1]["error"]["code"] == "model_not_found"
    assert cluster.send("/v1/load_patch", {"source": "x"})[1]["error"]["code"] == "invalid_api_key"
    reply = send(cluster.port, "/v1/models")
    assert [name.lower() for name, _ in reply.getheaders()].count("x-request-id") == 1


def test_a_client_that_leaves_ends_its_generation(cluster: Cluster):
    def left() -> int:
        stream = cluster.ask(**LONG)
        next(iter(stream))
        stream.close()
        return cluster.figure("pave_cancelled_total").total()

    cluster.until(left)  # some answers have ended by then
    cluster.until(lambda: cluster.figure("pave_running").total() == 0)


def models(cluster: Cluster) -> set[str]:
    """The models of all replicas: each request goes to any of them."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: cluster.client.models.list(), range(12)))
    found = {tuple(model.id for model in reply) for reply in replies}
    assert len(found) == 1
    return {*found.pop()}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_patch_that_one_replica_cannot_load_is_on_none(cluster: Cluster, house: Path):
    before, one = models(cluster), min(cluster.replicas())
    patch = house / "late.safetensors"
    root = f"/proc/self/task/{one}/root{patch}"  # a path that only this process has
    status, body = cluster.send("/v1/load_patch", {"source": root}, **ADMIN)
    assert status == 404 and "/proc/self" in body["error"]["message"], body
    assert models(cluster) == before
    assert cluster.send("/v1/load_patch", {"source": str(patch)}, **ADMIN)[0] == 200
    assert models(cluster) == before | {"tiny+late"}
    assert cluster.send("/v1/load_patch", {"source": str(patch)}, **ADMIN)[0] == 400
    assert cluster.send("/v1/unload_patch", {"name": "late"}, **ADMIN)[0] == 200
    assert models(cluster) == before


def test_operators_at_once_both_get_their_patch(cluster: Cluster, house: Path):
    before, names = models(cluster), ("one", "two")
    bodies = [{"source": str(house / "late.safetensors"), "name": name} for name in names]
    with ThreadPoolExecutor(2) as pool:
        assert [each[0] for each in pool.map(lambda body: cluster.send("/v1/load_patch", body, **ADMIN), bodies)] == [
            200
        ] * 2
        assert models(cluster) == before | {"tiny+one", "tiny+two"}
        gone = pool.map(lambda name: cluster.send("/v1/unload_patch", {"name": name}, **ADMIN), names)
        assert [each[0] for each in gone] == [200] * 2
    assert models(cluster) == before


def test_a_patch_in_use_leaves_after_its_answers_also_if_the_operator_left_before(cluster: Cluster):
    before = models(cluster)
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(ended, cluster, "more") for _ in range(6)]
        cluster.until(lambda: cluster.figure("pave_running").total() == 6)
        operator = HTTPConnection("127.0.0.1", cluster.port)
        headers = {"content-type": "application/json", **ADMIN}
        operator.request("POST", "/v1/unload_patch", '{"name": "more"}', headers)
        cluster.until(lambda: cluster.send("/v1/models/tiny+more")[0] == 404)  # it has begun
        operator.close()
        assert cluster.answer("ears")  # others are answered meanwhile
        assert {each.result(600) for each in streams} == {"length"}
    cluster.until(lambda: models(cluster) == before - {"tiny+more"})


def ended(cluster: Cluster, patch: str = "") -> str:
    """How a stream ends."""
    try:
        return [each.choices[0].finish_reason for each in cluster.ask(patch, **LONG)][-1]
    except openai.APIError as error:
        assert error.body["code"] == "replica_lost", error  # type: ignore[index]
        return "lost"


def test_when_a_replica_is_killed_only_answers_that_had_begun_end_with_an_error(cluster: Cluster, house: Path):
    """Whole answers are asked again of the other one. The replica that comes has the patches that were loaded."""
    late = {"source": str(house / "late.safetensors"), "name": "again"}
    assert cluster.send("/v1/load_patch", late, **ADMIN)[0] == 200
    first, stop = cluster.answer("again"), threading.Event()

    def again(ask: Callable[[], str | None]) -> list[str | None]:
        found = []
        while not stop.is_set():
            found.append(ask())
        return found

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(again, lambda: ended(cluster)) for _ in range(6)]
        loads = [pool.submit(again, lambda: cluster.answer("again")) for _ in range(2)]
        cluster.until(lambda: sum(map(bool, cluster.figure("pave_running").values())) == 2)
        old, killed = cluster.answered(), min(cluster.replicas())
        os.kill(killed, signal.SIGKILL)
        cluster.until(lambda: len(cluster.replicas() - {killed}) == 2 and {*cluster.answered()} - {*old})
        stop.set()
        answers = [answer for each in loads for answer in each.result(600)]
        told = Counter(end for each in streams for end in each.result(600))
    assert len(answers) > 4 and {*answers} == {first}
    assert 1 <= told["lost"] <= 6 and told.keys() <= {"lost", "length"}, told


def test_without_any_replica_the_error_says_so(cluster: Cluster):
    running = threading.Event()

    def until_lost() -> None:
        while True:
            for _ in cluster.ask(**LONG):
                running.set()
            running.clear()

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(until_lost)
        while not lost.done():
            if running.wait(1):  # otherwise the request would wait for the replicas that Ray starts
                for each in cluster.replicas():
                    with suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
                time.sleep(1)
        with pytest.raises(openai.APIError, match="ask again"):
            lost.result(600)


def test_told_to_stop_it_ends_what_it_has_begun_and_leaves_no_process(cluster: Cluster):
    """Whoever asks meanwhile is told to ask another server. The last test: afterwards there is no server."""
    below, told = processes_below(cluster.process.pid), Counter[str]()
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(ended, cluster) for _ in range(6)]
        cluster.until(lambda: cluster.figure("pave_running").total() == 6)
        cluster.process.terminate()
        while cluster.process.poll() is None:
            try:
                status, body = cluster.send("/v1/models")
                told[body["error"]["code"] if status == 503 else str(status)] += 1
            except ConnectionError:
                told["refused"] += 1
        assert Counter(each.result(60) for each in streams) == {"length": 6}
    assert cluster.process.returncode == 0, cluster.log.read_text()
    assert told["stopping"] and told.keys() <= {"200", "stopping", "refused"}, told
    assert below
    cluster.until(lambda: not below.keys() & processes().keys())
