"""The page in a real browser, with a real server: `CHROME_PATH=/usr/bin/chromium pytest tests/serving/test_browser.py`.

`PAVE_PICTURES=FOLDER` keeps pictures of the page, wide and narrow, light and dark, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browsing, chrome
from places import ROOT
from served import Served, served

from pave.model.patched import PatchedModel
from pave.serving.settings import Limits, Settings

BROWSER = chrome()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: CHROME_PATH, or on the PATH")
QUESTION = "what colour is the cube when you hear the drum?"  # about the first clip to try
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
CARD = f"""---
license: other
---
# {HOSTILE}
[a link](javascript:document.title='hacked') and [another](https://example.org/a)
<script>document.title = 'hacked'</script>

| {HOSTILE} | b |
|---|---|
| `{HOSTILE}` | **c** |
"""
SHOWN = "document.querySelector('#patched .facts li') && document.querySelector('#send').textContent === 'Ask'"


@pytest.fixture(scope="module")
def place(playroom: PatchedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("patches") / "hostile"
    shutil.copytree(ROOT / "patches" / "audio-playroom", folder)
    (folder / "README.md").write_text(CARD)
    playroom.apply_patch("audio-playroom")
    playroom.apply_patch(str(folder), name="hostile")
    settings = Settings("room", frozenset({"key"}), limits=Limits(clip_bytes=1 << 20))
    with served(playroom, settings) as place:
        yield place


@pytest.fixture(scope="module")
def page(place: Served) -> Iterator[Page]:
    """The page after its key was typed in, with the first clip chosen and asked about by keyboard alone."""
    assert BROWSER is not None
    with browsing(BROWSER) as page:
        page.look(1200)
        page.open(f"http://127.0.0.1:{place.port}/")
        page.until("document.querySelector('#key').open")
        page.write("key")
        page.press("Enter", "\r")
        page.until("document.querySelector('#examples video[src]')")
        page.problems.clear()  # the browser notes that models were refused without a key
        page.run("document.querySelector('#examples button').focus()")
        page.press("Enter", "\r")
        page.until("document.querySelector('#wave').hasAttribute('aria-label')")
        page.run("document.querySelector('#question').focus()")
        page.write(QUESTION)
        page.press("Enter", "\r")
        page.until(SHOWN)
        yield page


def test_both_answers_are_shown_with_what_was_read(page, place):
    clip = page.run("document.querySelector('#truth').textContent")
    assert clip == "In this scene: red"
    assert page.text("#patched .text").startswith("red") and page.text("#patched .right") == "right"
    assert not page.text("#alone .text").startswith("red") and page.text("#alone .wrong") == "wrong"
    assert page.text("#patched .present").startswith("audio present")
    assert page.run("document.querySelector('#player video').duration") == pytest.approx(4, abs=0.1)


def test_the_seconds_that_matter_are_found_and_played(page):
    drawn = "document.querySelector('#wave').toDataURL()"
    before = page.run(drawn)
    page.click("#explain")
    page.until("document.querySelector('#why button')")
    assert page.text("#why strong").startswith("red (heard at ")
    assert page.run(drawn) != before
    start = float(page.text("#why button").split()[1].partition("–")[0])
    page.click("#why button")
    assert page.until("document.querySelector('#player video').currentTime") == pytest.approx(start, abs=1.5)


def test_a_card_is_text_whoever_wrote_it(page):
    page.click("[aria-label='Card of hostile']")
    page.until("document.querySelector('#card').open")
    assert "<script>" in page.text("#card-text") and "onerror" in page.text("#card-text h3")
    assert page.run("document.querySelectorAll('#card-text :is(img, script)').length") == 0
    links = "[...document.querySelectorAll('#card-text a')].map((each) => each.href)"
    assert page.run(links) == ["https://example.org/a"]
    assert page.run("document.querySelectorAll('#card-text td code').length") == 1
    page.press("Escape")
    page.until("!document.querySelector('#card').open")
    assert page.run("document.title") != "hacked"


@pytest.mark.parametrize(
    ("size", "reason"), [(9, "not a media file"), (2 << 20, "more than 1,048,576 bytes"), (12 << 20, "large")]
)
def test_a_file_that_cannot_be_read_has_a_reason_in_words(page, tmp_path, size, reason):
    file = tmp_path / f"{size} {HOSTILE}.wav"
    file.write_bytes(bytes(size))
    page.choose("#file", file)
    page.until(f"document.querySelector('#about').textContent.includes('{size} <img')")
    page.until("document.querySelector('#no-wave').hidden === false")
    page.click("#ideas button")
    page.until("document.querySelectorAll('.failed').length === 2")
    assert reason in page.text("#patched .failed") and page.run("document.title") != "hacked"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_fits_its_window_in_both_schemes(page, width, dark):
    page.look(width, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, paper.removeprefix("rgb(").removesuffix(")").split(", "))) < 100) == dark
    if folder := os.environ.get("PAVE_PICTURES"):
        page.picture(Path(folder) / f"page-{width}-{'dark' if dark else 'light'}.png")


def test_it_asks_nobody_else_and_breaks_no_policy(page, place):
    own = (f"http://127.0.0.1:{place.port}/", "blob:", "about:", "data:")
    assert page.requests and not [url for url in page.requests if not url.startswith(own)]
    assert not [text for text in page.problems if "Failed to load resource" not in text]
