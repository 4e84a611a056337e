"""Claims about questions with options, spans of films, and media that are found by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from excerpts import EXCERPTS, write_excerpt

from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.check import check
from pave.readers.media import Media
from pave.readers.questions import Reading, read_data
from pave.readers.wording import LETTERED, LISTED, Choices, Wording


def test_a_wording_decides_the_prompt_and_the_answer() -> None:
    choices = Choices(["red", "blue {x}"], 1)
    assert LISTED.asked("Which?", choices) == "Which?\n- red\n- blue {x}" and LISTED.answer("blue", choices) == "blue"
    assert LETTERED.asked("Which {question}?", choices).startswith("Which {question}?\nA. red\nB. blue {x}\nAnswer")
    assert LETTERED.answer("blue", choices) == "B" and LETTERED.answer("x", Choices(["red"], None)) == "none"
    listed = Wording("{question} of {options!r}", "{letter}. {text}", sentence=True)
    assert listed.asked("what did HE see", choices) == "What did he see? of ['A. red', 'B. blue {x}']"
    assert Wording().asked("Why?", None) == "Why?"


def test_more_options_than_letters_can_be_listed() -> None:
    many = Choices([f"cup {i}" for i in range(30)], 29)
    assert LISTED.asked("?", many).endswith("- cup 29")


def test_another_wording_replaces_that_of_a_format(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "avqa")
    (own,) = read_data(file)
    (lettered,) = Reading(DataSet(file=file), wording=LETTERED).examples()
    assert own.answer == "a train" and own.choices == () and "\n- a kettle" in own.question
    assert lettered.answer == "B" and lettered.choices == tuple(EXCERPTS["avqa"].content[0]["multi_choice"])


def test_questions_without_a_published_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("egoschema", "mlvu"):
        found = check(DataSet(file=write_excerpt(tmp_path, name)))
        assert found.left_out == 1 and found.records == found.questions + 1
        assert "1 record left out: beyond per_clip, or without an answer" in str(found)


def test_further_files_that_are_missing_are_named(tmp_path: Path) -> None:
    for name, key in (("egoschema", "answers"), ("activitynet-qa", "answers"), ("msvd-qa", "videos")):
        file = write_excerpt(tmp_path, name)
        (beside,) = EXCERPTS[name].beside
        (tmp_path / beside).rename(tmp_path / "else")
        with pytest.raises(DataError, match=rf"are in another file, and .*{beside} is not there; .*{key}: FILE"):
            read_data(file)
        found = read_data(DataSet(file=file, maps={key: tmp_path / "else"}))
        assert len(found) == sum(len(turns) for _, turns in EXCERPTS[name].understood)


def test_answers_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "msvd-qa")
    (tmp_path / "youtube_mapping.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="must have lines of '<name> vid<number>'"):
        read_data(file)
    file = write_excerpt(tmp_path, "activitynet-qa")
    (tmp_path / "test_a.json").write_text("[1]")
    with pytest.raises(DataError, match=r"test_a.json, item 1: expected a JSON object, got int; give Act"):
        read_data(file)


def test_a_span_is_read_and_pictures_count_by_their_rate(tmp_path: Path) -> None:
    first, second = read_data(write_excerpt(tmp_path, "mvbench"))
    assert first.source.tracks == {"start": 2.5, "end": 9.0} and second.source.tracks == {}
    (pictures,) = read_data(write_excerpt(tmp_path, "mvbench of pictures"))
    assert pictures.source.tracks == {"start": 3.0, "end": 12.0}, "three pictures a second, read as one a second"


def test_two_spans_of_a_film_are_two_clips(tmp_path: Path) -> None:
    one = json.loads(json.dumps(EXCERPTS["mvbench"].content[0]))
    file = write_excerpt(tmp_path, "mvbench", [one, {**one, "end": 8}])
    a, b = read_data(file)
    assert a.video == b.video and a.source != b.source


def test_media_are_found_by_name_in_any_folder_and_by_their_ending(tmp_path: Path) -> None:
    for file in ("films/x/a.mp4", "sounds/a.wav", "films/b.mkv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    media = Media(tmp_path)
    assert media.path("a", ".mp4") == media.path("elsewhere/a.mp4", ".mp4") == tmp_path / "films/x/a.mp4"
    assert media.path("elsewhere/a.wav", "") == tmp_path / "sounds/a.wav"
    assert media.path("b", ".mp4") == tmp_path / "films/b.mkv"
    assert media.path("gone/c.mp4", ".mp4") == tmp_path / "gone/c.mp4" and media.path("c", ".mp4") == tmp_path / "c.mp4"
    (tmp_path / "films/x/back").symlink_to(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/elsewhere").symlink_to(tmp_path / "sounds")
    assert Media(tmp_path / "linked").path("a.wav", "") == tmp_path / "linked/elsewhere/a.wav"
    with pytest.raises(DataError, match=r"a is films/x/a.mp4 and sounds/a.wav; remove one"):
        media.path("a", ".avi")


def test_options_written_as_text_are_bounded(tmp_path: Path) -> None:
    record = {**EXCERPTS["mlvu"].content[1], "candidates": f"[{'x' * 20_000!r}, 'b']"}
    with pytest.raises(DataError, match="item 1: 'candidates' must be a list of texts"):
        read_data(write_excerpt(tmp_path, "mlvu", [record]))
