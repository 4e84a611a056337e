"""Claims about `pave-train`: --dry-run shows what a run does, each error is one line, an interrupted run can resume."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from forked import begin
from places import ROOT
from small import write_line

from pave.cli import train
from pave.recipe import read_recipe
from pave.training.checkpoint import NAME
from pave.training.run import Run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `pave-train WORDS` in this process; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pave-train", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            train.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_prints_its_results_and_can_be_resumed(command: Command, workshop: Path, tmp_path: Path) -> None:
    words = (workshop, f"train.output={tmp_path / 'out'}", f"data.val={workshop / 'train.jsonl'}", "train.steps=2")
    code, out, err = command(*words)
    assert code == 0 and "Traceback" not in err
    patch = tmp_path / "out" / "patch.safetensors"
    assert out.splitlines()[-1] == f"{patch} ({patch.stat().st_size:,} bytes)"
    held_out = json.loads((tmp_path / "out" / "metrics.json").read_text())["held_out"]
    for row in out.splitlines()[1 : 1 + len(held_out)]:
        name, *figures = row.split()
        shown = dict(zip(("base", "patched", "shuffled"), map(float, figures), strict=True))
        assert held_out[name] == pytest.approx(shown, abs=1e-3)
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    written = checkpoint.stat().st_mtime_ns
    code, again, _ = command(*words, "--resume")
    assert code == 0 and again.splitlines()[-1] == out.splitlines()[-1]
    assert checkpoint.stat().st_mtime_ns == written, "no step was left"


def test_each_figure_is_shown_once_where_it_was_measured(command: Command, workshop: Path, tmp_path: Path) -> None:
    """The figures of the finished patch are in the table at the end, and in the record."""
    words = (f"train.output={tmp_path / 'out'}", f"data.val={workshop / 'mixed.jsonl'}", "train.eval_every=2")
    code, out, err = command(workshop, *words)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    record = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert code == 0 and out.startswith("held-out questions")
    head, row = (line.split() for line in err.splitlines() if "step " in line or "2/4 " in line)
    assert head == ["step", "loss", "held-out", "loss", "shuffled", "loss", "retention"]
    second, last = metrics["history"]
    names = ("loss", "held-out", "held-out loss", "shuffled", "shuffled loss", "retention")
    assert row == ["2/4", *(f"{second[name]:.3f}" for name in names)]
    assert re.search(rf"\nsteps  4/4  .*  loss {metrics['loss'][3]:.3f}  waiting \d+%\n", err)
    assert [line["step"] for line in record] == [1, 2, 3, 4, 4] and [record[1], record[4]] == [second, last]
    assert last["held-out"] == round(metrics["held_out"]["all"]["patched"], 6)
    assert last["shuffled"] == round(metrics["held_out"]["all"]["shuffled"], 6)
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_dry_run_shows_the_overrides_and_writes_nothing(
    command: Command, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(workshop)
    words = ("train.steps=7", "senses.audio.options.bands=24", "lora=null", f"data.train={workshop / 'mixed.jsonl'}")
    code, out, _ = command(workshop / "patch.yaml", *words, "--dry-run")
    assert code == 0
    assert "steps: 7\n" in out and "bands: 24\n" in out and "lora: null\n" in out
    assert "about 8 clips" in out
    assert "line 1 as the loss sees it" in out and "2 without sound:" in out and "a step of 3 clips" in out
    assert "'no<|im_end|>'" in out and "17 visual tokens" in out, "what is learned, behind 4 x 4 tokens and a newline"
    assert out.splitlines()[-1] == "ready: 8 clips can be used"
    assert everything(workshop) == before and not list(tmp_path.iterdir())


def flawed(workshop: Path, folder: Path) -> Path:
    """30 lines, of which line 4 is broken, and the clips of lines 7 and 9 are gone and cut short."""
    film = next((workshop / "clips").glob("train-*.mp4")).read_bytes()
    lines = (workshop / "train.jsonl").read_text().splitlines(keepends=True)
    lines = [line.replace("clips/", f"{workshop}/clips/") for line in lines]
    lines = (lines * (-(-30 // len(lines))))[:30]
    (folder / "half.mp4").write_bytes(film[:1000])
    lines[3], lines[6], lines[8] = "{\n", write_line("gone.mp4", "?", "a"), write_line("half.mp4", "?", "a")
    (folder / "flawed.jsonl").write_text("".join(lines))
    return folder / "flawed.jsonl"


def test_dry_run_names_every_flaw_with_its_line_and_the_verdict_comes_last(
    command: Command, workshop: Path, tmp_path: Path
) -> None:
    file = flawed(workshop, tmp_path)
    for more in ([], ["--decode"]):
        code, out, _ = command(
            workshop, f"data.train={workshop / 'mixed.jsonl'}", f"data.val={file}", "--dry-run", *more
        )
        assert code == 0
        assert "  1 broken:\n    flawed.jsonl, line 4: not JSON" in out
        assert f"  1 missing:\n    flawed.jsonl, line 7: {tmp_path / 'gone.mp4'}: no such file\n" in out
        assert f"  1 unreadable:\n    flawed.jsonl, line 9: {tmp_path / 'half.mp4'}: is an MP4 whose index is" in out
        assert re.fullmatch(
            r"ready: \d+ clips can be used; left out: 2 clips and 1 broken record", out.splitlines()[-1]
        )
    code, out, _ = command(workshop, f"data.train={file}", "--dry-run", "--strict")
    assert code == 1 and out.splitlines()[-1].startswith(
        "not ready: 2 clips and 1 broken record cannot be used, and data.strict"
    )
    (tmp_path / "a.jsonl").write_text(write_line("gone.mp4", "?", "a"))
    code, out, _ = command(workshop, f"data.train={tmp_path / 'a.jsonl'}", "--dry-run")
    assert code == 1 and out.splitlines()[-1] == "not ready: no clip can be read"
    assert "--decode is for --dry-run" in refused(command(workshop, "--decode"))


def test_a_flawed_data_set_is_trained_without_its_flaws_or_stops_with_their_lines(
    command: Command, workshop: Path, tmp_path: Path
) -> None:
    file, out = flawed(workshop, tmp_path), tmp_path / "out"
    words = (workshop, f"data.train={file}", f"train.output={out}", "train.steps=1")
    stopped = refused(command(*words, "--strict"))
    assert "2 records cannot be used: flawed.jsonl, line 4: not JSON" in stopped and "line 7: " in stopped
    (tmp_path / "gone.mp4").write_bytes((tmp_path / "half.mp4").read_bytes())
    file.write_text(file.read_text().replace("{\n", "", 1))
    stopped = refused(command(*words, "--strict"))
    assert "flawed.jsonl, line 6: " in stopped and "gone.mp4: is an MP4 whose index" in stopped
    code, printed, err = command(*words[:1], f"data.train={flawed(workshop, tmp_path)}", *words[2:])
    listed = [json.loads(line) for line in (out / "features" / "quarantine.jsonl").read_text().splitlines()]
    assert code == 0 and [each.get("records", each.get("record")) for each in listed] == [
        "flawed.jsonl, line 4",
        ["flawed.jsonl, line 7"],
        ["flawed.jsonl, line 9"],
    ]
    assert "left out: flawed.jsonl, line 4: not JSON" in err and "unreadable: flawed.jsonl, line 9: " in err
    assert f"left out: 1 broken record and 2 unreadable clips; see {out}/features/quarantine.jsonl" in printed


def test_damaged_clips_are_named_at_every_run(command: Command, workshop: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures, sound = noise.integers(0, 255, (20, 64, 64, 3), np.uint8), noise.uniform(-0.5, 0.5, 96_000)
    whole = write_clip(tmp_path / "a.mp4", pictures, 10, sound, container_options={"movflags": "faststart"})
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "a.jsonl").write_text(write_line("half.mp4", "?", "a") + write_line("a.mp4", "?", "b"))
    words = (workshop, f"data.train={tmp_path / 'a.jsonl'}", f"train.output={tmp_path / 'out'}", "train.steps=1")
    for more in ("data.timeout=600", "--resume"):  # the second from cached features
        code, _, err = command(*words, more)
        assert code == 0 and any(line.startswith("warning: half.mp4: cut short") for line in err.splitlines()), err
        (told,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"].items()
        assert told[0].endswith("half.mp4") and told[1][0].startswith("cut short")
    code, _, err = command(*words, "data.timeout=never")
    assert code == 2 and "data.timeout" in err


def test_unread_signals_and_missing_senses_are_reported(command: Command, workshop: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.zeros((40, 2), np.float32))
    clips = sorted((workshop / "clips").glob("train-*.mp4"))[:4]
    lines = [write_line(str(clip), "?", "a", signals={"imuu": "1.npy"}) for clip in clips[:3]]
    (tmp_path / "a.jsonl").write_text("".join(lines) + write_line(str(clips[3]), "?", "a", signals={"imu": "1.npy"}))
    imu = "senses={imu: {encoder: array, options: {signal: imu, dim: 2, rate: 10}}}"
    words = (workshop, imu, f"data.train={tmp_path / 'a.jsonl'}", f"train.output={tmp_path / 'out'}", "train.steps=1")
    typo = "3 of 4 clips have a signal 'imuu', which no sense reads; did you mean 'imu'?"
    assert f"\n{typo}\n" in command(*words, "--dry-run")[1]
    code, _, err = command(*words)
    assert code == 0 and {typo, "3 of 4 clips have no imu (absent: the clip has no imu)"} <= set(err.splitlines())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["absent"] == {"imu": 3}
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert "nothing to learn from; 3 of 3 clips have a signal 'imuu'" in refused(
        command(*words, f"train.output={tmp_path / 'typo'}")
    )


def test_a_name_of_the_catalogue_is_a_recipe(command: Command, workshop: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ("audio-playroom", f"base={workshop / 'base'}", f"train.output={output}")
    code, out, _ = command(*words, "--dry-run")
    assert code == 0 and out.startswith("name: audio-playroom\n") and "generated when training starts" in out
    assert not output.exists()


def test_smoke_runs_everything_and_writes_nothing(
    command: Command, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(workshop)
    code, out, _ = command("audio-playroom", f"base={workshop / 'base'}", "--smoke")
    assert code == 0 and "saved and loaded: logits equal" in out
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == ["step 1", "step 2"]
    assert everything(workshop) == before and not list(tmp_path.iterdir())


def test_the_output_of_a_run_is_never_overwritten(command: Command, workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (f"train.output={out}", "train.steps=2")
    assert command(workshop, *words)[0] == 0
    before = {file: file.read_bytes() for file in out.glob("*.*")}
    message = f"{out} holds a checkpoint of step 2; go on with --resume, give another train.output, or delete it"
    assert message in refused(command(workshop, *words, "base=nothing/here")), "before the base is looked for"
    assert "another recipe" in refused(command(workshop, *words, "lora.r=2", "--resume"))
    assert len(before) == 5 and {file: file.read_bytes() for file in out.glob("*.*")} == before
    assert command(workshop, *words, "--smoke")[0] == 0 and command(workshop, *words, "--dry-run")[0] == 0
    (out / NAME).write_text("spoiled")
    assert f"{out} holds {NAME}; go on with --resume" in refused(command(workshop, *words))
    (out / NAME).unlink()
    for resume in ([], ["--resume"]):
        assert "holds patch.safetensors and no checkpoint" in refused(command(workshop, *words, *resume))


# Refusals


def refused(answer: tuple[int, str, str]) -> str:
    """The one line of an error, after the progress messages."""
    code, out, err = answer
    *_, last = err.splitlines()
    assert code == 2 and out == "" and last.startswith("pave-train: ") and "Traceback" not in err, (code, out, err)
    return last


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("train.stepps=3", "train.stepps: unknown key; did you mean 'steps'?"),
        ("trian.steps=3", "trian: unknown key; did you mean 'train'?"),
        ("senses.audio.encodr=x", "did you mean 'encoder'?"),
        ("train.steps", "'train.steps' is not key.sub=value"),
        ("train.steps=0", "train.steps=0: "),
        ("train.steps=[", "the value is not YAML"),
        ("name.sub=1", "'name' is a value"),
        ("base=playrom", "did you mean 'playroom'?"),
        ("senses.audio.encoder=logmell", "did you mean 'logmel'?"),
        ("senses.audio.options={bends: 3}", "did you mean 'bands'?"),
        ("data.train=no.jsonl", "no.jsonl: no such file"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_remedy(
    command: Command, workshop: Path, tmp_path: Path, word: str, cause: str
) -> None:
    assert cause in refused(command(workshop, f"train.output={tmp_path / 'out'}", word))
    assert not (tmp_path / "out" / "patch.safetensors").exists()


def test_an_unknown_recipe_is_one_line(command: Command, tmp_path: Path) -> None:
    assert "did you mean 'audio-playroom'?" in refused(command("audio-playrom"))
    assert "recipe not found" in refused(command(tmp_path / "gone.yaml"))
    assert "recipe not found" in refused(command(tmp_path))


def test_exclusive_options_and_a_file_instead_of_a_folder_are_refused(
    command: Command, workshop: Path, tmp_path: Path
) -> None:
    assert "exclude each other" in refused(command(workshop, "--dry-run", "--smoke"))
    (tmp_path / "out").write_text("mine")
    assert f"{tmp_path / 'out'}: is a file; give a folder" in refused(
        command(workshop, f"train.output={tmp_path / 'out'}")
    )
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("word", ["data.train=nope.jsonl", "data.val=nope.jsonl"])
def test_a_missing_data_file_is_reported_before_a_large_base_is_downloaded(
    command: Command, workshop: Path, tmp_path: Path, word: str
) -> None:
    words = (workshop, word, "base=nothing/here", f"train.output={tmp_path / 'out'}")
    for how in ([], ["--dry-run"], ["--smoke"]):
        assert "nope.jsonl: no such file; give a file of questions" in command(*words, *how)[2]


def test_a_broken_line_is_one_line_with_its_number(command: Command, workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(write_line("1.mp4", "?", "a") + "{\n")
    words = (workshop, f"data.train={tmp_path / 'a.jsonl'}", f"train.output={tmp_path / 'out'}")
    assert "a.jsonl, line 2: not JSON" in refused(command(*words))
    assert "a.jsonl, line 2: not JSON" in command(*words, "--dry-run")[2]


# In a separate process


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['pave-train', '--help']\nfrom pave.cli.train import main\ntry: main()\n"
        "except SystemExit: pass\nprint(*[m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "--resume" in done.stdout and done.stdout.splitlines()[-1] == "", done.stdout + done.stderr


def test_ctrl_c_leaves_the_last_good_checkpoint_and_says_how_to_resume(workshop: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [f"train.output={output}", "train.steps=100000", "train.checkpoint_every=1"]
    with begin(tmp_path, ["pave-train", workshop, *words]) as started:
        while not (output / NAME).exists() and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate()
    assert started.returncode == 130, err
    assert re.search(rf"the last good checkpoint, of step \d+, is in {output}, and --resume goes on from it", err)
    assert "Traceback" not in err
    assert not [file for file in output.iterdir() if file.name.startswith(".")], "no half-written file"
    run = Run.begin(read_recipe(workshop, words))
    run.resume()
    assert run.kept == len(run.losses) >= 1
