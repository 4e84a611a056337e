"""Claims about `pave data`: what it prints, its exit codes, and that `pave encode` reads the same formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from excerpts import write_excerpt

from pave.data_sets import DataSet
from pave.features.extract import listed
from pave.readers.questions import formats

Command = Callable[..., tuple[int, str, str]]


def test_a_check_shows_what_is_understood(command: Command, tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "music-avqa")
    for name in ("00000272", "sff00000001"):
        (tmp_path / "films" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "films" / f"{name}.mp4").touch()
    code, out, err = command("data", "check", file, "--media", tmp_path / "films")
    assert (code, err) == (0, "")
    assert f"{file}: music-avqa\n2 records, 2 questions about 2 clips\n" in out
    assert "item 1 as it is understood:\n" in out and "question: 'Is the flute louder than the left drum?'" in out
    assert "question_deleted (2), question_id (2)" in out


def test_what_is_missing_and_broken_is_listed_and_the_exit_code_is_one(command: Command, tmp_path: Path) -> None:
    rows = [{"video": f"{number}.mp4", "question": "?", "answer": "x" if number else ""} for number in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    code, out, _ = command("data", "check", tmp_path / "a.json")
    assert code == 1 and "1 record broken:\n  item 1: needs 'answer', a text; got ''" in out
    assert f"8 files missing:\n  {tmp_path / '1.mp4'}\n" in out and "  and 3 more\n" in out
    assert out.endswith("not ready for training\n")
    code, out, _ = command("data", "check", tmp_path / "a.json", "--limit", "1")
    assert code == 1 and out.endswith("no question can be read\n")
    code, out, _ = command("data", "check", tmp_path / "a.json", "--json")
    found = json.loads(out)
    assert code == 1 and len(found["missing"]) == 8 and found["questions"] == 8 and found["ok"] is False
    assert found["first"]["place"] == "item 2" and found["broken"] == ["item 1: needs 'answer', a text; got ''"]


def test_names_and_texts_of_strangers_are_printed_safely(command: Command, tmp_path: Path) -> None:
    rows = [{"video": "\x1b[31m.mp4", "question": "a\nb\x1b[2J\u202e", "answer": "\u200b", "\x1b[0m": 1}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for words in ((), ("--json",)):
        _, out, err = command("data", "check", tmp_path / "a.json", *words)
        assert not set("\x1b\u202e\u200b") & set(out + err)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("nope.json",), "nope.json: no such file; give a file of questions about clips"),
        (("a.json", "--format", "llavaa"), "no format 'llavaa'; did you mean 'llava'?"),
        (("a.json", "--option", "colums.video=x"), "colums: unknown key; did you mean 'columns'?"),
        (("a.json", "--option", "turns=never"), "turns='never': must be 'separate', 'dialogue' or 'last'"),
        (("a.json", "--format", "pave-dataset"), "its videos are ids; name the map to files with maps"),
        (("b.json",), "b.json, line 1: is in no known format"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_two(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], cause: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_excerpt(tmp_path, "llava list").rename("a.json")
    (tmp_path / "b.json").write_text('{"what": 1}\n{"is": 2}\n')
    code, out, err = command("data", "check", *words)
    assert (code, out) == (2, "") and cause in err and err.count("\n") == 1


def test_the_formats_are_listed(command: Command) -> None:
    code, out, _ = command("data", "formats")
    assert code == 0 and [line.partition(":")[0] for line in out.splitlines()] == formats()


def test_pave_encode_finds_the_clips_of_any_format(workshop: Path, tmp_path: Path, command: Command) -> None:
    names = [each.video for _, each in listed(workshop / "train.jsonl")]
    lines = [json.loads(line) for line in (workshop / "train.jsonl").read_text().splitlines()]
    (tmp_path / "a.json").write_text(json.dumps(lines))
    found = listed(DataSet(file=tmp_path / "a.json", media=workshop))
    assert [each.video for _, each in found] == names
    (tmp_path / "b.csv").write_text("video,question,answer\n" + f"{names[0]},?,x\n")
    code, out, err = command("encode", "logmel", tmp_path / "b.csv", tmp_path / "out", "--workers", "1")
    assert code == 0 and "1 of 1 clip is encoded" in out, err
    with_media = ("--format", "table", "--media", workshop, "--workers", "1")
    (tmp_path / "b.csv").write_text(f"video,question,answer\n{names[1].relative_to(workshop)},?,x\n")
    code, out, err = command("encode", "logmel", tmp_path / "b.csv", tmp_path / "more", *with_media)
    assert code == 0 and "1 of 1 clip is encoded" in out, err
