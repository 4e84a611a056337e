"""A sample of `benchmarks/media.py`, which reads many more files and asks the ffmpeg command about them."""

import sys
from pathlib import Path

import pytest
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from media import endure, examine
from media_case import Case
from media_cases import cases
from media_hostile import Hostile, hostile


@pytest.mark.parametrize("case", [case for case in cases() if case.small], ids=lambda case: case.name)
def test_pictures_and_sound_are_where_a_player_shows_them(case: Case, tmp_path: Path) -> None:
    figures = examine(case, tmp_path, ask_ffmpeg=False)
    assert not figures["faults"], figures


@pytest.mark.parametrize("case", [case for case in hostile() if case.small], ids=lambda case: case.name)
def test_hostile_files_cost_no_more_than_their_limit(case: Hostile, tmp_path: Path) -> None:
    figures = endure(case, tmp_path, limit=5)
    assert not figures["faults"], figures
