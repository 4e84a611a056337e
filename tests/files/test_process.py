"""The pool of worker processes: which workers are lent again, which are not, and how long a start may take."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pave.errors import MediaError
from pave.files.process import Pool, Stopped

# Replies with its process id, after the requested seconds.
ECHO = """
import os, time
from pave.files.process import answering
def handle(request):
    time.sleep(request.get("sleep", 0))
    yield {"number": os.getpid(), "path": request["path"], "variable": os.environ.get("ECHO", "")}, {}
def serve():
    answering(handle)
"""
LEFT, RIGHT = {"path": "left"}, {"path": "right"}


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    (tmp_path / "echo_worker.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    pool = Pool("echo_worker")
    yield pool
    pool.clear()


def test_a_worker_is_lent_again_only_for_the_setup_it_was_started_with(pool: Pool):
    first = pool.lend(LEFT, 60, ECHO="yes")
    assert (first.answer["path"], first.answer["variable"]) == ("left", "yes")
    other = pool.lend(LEFT, 60)
    assert other is not first, "the first one was not given back"
    pool.give_back(first)
    again = pool.lend({"path": "left"}, 60)
    assert again is first and again.call(RIGHT, 60)[0]["number"] == first.answer["number"]
    pool.give_back(again)
    right, process = pool.lend(RIGHT, 60), first.process
    assert right.answer["path"] == "right" and right is not first
    del first, again
    assert process.poll() is not None, "a worker with another setup is ended"


def test_a_worker_that_died_while_it_was_idle_is_forgotten(pool: Pool):
    dead = pool.lend(LEFT, 60)
    pool.give_back(dead)
    dead.process.kill()
    dead.process.wait()
    assert pool.lend(LEFT, 60) is not dead


def test_a_forked_child_gets_no_worker_of_its_parent(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    worker = pool.lend()
    pool.give_back(worker)
    monkeypatch.setattr(os, "getpid", lambda: worker.owner + 1)
    assert pool.lend() is not worker


def test_clear_ends_idle_workers(pool: Pool):
    worker = pool.lend()
    process = worker.process
    pool.give_back(worker)
    del worker
    assert process.poll() is None
    pool.clear()
    assert process.poll() is not None


def test_a_start_is_limited_in_time_and_leaves_nothing_behind(pool: Pool):
    with pytest.raises(Stopped, match="killed"):
        pool.lend({"path": "left", "sleep": 60}, 0.2)
    assert pool.lend(LEFT, 60).answer["path"] == "left"


def test_a_module_that_does_not_serve_is_named():
    with pytest.raises(MediaError, match=r"the worker process of pave.nowhere did not start .*; run `pave doctor`"):
        Pool("pave.nowhere").lend()


def test_a_worker_that_is_dropped_leaves_no_open_pipe(pool: Pool) -> None:
    worker = pool.lend()
    process = worker.process
    del worker
    gc.collect()
    assert process.stdin and process.stdout
    assert process.poll() is not None and process.stdin.closed and process.stdout.closed
