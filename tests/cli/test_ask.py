"""Claims about `pave ask` and `pave chat`: the answers of the library, with everything said that a person must know."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import counting_frames, write_clip
from places import ROOT

from pave.cli.terminal import say_pieces
from pave.model.patched import PatchedModel

ROOM = ROOT / "examples" / "room.mp4"
BELL = "what colour is the ball when you hear the bell?"
Command = Callable[..., tuple[int, str, str]]


def test_an_answer_that_is_cut_is_said(command: Command) -> None:
    whole = command("ask", ROOM, BELL)
    assert whole[0] == 0 and "cut" not in whole[2] and "toys" not in whole[2]
    code, _, err = command("ask", ROOM, "what do you see?", "--max-new-tokens", 1)
    assert code == 0 and "warning: the answer was cut after 1 tokens; allow more with --max-new-tokens" in err


def test_options_of_generate_reach_it(command: Command, playroom: PatchedModel) -> None:
    words = ("ask", ROOM, BELL, "--max-new-tokens", 3, "--option", "suppress_tokens=[0,1,2,3]", "--option")
    assert command(*words, "do_sample=False")[0] == 0
    code, out, _ = command("ask", ROOM, BELL, "--option", "temperature=0", "--json")
    found = json.loads(out)
    answer = playroom.ask(ROOM, BELL)
    assert code == 0 and found["answer"] == answer and found["finish_reason"] == "stop"
    assert {**found, "timings": 0} == {
        "answer": str(answer),
        **vars(answer),
        "patches": [],
        "warnings": [],
        "timings": 0,
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temprature=0.7", "no option 'temprature'; did you mean 'temperature'?"),
        ("temperature=hot", "temperature='hot' must be 0 (greedy) or a number"),
        ("temperature", "--option temperature: write NAME=VALUE"),
        ("use_cache=true", "the library keeps keys and values itself"),
        ("max_new_tokens=3", "--option max_new_tokens: use --max-new-tokens"),
    ],
)
def test_an_invalid_option_is_one_line_before_anything_is_opened(command: Command, option: str, message: str) -> None:
    for verb in (("ask", "gone.mp4", "what?"), ("chat", "gone.mp4")):
        code, out, err = command(*verb, "--base", "nowhere", "--option", option)
        assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_a_chat_answers_line_by_line(command: Command, playroom: PatchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = f"{BELL}\n\n/patches\n{BELL}\n/patches audio-playrom\n/help\n/new\n{BELL}\n/quit\nnever asked\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code, out, err = command("chat", ROOM, "--patch", "audio-playroom")
    playroom.apply_patch("audio-playroom")
    try:
        chat = playroom.chat(ROOM)
        expected = [chat.ask(BELL), chat.ask(BELL, patches=[])]
        chat.history.clear()
        expected.append(chat.ask(BELL, patches=[]))
    finally:
        playroom.remove_patch("audio-playroom")
    assert code == 0 and out.splitlines() == expected
    assert "patches: none" in err and err.count("/patches NAME") == 2 and err.count("audio: present") == 1
    assert "did you mean 'audio-playroom'?" in err, "an error ends a question only"
    assert "other patches act on it" in err


def test_a_film_of_the_world_outside_is_said_to_the_person_who_asks(
    playroom: PatchedModel, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "street.mp4", counting_frames(8, (96, 128)), fps=8)
    with pytest.warns(UserWarning, match="the embedded base knows toys in its room and nothing else; for real films"):
        answer = playroom.ask(tmp_path / "street.mp4", "what?", max_new_tokens=1)
    assert len(answer.warnings) == 1 and not playroom.ask(ROOM, "what?", max_new_tokens=1).warnings
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\nwhere?\n"))
    code, _, err = command("chat", tmp_path / "street.mp4")
    assert code == 0 and err.count("knows toys in its room") == 1


def test_pieces_are_printed_as_they_come_without_what_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say_pieces([" ", "\n", "a ", "\x1b[31m", "b", "\n", "c \n"])
    assert capsys.readouterr().out == "a \\x1b[31mb\nc\n"
    say_pieces([])
    assert capsys.readouterr().out == "\n"


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pave", "-h"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("Usage: pave [OPTIONS] COMMAND")
