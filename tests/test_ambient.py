"""No result depends on what other code in the process has set: default dtype and device, autocast, inference mode and
the like. Every encoder, an answer and a patch are tried under each."""

from __future__ import annotations

import copy
import locale
import os
import random
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import begin
from listening import EARS, noise
from patched import alike
from places import ROOT
from runs import KEEPING
from scans import room
from seeing import EYES, small_sizes
from small import make_clip
from torch import Tensor

import pave
from pave.ambient import neutral
from pave.encoder import CONSENT, Encoder, known_encoders
from pave.media.clip import Clip
from pave.playroom.world import draw_scene, draw_script
from pave.playroom.writer import write_clip
from pave.training.run import train

SENSOR = torch.sin(torch.arange(400, dtype=torch.float32)).view(100, 4)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def folder(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def other_seeds() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def together(*states: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for state in states:
        stack.enter_context(state)
    return stack


# Several at once, since each run takes seconds; the last is equal up to rounding only.
STATES: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "bfloat16, meta device, autocast, numpy raises, another folder, other seeds": lambda empty: together(
        default_dtype(torch.bfloat16),
        default_device("meta"),
        torch.autocast("cpu", torch.bfloat16),
        np.errstate(all="raise"),
        np.printoptions(precision=1, threshold=2),
        folder(empty),
        other_seeds(),
    ),
    "float64, a device's block, inference mode, deterministic": lambda empty: together(
        default_dtype(torch.float64), torch.device("meta"), torch.inference_mode(), deterministic()
    ),
    "two threads, no_grad": lambda empty: together(threads(2), torch.no_grad()),
}


def seeds() -> tuple[Any, ...]:
    """The state of every global source of random numbers."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state(), random.getstate(), (kind, list(keys), *rest)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small one of every kind, not yet loaded where it has files."""
    kinds = {**EARS, **EYES, "array": lambda _: pave.load_encoder("array", signal="imu", dim=4, rate=100)}
    assert {name.split()[0] for name in kinds} == set(known_encoders())
    with torch.random.fork_rng(devices=[]), small_sizes():
        return {name: make(tmp_path_factory.mktemp(name)) for name, make in kinds.items()}


def afresh(encoder: Any) -> Encoder:
    """The encoder before its first use; a network that was set directly stays."""
    fresh, filed = copy.copy(encoder), getattr(encoder, "weights", "") or getattr(encoder.options, "weights", "")
    for name in list(vars(fresh)):
        if isinstance(getattr(type(encoder), name, None), cached_property) and (filed or name != "network"):
            del vars(fresh)[name]
    return fresh


def results(encoders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Tokens of every encoder; logits and an answer of the embedded base with a patch."""
    monkeypatch.setenv(CONSENT, "1")
    found: dict[str, Any] = {}
    model = pave.load("playroom", dtype="float32")
    for name, encoder in encoders.items():
        with small_sizes():
            side = afresh(encoder).on(model.host).encode(CLIP)
        assert side is not None, name
        found[name] = (side.x, side.times, side.spans, side.valid)
    report = model.apply_patch("audio-playroom")
    inputs = model.prepare([CLIP], ["What do you hear?"])
    found["patch"] = (report.sha256, list(model.applied.module("audio-playroom").state_dict().values()))
    found["logits"] = model.forward(inputs).logits.detach()
    found["answer"] = str(model.ask(CLIP, "What do you hear?", max_new_tokens=4))
    found["shrunk"] = model.export("audio-playroom").shrink().sha256
    return found


def make_everything() -> Clip:
    """Key frames, sound at a foreign rate, dense frames, further cameras, depth and a sensor."""
    dense = torch.arange(8, dtype=torch.float64) / 2
    signals = {"imu": SENSOR, "fast": make_clip(3, 8).frames, "views": [make_clip(4, 8)], "depth": room(3)}
    signals["fast"] = Clip.from_frames(signals["fast"], dense)
    clip = make_clip(0, 8)
    return Clip.from_frames(clip.frames, clip.times, audio=noise(44_100, 2), rate=44_100, **signals)


CLIP = make_everything()


@pytest.fixture(scope="module")
def plain(encoders: dict[str, Any]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return results(encoders, monkeypatch)


@pytest.mark.parametrize("state", STATES)
def test_no_result_depends_on_the_state_of_the_process(
    state: str, encoders: dict[str, Any], plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with STATES[state](tmp_path):
        before = seeds()
        found = results(encoders, monkeypatch)
        assert alike(seeds(), before), "nothing draws global random numbers"
    off = 1e-4 if "threads" in state else 0
    assert [name for name, expected in plain.items() if not same(found[name], expected, off)] == []


def same(one: Any, other: Any, off: float) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b, off) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor):
        assert not one.is_inference() and one.dtype == other.dtype and one.device == other.device
        return torch.equal(one, other) if not off else torch.allclose(one, other, rtol=off, atol=off)
    return one == other


def test_other_threads_keep_their_default_dtype(encoders: dict[str, Any]) -> None:
    """torch.set_default_dtype is of the process: while an encoder runs, another thread must not see another one."""
    seen, done = set[torch.dtype](), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(torch.zeros(1).dtype)

    with default_dtype(torch.float64):
        thread = threading.Thread(target=look)
        thread.start()
        afresh(encoders["whisper-speech"]).encode(CLIP)
        done.set()
        thread.join()
    assert seen == {torch.float64}


def test_new_tensors_of_numbers_are_float32_and_others_keep_their_dtype() -> None:
    with default_dtype(torch.float64), neutral():
        made = [torch.zeros(1), torch.tensor([1, 2.0]), torch.full((1,), 0.5), torch.arange(1.5), torch.tensor([])]
        made += [torch.rand(1), torch.hann_window(3), torch.linspace(0, 1, 2), torch.nn.Linear(1, 1).weight]
        assert {each.dtype for each in made} == {torch.float32}
        kept = [torch.tensor(np.zeros(1)), torch.as_tensor(np.ones(1)), torch.zeros(1, dtype=torch.float64)]
        kept += [torch.zeros(1).double(), torch.asarray(torch.zeros(1).double()), torch.tensor(np.zeros(1)[0:1])]
        assert {each.dtype for each in kept} == {torch.float64}
        assert {torch.tensor(1).dtype, torch.arange(3).dtype, torch.full((1,), 2).dtype} == {torch.int64}
    assert torch.zeros(1).dtype == torch.float32


def test_training_has_the_same_losses_and_draws_no_random_numbers_of_others(recipe: Callable[..., Any]) -> None:
    """Also where gradients are off: train() needs them itself."""
    plain = train(recipe(*KEEPING, "train.steps=2", "fusion.dropout=0.2", output="plain"))
    states = (default_dtype(torch.bfloat16), default_device("meta"), torch.autocast("cpu"), torch.inference_mode())
    with together(*states):
        before = seeds()
        other = train(recipe(*KEEPING, "train.steps=2", "fusion.dropout=0.2", output="other"))
        assert alike(seeds(), before)
    assert other.metrics["loss"] == plain.metrics["loss"] and other.patch.read_bytes() == plain.patch.read_bytes()


ALONE = """\
import hashlib, locale, sys
from pathlib import Path
locale.setlocale(locale.LC_ALL, "")
import pave
model = pave.load("playroom", dtype="float32")
report = model.apply_patch("audio-playroom")
path = Path(sys.argv[1])
model.export("audio-playroom").save(path / "written.safetensors")
inputs = model.prepare([pave.Clip.read(path / "Ton ı.mp4", frames=8)], ["Ünlü ses?"])
logits = model.forward(inputs).logits.detach()
print(report.sha256, hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def test_no_result_depends_on_locale_encoding_hash_seed_or_folder(tmp_path: Path) -> None:
    """In a process with decimal commas or a dotless i where the machine has them, and with ASCII files elsewhere."""
    write_clip(tmp_path / "Ton ı.mp4", draw_scene(0), draw_script(0), 0)
    (tmp_path / "alone.py").write_text(ALONE, "utf-8")
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    foreign = {"PYTHONHASHSEED": "2", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": foreign_locale()}
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, str(tmp_path / "alone.py"), str(tmp_path)]
    found = subprocess.run(
        command, env={**os.environ, **own, **foreign}, cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    here, err = begin(tmp_path, partial(alone, tmp_path)).communicate()
    assert here == found.stdout != "", err + found.stderr


def alone(folder: Path) -> None:
    """The same in this process as it is."""
    with threads(1):
        sys.argv[1:] = [str(folder)]
        runpy.run_path(str(folder / "alone.py"))


def foreign_locale() -> str:
    for name in ("tr_TR.UTF-8", "de_DE.UTF-8", "de_DE.ISO-8859-1"):
        with suppress(locale.Error):
            before = locale.setlocale(locale.LC_ALL)
            locale.setlocale(locale.LC_ALL, name)
            locale.setlocale(locale.LC_ALL, before)
            return name
    return "C"
