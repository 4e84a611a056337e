"""Claims about data with flaws: broken records are left out with their place, unless they are many."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import write_line

from pave.data_sets import DataSet
from pave.errors import DataError, UsageError
from pave.readers.parts import missing_of, places_of, read_parts


def write(folder: Path, lines: int, broken: dict[int, str]) -> Path:
    """A file with one question a line; some lines, counted from 1, are replaced."""
    texts = [broken.get(n, write_line(f"{n}.mp4", "What is it?", "red")) for n in range(1, lines + 1)]
    (folder / "a.jsonl").write_text("".join(f"{text.strip()}\n" for text in texts))
    return folder / "a.jsonl"


def refuse(text: str, what: str) -> None:
    if text == "unsayable":
        raise UsageError(f"the {what} cannot be said")


def test_broken_records_are_left_out_with_place_and_cause(tmp_path: Path) -> None:
    unsayable = write_line("9.mp4", "What is it?", "unsayable")
    file = write(tmp_path, 40, {3: "{", 9: unsayable, 20: '{"video": "20.mp4"}'})
    (part,) = read_parts(file, refuse)
    assert part.records == 40 and [each.line for each in part.examples] == [
        n for n in range(1, 41) if n not in (3, 9, 20)
    ]
    (first, json), (second, said), (third, _) = part.broken
    assert (first, second, third) == ("line 3", "line 9", "line 20")
    assert json.startswith("not JSON") and said == "the answer cannot be said"
    assert part.named("line 3") == "a.jsonl, line 3"


@pytest.mark.parametrize(("broken", "refused"), [(2, False), (3, True)])
def test_a_file_of_which_more_than_a_tenth_is_broken_is_refused(tmp_path: Path, broken: int, refused: bool) -> None:
    file = write(tmp_path, 20, dict.fromkeys(range(5, 5 + broken), "{"))
    if not refused:
        assert len(read_parts(file)[0].examples) == 18
        return
    with pytest.raises(DataError, match=r"a\.jsonl, line 5: not JSON.*; fix or delete the line \(broken: 3 of 20 rec"):
        read_parts(file)


def test_every_place_that_asks_about_a_clip_or_names_a_missing_file_is_known(tmp_path: Path) -> None:
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / name).touch()
    one = write_line("1.mp4", "Why?", "so") + write_line("gone.mp4", "Why?", "so")
    (tmp_path / "a.jsonl").write_text(one + write_line("1.mp4", "Who?", "me"))
    (tmp_path / "b.jsonl").write_text(write_line("2.mp4", "Why?", "so", signals={"imu": "2.npy"}))
    parts = read_parts((DataSet(file=tmp_path / "a.jsonl"), DataSet(file=tmp_path / "b.jsonl")))
    places = {source.video.name: each for source, each in places_of(parts).items()}
    assert places["1.mp4"] == ["a.jsonl, line 1", "a.jsonl, line 3"] and places["2.mp4"] == ["b.jsonl, line 1"]
    missing = [(place, file.name) for place, file in missing_of(parts)]
    assert missing == [("a.jsonl, line 2", "gone.mp4"), ("b.jsonl, line 1", "2.npy")]
