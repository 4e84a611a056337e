"""The page of an explanation: one HTML file that stands alone, with the clip beside what was read when.

In: an `Explanation`, and the files of its clip. Out: a file. As in report.py, nothing is fetched, and all text is
escaped. Knows nothing of models.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

from pave.data import Source
from pave.evaluation.preview import SECONDS, film
from pave.evaluation.report import POLICY, STYLE
from pave.explaining.explanation import Explanation, effect
from pave.explaining.picture import LEFT, RIGHT, span_of, svg
from pave.files.atomic import write_text
from pave.text.shown import shown

LEAD = 5.0  # seconds of a long clip that are played before the first cited second
MORE = """
main { display: grid; grid-template-columns: 340px 1fr; gap: 1.5rem; margin: 1rem 0; }
@media (max-width: 700px) { main { grid-template-columns: 1fr; } }
.answer { font-size: 2rem; font-weight: 600; overflow-wrap: anywhere; } .cited { color: var(--bad); }
td:last-child { text-align: left; white-space: normal; } button { font: inherit; cursor: pointer; }
.time { position: relative; background: #fff; border-radius: 8px; overflow: hidden; cursor: pointer; }
.time svg { display: block; min-width: 0; height: auto; } .time svg text { fill: inherit; }
.time i { position: absolute; top: 0; bottom: 1.6rem; width: 2px; background: #d55e00; pointer-events: none; }
"""
SCRIPT = """
const film = document.querySelector("video"), time = document.querySelector(".time"), now = time.querySelector("i");
const [left, right, first, last, start] = time.dataset.axis.split(" ").map(Number);
let until = Infinity;
const show = () => {
  const at = film.currentTime + start;
  now.style.left = 100 * (left + (right - left) * (at - first) / (last - first)) + "%";
  if (at >= until) { film.pause(); until = Infinity; }
  requestAnimationFrame(show);
};
if (film) {
  show();
  time.onclick = (event) => {
    const box = time.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
    film.currentTime = Math.max(0, first + (share - left) / (right - left) * (last - first) - start);
  };
  for (const button of document.querySelectorAll("button")) button.onclick = () => {
    film.currentTime = Math.max(0, button.dataset.from - start); until = Number(button.dataset.to); film.play();
  };
} else now.remove();
"""


def write_page(found: Explanation, path: Path, source: Source) -> Path:
    """The page; the clip plays if it has pictures."""
    write_text(path, "\n".join(_page(found, source)) + "\n")
    return path


def _page(found: Explanation, source: Source) -> Iterator[str]:
    name = _text(Path(source.video).name)
    start = _start(found)
    data = film(replace(source, start=start or None))
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(found.question)} {name}</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}{MORE}</style></head><body>'
    yield f"<h1>{_text(found.question)}</h1><main><div>"
    if data is not None:
        yield f'<video controls preload="auto" src="data:video/webm;base64,{b64encode(data).decode()}"></video>'
    yield f'<p class="soft">{name}</p></div><div><p class="answer">{_text(found.answer)}</p>'
    yield from (
        f'<p class="cited">{each} <button {_span(each.start, each.end)}>play</button></p>' for each in found.cited
    )
    yield f"<table>{''.join(_rows(found))}</table></div></main>"
    axis = " ".join(f"{value:g}" for value in (LEFT, RIGHT, *span_of(found), start))
    yield f'<div class="time" data-axis="{axis}">{svg(found)}<i></i></div>'
    yield "<h2>How to read this</h2><ul>"
    yield "<li>Attention and what was added show what the model read, not that it mattered.</li>"
    yield "<li>Nats lost without: how much less likely the answer is without what a sense gives in these seconds; 0.7"
    yield "nats are half as likely. Cited are seconds that lose more, if another, drawn by lot, does not.</li>"
    yield from (f"<li>{_text(each)}: {_text(reason)}</li>" for each, reason in found.missing.items())
    yield f"</ul><script>{SCRIPT}</script></body></html>"


def _rows(found: Explanation) -> Iterator[str]:
    """The answer, without the patch, and without each of the cited seconds and those drawn by lot."""
    yield f"<tr><td>without the patch</td><td>{_text(found.without)}</td></tr>"
    for each in found.cited:
        for what, (start, end), answer, lost in (
            ("without", (each.start, each.end), each.answer, each.lost),
            ("without, drawn by lot:", each.other, each.other_answer, each.other_lost),
        ):
            yield f"<tr><td>{what} {start:.1f}–{end:.1f} s</td><td>{_text(effect(answer, lost))}</td></tr>"


def _start(found: Explanation) -> float:
    """Where the film begins: at 0, or before the first cited second, if that would not be in it."""
    first = min((each.start for each in found.cited), default=0.0)
    return 0.0 if first + LEAD < SECONDS else first - LEAD


def _span(start: float, end: float) -> str:
    return f'data-from="{start:g}" data-to="{end:g}"'


def _text(value: object) -> str:
    return escape(shown(value))
