"""The examples run as they are printed, each in a process of its own, as a newcomer starts it.

`train_your_own.py` takes most of a minute and is left to `make examples`; its recipe is checked here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(name: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_shows_the_base_the_patch_and_the_base_again():
    lines = dict(line.split(maxsplit=1) for line in output("ask.py").splitlines() if line.startswith("  "))
    assert lines["removed"].split("  (")[0].strip() == lines["base"].strip()
    assert "patched" in lines


def test_new_encoder_hears_on_the_clock_of_the_clip():
    out = output("new_encoder.py")
    assert out.count(" at ") == 8 and "digital silence is a signal: True; no track is none: None" in out


def test_train_your_own_has_a_recipe_without_mistakes(tmp_path):
    spec = importlib.util.spec_from_file_location("train_your_own", EXAMPLES / "train_your_own.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.recipe(tmp_path).data.val is None
    (tmp_path / "val.jsonl").touch()
    assert module.recipe(tmp_path).data.val == tmp_path / "val.jsonl"
