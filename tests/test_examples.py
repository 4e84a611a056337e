"""The examples run as they are. Full training takes most of a minute and is left to `make examples`: `new_sense.py`
trains only two steps here, and of `train_your_own.py` only the recipe is checked."""

import importlib.util
import runpy
import sys
from typing import Any

from huggingface_hub import constants
from places import ROOT

EXAMPLES = ROOT / "examples"


def opened(name: str) -> Any:
    """An example as a module, without running its main."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ask_shows_the_base_the_patched_base_and_the_base_again(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ask.py"])
    runpy.run_path(str(EXAMPLES / "ask.py"), run_name="__main__")
    shown = capsys.readouterr().out.splitlines()
    lines = dict(line.split(maxsplit=1) for line in shown if line.startswith("  "))
    assert lines["removed"].split("  (")[0].strip() == lines["base"].strip()
    assert "patched" in lines


def test_new_sense_runs_from_clips_to_an_answer(tmp_path, capsys):
    opened("new_sense").main(tmp_path, clips=8, overrides=["train.steps=2"])
    lines = capsys.readouterr().out.splitlines()
    assert '"signals": {"imu": "imu/' in lines[1] and "step 2 of 2" in " ".join(lines)
    assert [line.split()[0] for line in lines[-4:-1]] == ["truth", "patched", "base"]
    assert lines[-1].startswith("correct answers to held-out questions: base 0.")


def test_released_passes_every_step_on_stand_ins_and_says_what_it_cannot_do_offline(capsys, monkeypatch):
    module, found = opened("released"), []
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert module.main(["--small", "audio-music-avqa"]) == 0
    for line in capsys.readouterr().out.splitlines():
        found += [tuple(line.split()[:2])] if line.startswith("  ") else []
    steps = ["convert:", "tensors:", "parameters:", "apply:", "forward:"]
    assert found == [("pass", "download:"), ("-", "sha256:"), *(("pass", step) for step in steps)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert module.main([]) == 0
    out = capsys.readouterr().out
    assert "download: not done: " in out and "0 of 6 files were checked, 0 failed" in out
    monkeypatch.setitem(module.LAYERS, "audio-avsd", 3)
    monkeypatch.setattr(module.Small, "rank", 5)
    assert (
        module.main(["--small", "audio-avsd"]) == 1
        and "fail  parameters: rank: 4, expected 5" in capsys.readouterr().out
    )


def test_train_your_own_has_a_valid_recipe(tmp_path):
    module = opened("train_your_own")
    assert module.recipe(tmp_path).data.val is None
    (tmp_path / "val.jsonl").touch()
    assert module.recipe(tmp_path).data.val == tmp_path / "val.jsonl"
