"""Claims about `import pave` and the command: light until something heavy is needed; each error is one useful line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from packaging.requirements import Requirement
from places import ROOT

import pave
from pave.cli import doctor, main
from pave.data_sets import Channel
from pave.playroom.writer import write_film

HEAVY = ("torch", "transformers", "peft", "matplotlib", "rich", "numpy")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def heavy_after(code: str) -> set[str]:
    return set(python(f"import sys\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])").split("\n")[-2].split())


def test_import_and_help_import_nothing_heavy():
    assert heavy_after("import pave; dir(pave)") == set()
    assert (
        heavy_after(
            "sys.argv = ['pave', '--help']\nfrom pave.cli.main import main\ntry: main()\nexcept SystemExit: pass"
        )
        == set()
    )


def test_a_name_that_needs_torch_imports_torch():
    assert "torch" in heavy_after("import pave; pave.Clip")


def test_public_names_are_exactly_those_that_dir_lists_and_each_exists():
    assert dir(pave) == sorted(pave.__all__)
    assert all(getattr(pave, name) is not None for name in pave.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = pave.lode  # type: ignore[attr-defined]


def test_help_lists_exactly_the_commands(command):
    code, out, _ = command("--help")
    verbs = [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()]
    assert code == 0 and " ".join(verbs) == (
        "ask chat serve demo playroom profile encode eval explain curate new-encoder doctor data export patch recipe "
        "weights"
    )


def test_a_mistyped_command_gets_a_suggestion(command):
    code, _, err = command("aks")
    assert code == 2 and "Did you mean 'ask'?" in err


def test_version_is_that_of_the_package(command):
    assert command("--version") == (0, f"pave {pave.__version__}\n", "")


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_an_unknown_patch_is_one_line_with_the_nearest_name(command, verb):
    code, out, err = command("patch", verb, "audio-playrom")
    assert code == (2 if verb == "info" else 1) and out == ""
    assert "did you mean 'audio-playroom'?" in err and len(err.splitlines()) == 1


def test_an_unknown_base_is_one_line(command, tmp_path):
    code, out, err = command("ask", tmp_path / "a.mp4", "what?", "--base", "playrom")
    assert code == 2 and out == "" and err.startswith("pave: ") and len(err.splitlines()) == 1
    assert "'playroom'" in err


def test_an_environment_variable_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PAVE_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["pave", "patch", "info", "nowhere"])
    with pytest.raises(pave.PatchNotFound):
        main.main()


def test_an_error_of_the_system_is_one_line_too(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = command("playroom", tmp_path / "file" / "clips", "--clips", 1)
    assert code == 2 and err.startswith("pave: ") and len(err.splitlines()) == 1


def test_playroom_writes_clips_and_questions_of_the_channel_asked_for(command, tmp_path):
    code, out, _ = command("playroom", tmp_path, "--clips", 3, "--channel", "audio", "--split", "val")
    lines = [json.loads(line) for line in Path(out.strip()).read_text().splitlines()]
    assert code == 0 and lines and {line["channel"] for line in lines} == {"audio"}
    assert {line["video"] for line in lines} <= {f"clips/{clip.name}" for clip in (tmp_path / "clips").glob("*.mp4")}


def test_playroom_runs_again_but_never_overwrites_other_lines(command, tmp_path):
    (tmp_path / "train.jsonl").write_text("mine")
    code, out, err = command("playroom", tmp_path, "--clips", 1)
    assert code == 2 and out == "" and "train.jsonl: exists with other content; choose another folder" in err
    assert (tmp_path / "train.jsonl").read_text() == "mine"
    first = command("playroom", tmp_path / "new", "--clips", 1)
    assert first[0] == 0 and command("playroom", tmp_path / "new", "--clips", 1) == first
    assert command("playroom", tmp_path / "new", "--clips", 2)[0] == 2


def test_playroom_takes_every_channel_of_a_recipe_but_captions(command, tmp_path):
    """Captions are for training only: refused, with the names of all other channels."""
    *asked, caption = get_args(Channel)
    words = [word for name in (*asked, caption) for word in ("--channel", name)]
    code, _, err = command("playroom", tmp_path, *words)
    assert code == 2 and f"'{caption}' is not one of {', '.join(map(repr, asked))}" in err
    assert caption == "caption" and len(asked) == 17 and not list(tmp_path.iterdir())


def test_playroom_refuses_a_split_that_does_not_exist(command, tmp_path):
    code, _, err = command("playroom", tmp_path, "--split", "trian")
    assert code == 2 and "'train', 'val', 'test'" in err and not list(tmp_path.iterdir())


def test_signals_of_the_command_line_reach_the_model(command, tmp_path):
    file = command("playroom", tmp_path, "--clips", 1, "--channel", "views")[1].strip()
    line = json.loads(Path(file).read_text().splitlines()[0])
    clip, cameras = tmp_path / line["video"], [tmp_path / name for name in line["signals"]["views"]]
    words = [word for camera in cameras for word in ("--signal", f"views={camera}")]
    ask = ("ask", clip, "what?", "--patch", "audio-playroom", "--patch", "views-playroom", "--max-new-tokens", 1)
    code, _, err = command(*ask, *words, "--signal", f"audio={clip}")
    assert code == 0 and "views: present" in err and "audio: present" in err
    code, _, err = command(*ask, *words[:2])
    assert code == 2 and "views= has 1 cameras, this encoder needs 2; pass all" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["question=x"], "--signal question=x: question is not a signal; name one that a patch reads"),
        (["clip=x"], "clip is not a signal"),
        (["max_new_tokens=3"], "max_new_tokens is not a signal"),
        (["imu"], "--signal imu: write NAME=PATH"),
        (["audio=a.wav", "audio=b.wav"], "--signal audio= is given 2 times; give one file"),
        (["audio={mute}"], "has no sound (no audio track); give a file with sound"),
        (["audio=gone.wav"], "gone.wav"),
    ],
)
def test_an_invalid_signal_is_one_line(command, tmp_path, options, message):
    write_film(tmp_path / "mute.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    passed = [part for option in options for part in ("--signal", option.format(mute=tmp_path / "mute.mp4"))]
    code, out, err = command("ask", "a.mp4", "what?", *passed)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_a_shrunk_patch_is_valid_and_never_overwrites_its_source(command, tmp_path):
    code, out, _ = command("patch", "shrink", "audio-playroom", tmp_path / "small.safetensors")
    size = (ROOT / "patches" / "audio-playroom" / "patch.safetensors").stat().st_size
    assert code == 0 and f"of the {size:,} of" in out
    assert (tmp_path / "small.safetensors").stat().st_size < 100_000
    assert command("patch", "verify", tmp_path / "small.safetensors")[0] == 0
    small = tmp_path / "small.safetensors"
    whole = small.read_bytes()
    for again in (small, tmp_path / "x" / ".." / "small.safetensors"):
        code, _, err = command("patch", "shrink", small, again)
        assert code == 2 and "is the patch itself" in err and small.read_bytes() == whole
    code, _, err = command("patch", "shrink", "audio-playroom", tmp_path / "no.safetensors", "--bits", 5)
    assert code == 2 and "bits=5" in err and not (tmp_path / "no.safetensors").exists()


# The doctor


def test_doctor_finds_nothing_wrong_here_and_writes_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("doctor")
    assert code == 0, out
    assert "checks passed" in out and "embedded base" in out and not list(tmp_path.iterdir())


def test_doctor_names_the_remedy_for_a_package_that_is_too_old_or_missing():
    old, missing = (doctor._package(Requirement(words)) for words in ("numpy>=99", "no-such-package-at-all>=1"))
    assert not old.ok and "PAVE needs >=99" in old.finding and 'pip install "numpy>=99"' in str(old)
    assert not missing.ok and missing.finding == "not installed"
    assert doctor._package(Requirement("numpy>=1")).ok


@pytest.mark.parametrize(
    ("body", "ok"), [("raise RuntimeError('operator torchvision::nms does not exist')", False), ("", True)]
)
def test_doctor_finds_a_torchvision_that_would_break_transformers(tmp_path, monkeypatch, body, ok):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(body)
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    check = doctor._optional("torchvision")
    assert check.ok is ok
    assert ok or ("nms does not exist" in check.finding and "pip uninstall torchvision" in str(check))
