"""The page of an explanation stands alone, and escapes what it did not write."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from places import ROOT

from pave.data import Source
from pave.evaluation.explained import write_page
from pave.explaining.explanation import Explanation
from pave.explaining.found import Cited, Deletions, Reading

CITED = Cited("audio", 1.0, 2.0, 3.0, "<b>", (3.0, 4.0), 0.01, "a & b")


def explanation(grid: tuple[int, int] = (1, 1), timed: bool = True) -> Explanation:
    weights = torch.rand(3, 8, *grid, generator=torch.Generator().manual_seed(0))
    times = torch.arange(8) / 2 + 0.25 if timed else None
    reading = Reading(
        "ears", ("audio",), False, times, weights / weights.sum((1, 2, 3), keepdim=True), torch.ones(3, 4)
    )
    windows = torch.tensor([[0.0, 1.0], [1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    deletions = Deletions("audio", windows, torch.tensor([0.0, 3.0, 0.01]))
    frames, sound = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(4000)
    parts = (reading,), (deletions,), (CITED,), {"other": "<reason>"}
    return Explanation("<script>?", "a & b", "c", torch.tensor([0.5, 2, 3.5]), *parts, frames, sound, 1000)


def test_the_page_stands_alone_plays_the_clip_and_escapes_texts(tmp_path: Path) -> None:
    page = write_page(explanation(), tmp_path / "page.html", Source(ROOT / "examples/room.mp4")).read_text("utf-8")
    assert "&lt;script&gt;?" in page and "<script>?" not in page and "&lt;b&gt;, 0.05 times as likely" in page
    assert "heard at 1.0–2.0 s" in page and "&lt;reason&gt;" in page and "room.mp4" in page
    assert 'src="data:video/webm;base64,' in page and page.count("<svg") == 1
    fetched = re.findall(r"""(?:src|href)=["']?(?!data:|#)([^"' >]+)""", page)
    assert not fetched and "@import" not in page


def test_a_picture_has_a_row_for_all_that_is_there() -> None:
    found = explanation()
    assert [axes.get_ylabel().replace("\n", " ") for axes in found.plot().axes] == [
        "key frames",
        "sound",
        "audio added where",
        "audio read by each key frame",
        "audio nats lost without",
    ]
    rows = [axes.get_ylabel().replace("\n", " ") for axes in explanation((2, 2), timed=False).plot().axes]
    assert rows == ["key frames", "sound", "audio read where", "audio nats lost without"]
    assert found._repr_html_() == found._repr_html_() and "&lt;b&gt;" in found._repr_html_()


def test_the_command_says_when_it_was_heard_and_writes_the_page(command, tmp_path: Path) -> None:
    out, room = tmp_path / "page.html", ROOT / "examples/room.mp4"
    words = ("explain", room, "is there a bell?", "--patch", "audio-playroom", "--out", out)
    code, said, remarks = command(*words)
    assert code == 0 and said.startswith("yes (heard at 1.") and remarks.splitlines()[-1] == str(out)
    assert "heard at 1." in out.read_text("utf-8")
    code, _, remarks = command(*words, "--signal", "bell=x")
    assert code == 2 and "no applied patch reads the signal 'bell'" in remarks
