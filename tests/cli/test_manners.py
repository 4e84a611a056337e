"""Claims about consoles, notebooks and shells: things show themselves in a few lines, and commands speak JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clips import counting_frames
from places import ROOT

from pave.hub.catalogue import list_patches
from pave.media.clip import Clip
from pave.model.answer import Answer
from pave.model.patched import PatchedModel

ROOM = ROOT / "examples" / "room.mp4"
Command = Callable[..., tuple[int, str, str]]


def test_a_model_names_its_base_device_and_patches(playroom: PatchedModel) -> None:
    size = sum(each.numel() for each in playroom.base.parameters())
    expected = f"PatchedModel(playroom: llava_onevision, {size / 1e6:.1f} M parameters, float32 on cpu; no patches)"
    assert repr(playroom) == expected
    report = playroom.apply_patch("audio-playroom", weight=0.5)
    playroom.disable("audio-playroom")
    try:
        assert repr(playroom).endswith("on cpu; audio-playroom (weight 0.5, off))")
        assert repr(report) == str(report) and f"<pre>{str(report)[:9]}" in report._repr_html_()
    finally:
        playroom.remove_patch("audio-playroom")


def test_what_holds_tensors_shows_their_shapes(playroom: PatchedModel) -> None:
    clip = Clip.from_frames(counting_frames(30), imu=(torch.rand(5, 3), torch.arange(5)))
    inputs = playroom.prepare([clip], ["what?"])
    assert repr(clip) == "Clip(30 key frames, arrays: 29.00 s, 30 pictures of 64x64; sound: no audio was given\n" + (
        "  warning: no times were given: frames are assumed to be 1 s apart; imu)"
    )
    assert repr(clip.signals["imu"]) == "Signal(values=float32 (5 3), times=float64 (5))"
    assert "tokens=float32 (30 16 128)" in repr(playroom.encode_clip(clip, []))
    for value in (clip, clip.signals["imu"], inputs, inputs.visual, playroom.encode_clip(clip, [])):
        assert len(repr(value)) < 700 and "tensor(" not in repr(value)


def test_a_notebook_shows_a_clip_and_an_answer(playroom: PatchedModel) -> None:
    html = Clip.from_frames(counting_frames(30))._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 8 and "30 pictures of 64x64" in html
    facts: dict[str, Any] = {"patches": ("ears",), "signals": {"audio": "present: 4 steps"}, "timings": {"generate": 2}}
    facts |= {"warnings": ("cut short",), "finish_reason": "length", "tokens": 5}
    html = Answer("<b>red</b>", **facts)._repr_html_()
    small = "ears; audio present: 4 steps; cut short; cut after 5 tokens; 2.00 s"
    assert html == f"<p>&lt;b&gt;red&lt;/b&gt;</p><p><small>{small}</small></p>"
    assert repr(Answer("red", **facts)) == "'red'"


def test_patches_are_listed_as_a_table_and_as_json(command: Command) -> None:
    code, out, _ = command("patch", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    entries = {entry.name: entry for entry in list_patches()}
    assert code == 0 and entries.keys() <= rows.keys()
    file = entries["audio-playroom"].file
    assert file is not None and rows["audio-playroom"]["bytes"] == file.stat().st_size
    assert rows["audio-avsd"] | {"description": ""} == {
        "name": "audio-avsd",
        "senses": ["audio"],
        "base": entries["audio-avsd"].recipe.base,
        "bytes": None,
        "kind": "official checkpoint",
        "description": "",
    }
    head, *lines = command("patch", "list")[1].splitlines()
    assert head.split() == ["NAME", "BASE", "SENSES", "BYTES"] and len(lines) == len(rows)
    line = next(line for line in lines if line.startswith("audio-playroom "))
    assert line[head.index("BASE") :].startswith("playroom ") and f" {file.stat().st_size:,}  " in line


def test_a_patch_is_told_as_json(command: Command) -> None:
    code, out, _ = command("patch", "info", "audio-playroom", "--json")
    found = json.loads(out)
    assert code == 0 and found["config"]["senses"]["audio"]["encoder"] == "logmel"
    assert found["sha256"].startswith("cd0e2156908eeeef") and found["certificate"]["listening"]


def test_commands_say_more_or_less(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as `quiet` does in a process of its own
    words = ("ask", ROOM, "is there a drum?", "--patch", "audio-playroom", "--max-new-tokens", 1)
    usual, less, more = (command(*level, *words) for level in ((), ("--quiet",), ("-v",)))
    assert usual[1] == less[1] == more[1] and less[2] == ""
    assert "audio: present" in usual[2] and "generate" not in usual[2]
    assert "generate" in more[2] and " 1 answered" in more[2]
    code, _, err = command("-q", "ask", "gone.mp4", "what?")
    assert code == 2 and "gone.mp4" in err, "errors are always said"
    assert command("-q", "-v", *words)[0] == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("pave pat", "patch"), ("pave ask --patch fast", "fast-playroom")],
)
def test_a_shell_completes_commands_and_patches(typed: str, offered: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1), "_PAVE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "pave"], env={**os.environ, **words}, capture_output=True, text=True, cwd=ROOT
    )
    assert offered in done.stdout.split()


def test_help_is_short_for_every_command(command: Command) -> None:
    for words in (("-h",), ("patch", "-h"), ("chat", "-h")):
        code, out, _ = command(*words)
        assert code == 0 and out.startswith(f"Usage: pave {' '.join(words[:-1])}".rstrip())
