"""Claims about subtitles: the texts at the key frames, in order, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pave.errors import DataError
from pave.readers.subtitles import Cue, cues, filled

SRT = """1
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">A kettle boils.</font>

2\r
00:00:02,500 --> 00:00:04,000\r
<i>It</i>
whistles.\r
\r
3
00:01:00,250 --> 01:00:00,000
The end

4
00:00:09,000 --> 00:00:10,000

"""


def test_cues_have_their_times_and_no_tags(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(b"\xef\xbb\xbf" + SRT.encode())
    assert cues(tmp_path / "a.srt") == [
        Cue(1.0, 2.5, "A kettle boils."),
        Cue(2.5, 4.0, "It whistles."),
        Cue(60.25, 3600.0, "The end"),
    ]


def test_a_prompt_gets_what_is_on_screen_at_some_key_frame(tmp_path: Path) -> None:
    file = tmp_path / "a.srt"
    file.write_text(SRT)
    assert filled("Heard: {subtitles}\nWhy {subtitles}?", file, [3.9, 1.0, 3.0]) == (
        "Heard: A kettle boils.\nIt whistles.\nWhy {subtitles}?"
    )
    assert filled("[{subtitles}]", file, [0.5, 4.0]) == "[]"
    assert filled("[{subtitles}]", tmp_path / "gone.srt", [1.0]) == "[No subtitles available]"


def test_a_file_without_subtitles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("WEBVTT\n\n1 --> 2\nhello\n")
    with pytest.raises(DataError, match=r"a.srt: has no subtitles in SubRip's layout; download it again"):
        filled("{subtitles}", tmp_path / "a.srt", [1.0])
