"""`pave new-encoder`: a user's encoder, outside the package, works as generated and is found everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

from pave.cli import doctor, main
from pave.cli.new_encoder import write_encoder
from pave.encoder import PLACE, known_encoders, load_encoder, missing
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.recipe import Recipe
from pave.training.run import train

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run `pave new-encoder WORDS` in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pave", "new-encoder", *words])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder of encoders, named by the environment; already on this process's search path."""
    (folder := tmp_path / "mine").mkdir()
    package = import_module("pave.encoders")
    monkeypatch.setenv(PLACE, str(folder))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield folder
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_the_generated_encoder_passes_its_generated_test_when_the_environment_names_its_folder(
    command: Command, tmp_path: Path
) -> None:
    code, out, err = command("heart-rate")
    assert code == 0 and out.split() == ["encoders/heart_rate.py", "encoders/test_heart_rate.py"]
    assert f"{PLACE}={tmp_path / 'encoders'}" in err and "pytest encoders/test_heart_rate.py" in err
    text = "".join((tmp_path / name).read_text() for name in out.split())
    assert "class HeartRateEncoder(Encoder)" in text and not re.search("my.?sense", text, re.IGNORECASE)
    environment = {**os.environ, PLACE: "encoders", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", out.split()[1]],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and "12 passed" in done.stdout, done.stdout + done.stderr


def test_another_process_finds_it_and_can_return_it(own: Path) -> None:
    write_encoder("heart-rate", own)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        encoder = pool.submit(load_encoder, "heart-rate", dim=2).result()
    assert encoder.spec == load_encoder("heart-rate", dim=2).spec
    side = encoder.encode(Clip(signals={"heart_rate": torch.ones(30, 2)}))
    assert side is not None and side.x[:, 0, 0].tolist() == [[1, 1, 0, 0]] * 3


def test_a_patch_is_trained_on_it(own: Path, workshop: Path, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    write_encoder("heart-rate", own)
    np.save(tmp_path / "beats.npy", np.random.default_rng(0).normal(size=(400, 3)))
    lines = [json.loads(line) for line in (workshop / "train.jsonl").read_text().splitlines()]
    signals = {"heart_rate": str(tmp_path / "beats.npy")}
    rows = [line | {"video": str(workshop / line["video"]), "signals": signals} for line in lines]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    senses = "senses={heart_rate: {encoder: heart-rate}}"
    result = train(recipe(senses, f"data.train={tmp_path / 'train.jsonl'}", "train.steps=1"))
    assert result.patch.is_file()


def test_in_a_project_with_a_tests_folder_the_test_goes_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    assert command("heart-rate")[1].split() == ["encoders/heart_rate.py", f"{tmp_path}/tests/test_heart_rate.py"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("Heart", "lowercase letters"),
        ("heart_rate", "lowercase letters"),
        ("2d", "lowercase letters"),
        ("../x", "lowercase letters"),
        ("test-x", "lowercase letters"),
        ("audio", "reserved by PAVE"),
        ("logmel", "an encoder 'logmel' already exists"),
    ],
)
def test_an_invalid_name_is_refused_and_nothing_is_written(
    command: Command, tmp_path: Path, name: str, cause: str
) -> None:
    code, out, err = command(name)
    assert (code, out) == (2, "") and cause in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["heart_rate.py", "test_heart_rate.py"])
def test_existing_files_are_not_overwritten(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years of work")
    code, _, err = command("heart-rate", "--to", ".")
    assert code == 2 and f"{name}: already exists" in err
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "years of work")]


# A user's folders


def test_a_users_encoders_are_known_and_their_tests_are_not(own: Path) -> None:
    before = known_encoders()
    write_encoder("heart-rate", own)
    assert set(known_encoders()) - set(before) == {"heart-rate"}
    assert missing("heart-rate") == "" and "did you mean 'heart-rate'?" in missing("heart-rats")


def test_the_doctor_checks_them_too(own: Path) -> None:
    write_encoder("heart-rate", own)
    assert "heart-rate" in doctor._encoders()
    (own / "broken.py").write_text("import no_such_package")
    with pytest.raises(EncoderError, match=r"'broken' cannot be imported \(ModuleNotFoundError: .*; fix its file"):
        doctor._encoders()
    (own / "broken.py").unlink()
    (own / "empty.py").touch()
    with pytest.raises(EncoderError, match=r"empty\.py: .* build\(\*\*options\), and has none"):
        load_encoder("empty")


def test_two_encoders_of_one_name_are_refused(own: Path) -> None:
    (own / "logmel.py").touch()
    with pytest.raises(EncoderError, match=r"encoders and .*mine both have an encoder 'logmel'; rename"):
        load_encoder("array", signal="imu", dim=1, rate=1)


def test_a_missing_folder_is_an_error(own: Path) -> None:
    own.rmdir()
    with pytest.raises(EncoderError, match=f"{PLACE} lists {own}, which is not a readable folder"):
        known_encoders()
