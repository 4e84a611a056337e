"""The report of an evaluation: one HTML file that stands alone, with plots, tables, and clips that play.

In: an `Evaluation`. Out: `report.html` in a folder. Nothing in it is fetched from elsewhere, and every text from a file
or a model is escaped. Knows nothing of models.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pave.data import Source
from pave.evaluation.intervals import Figure
from pave.evaluation.preview import film
from pave.evaluation.result import ALL, CAPTION, Evaluation
from pave.files.atomic import write_text
from pave.text.shown import counted, shown

NAME = "report.html"
QUESTIONS = 500  # shown on the page; all are in samples.jsonl
BYTES = 24 << 20  # of films, at most
GROUPS = 40  # of one field in a plot
WIDTH, LEFT, RIGHT, STEP, GAP = (
    960,
    190,
    20,
    11,
    12,
)  # pixels: of a plot, of its labels, of its margin, between two runs, between two names
KINDS = {"gained": "gained", "lost": "lost", "right": "both right", "wrong": "both wrong"}

STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #667; --line: #d9dce1; --back: #fff; --good: #0a7d33;
  --bad: #b3261e; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa0a6; --line: #3c4043; --back: #17191c;
  --good: #6dd58c; --bad: #f2b8b5; --card: #202327; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1000px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { margin: .3rem 0; }
.soft, figcaption, summary { color: var(--soft); } figure { margin: 1rem 0; overflow-x: auto; }
svg { width: 100%; min-width: 600px; } figcaption { margin-bottom: .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
svg text { fill: var(--ink); font-size: 12px; } svg .axis { stroke: var(--line); } svg .tick { fill: var(--soft); }
.base { --c: #80868b; } .own { --c: #1f77d0; } .off { --c: #b08900; } .silent { --c: #0a9b6f; }
.shuffled { --c: #d55e00; } .shifted { --c: #b3559f; }
svg .run { stroke: var(--c); fill: var(--c); stroke-width: 2; } .key { color: var(--c); margin-right: 1rem; }
.key::before { content: "●"; margin-right: .3rem; }
article { display: grid; grid-template-columns: 260px 1fr; gap: 1rem; border-top: 1px solid var(--line);
  padding: 1rem 0; } article[hidden] { display: none; } article > div:first-child { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .8rem;
  align-content: start; }
@media (max-width: 700px) { article { grid-template-columns: 1fr; } }
.card { background: var(--card); border-radius: 8px; padding: .8rem; overflow-wrap: anywhere; }
video { width: 100%; border-radius: 4px; background: #000; } .card dl { display: grid; margin: .4rem 0 0;
  grid-template-columns: max-content 1fr; gap: 0 .6rem; } .card dt { color: var(--soft); } .card dd { margin: 0; }
.yes { color: var(--good); } .yes::after { content: " ✓"; } .no { color: var(--bad); } .no::after { content: " ✗"; }
nav button { font: inherit; border: 1px solid var(--line); background: none; color: inherit; border-radius: 6px;
  padding: .15rem .7rem; cursor: pointer; }
nav button[aria-pressed=true] { background: var(--ink); color: var(--back); }
nav { display: flex; gap: .4rem; margin: .5rem 0 1rem; flex-wrap: wrap; }
pre { white-space: pre-wrap; font-size: .8rem; }
"""
SCRIPT = """
for (const button of document.querySelectorAll("nav button")) button.onclick = () => {
  for (const each of document.querySelectorAll("nav button")) each.setAttribute("aria-pressed", each === button);
  for (const card of document.querySelectorAll(".card"))
    card.hidden = !["all", card.dataset.kind].includes(button.dataset.kind);
  for (const clip of document.querySelectorAll("article")) clip.hidden = !clip.querySelector(".card:not([hidden])");
};
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src data:; img-src data:"


def write_report(found: Evaluation, folder: Path, clips: int = 24) -> Path:
    """The page, with so many clips that play."""
    path = folder / NAME
    write_text(path, "\n".join(_page(found, clips)) + "\n")
    return path


def _page(found: Evaluation, clips: int) -> Iterator[str]:
    settings: Mapping[str, Any] = found.settings
    patches = ", ".join(each["name"] for each in settings.get("patches", ())) or "no patch"
    base = settings.get("base", {}).get("name", "")
    asked_about = {example.source for example in found.examples}
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(patches)} on {_text(base)}</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
    yield f"<h1>{_text(patches)} on {_text(base)}</h1>"
    asked = f"{counted(len(found.samples), 'question')} about {counted(len(asked_about), 'clip')}"
    yield f'<p class="soft">{asked}; {_text(settings.get("data", {}).get("file", ""))}</p>'
    keys = "".join(f'<span class="key {run}">{run}</span>' for run in found.answers)
    yield f"<p>{keys}</p>"
    yield from _plots(found)
    yield f"<h2>Figures</h2><figure>{found._repr_html_()}</figure>"
    yield from (f'<p class="soft">{name} n/a: {_text(reason)}</p>' for name, reason in found.missing.items())
    remarks = [*(f"left out: {reason}" for reason in found.refused.values()), *found.notes]
    remarks += [f"{source}: {text}" for source, texts in found.warnings.items() for text in texts]
    if remarks:
        yield f"<h2>Remarks</h2><ul>{''.join(f'<li>{_text(remark)}</li>' for remark in remarks)}</ul>"
    yield from _cards(found, clips)
    yield "<h2>How</h2><details><summary>versions, prompt, decoder, seed, hashes</summary>"
    yield f"<pre>{escape(json.dumps(settings, indent=1, ensure_ascii=False))}</pre></details>"
    yield f"<script>{SCRIPT}</script></body></html>"


# Plots


def _plots(found: Evaluation) -> Iterator[str]:
    """All metrics of all questions, then the first metric by each field."""
    whole = found.figures[ALL, ALL]
    for top, metrics in _scales(whole).items():
        yield _plot(f"all questions; {CAPTION}", {name: whole[name] for name in metrics}, list(found.answers), top)
    first = found.metrics[0]
    for name in found.fields:
        rows = {value: own[first] for (field, value), own in found.figures.items() if field == name}
        shares = dict(list(rows.items())[:GROUPS])
        left_out = f", the first {GROUPS} of {len(rows)} groups" if len(rows) > GROUPS else ""
        top = next(iter(_scales({first: whole[first]})), 1.0)
        yield _plot(f"{first} by {name}{left_out}", shares, list(found.answers), top)


def _scales(figures: Mapping[str, Mapping[str, Figure | str]]) -> dict[float, list[str]]:
    """Metrics by the end of their axis: shares to 1, others to a round number."""
    found: dict[float, list[str]] = {}
    for name, runs in figures.items():
        known = [each.value if each.high is None else each.high for each in runs.values() if isinstance(each, Figure)]
        top = next((end for end in (1.0, 2.0, 5.0, 10.0, 100.0) if max(known, default=0) <= end), 1000.0)
        if known:
            found.setdefault(top, []).append(name)
    return found


def _plot(caption: str, rows: Mapping[str, Mapping[str, Figure | str]], runs: Sequence[str], top: float) -> str:
    """A row of points with their intervals for each name; a line of its own for each run."""
    height = len(rows) * (STEP * len(runs) + GAP)
    scale = (WIDTH - LEFT - RIGHT) / top
    parts = []
    for i in range(6):
        x = LEFT + scale * top * i / 5
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height + 14}" text-anchor="middle">{top * i / 5:g}</text>')
    y = GAP / 2
    for name, figures in rows.items():
        middle = y + STEP * len(runs) / 2 + 4
        if y > GAP:
            parts.append(f'<line class="axis" x1="0" x2="{WIDTH - RIGHT}" y1="{y - GAP / 2}" y2="{y - GAP / 2}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{_text(name[:24])}</text>')
        for run in runs:
            y += STEP
            if isinstance(figure := figures.get(run), Figure):
                parts.append(_point(run, figure, y - STEP / 2, scale))
        y += GAP
    picture = f'<svg viewBox="0 0 {WIDTH} {height + 20}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{_text(caption)}</figcaption>{picture}</figure>"


def _point(run: str, figure: Figure, y: float, scale: float) -> str:
    title = f"<title>{run} {figure}</title>"
    line = ""
    if figure.low is not None and figure.high is not None:
        x1, x2 = LEFT + scale * figure.low, LEFT + scale * figure.high
        line = f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'<g class="run {run}">{title}{line}<circle cx="{LEFT + scale * figure.value:.1f}" cy="{y:.1f}" r="4"/></g>'


# Samples


def _cards(found: Evaluation, clips: int) -> Iterator[str]:
    """Clips, each with its film and its questions: those on which the runs differ come first."""
    kinds = _kinds(found)
    order = sorted(range(len(kinds)), key=lambda i: list(KINDS).index(kinds[i]))[:QUESTIONS]
    films = _films([found.examples[i].source for i in order], clips)
    counts = {kind: kinds.count(kind) for kind in KINDS if kind in kinds}
    yield f"<h2>Questions</h2><nav><button data-kind='all' aria-pressed='true'>all {len(kinds):,}</button>"
    names = KINDS if len(found.answers) > 1 else {"right": "right", "wrong": "wrong"}
    for kind, count in counts.items():
        yield f"<button data-kind='{kind}' aria-pressed='false'>{names[kind]} {count:,}</button>"
    yield "</nav>"
    if len(order) < len(kinds):
        yield f'<p class="soft">{len(order):,} of {len(kinds):,} are shown; samples.jsonl has all.</p>'
    of_clip: dict[Source, list[int]] = {}
    for i in order:
        of_clip.setdefault(found.examples[i].source, []).append(i)
    for source, places in of_clip.items():
        name = f'<p class="soft">{_text(Path(source.video).name)}</p>'
        cards = "".join(_card(found, i, kinds[i]) for i in places)
        yield f'<article><div>{films.get(source, "")}{name}</div><div class="cards">{cards}</div></article>'


def _kinds(found: Evaluation) -> list[str]:
    """Of each question: whether the first and the main run are right, by the first metric (half of it or more)."""
    runs = list(found.answers)
    measured = found.measured[found.metrics[0]]
    scores = {
        run: each.each if not isinstance(each := measured[run], str) else [0.0] * len(found.samples) for run in runs
    }
    pairs = zip(scores[runs[0]], scores[found.main], strict=True)
    names = {(False, True): "gained", (True, False): "lost", (True, True): "right", (False, False): "wrong"}
    return [names[bool(before >= 0.5), bool(after >= 0.5)] for before, after in pairs]


def _films(sources: Sequence[Source], clips: int) -> dict[Source, str]:
    """Films of the first clips, as players."""
    found: dict[Source, str] = {}
    size = 0
    for source in list(dict.fromkeys(sources))[:clips]:
        data = film(source)
        if data is None or size + len(data) > BYTES:
            continue
        size += len(data)
        found[source] = (
            f'<video controls preload="metadata" src="data:video/webm;base64,{b64encode(data).decode()}"></video>'
        )
    return found


def _card(found: Evaluation, place: int, kind: str) -> str:
    example, measured = found.examples[place], found.measured[found.metrics[0]]
    rows = [f"<dt>right</dt><dd>{_text(example.answer)}</dd>"]
    for run, answers in found.answers.items():
        each = measured[run]
        state = "" if isinstance(each, str) else "yes" if each.each[place] >= 0.5 else "no"
        rows.append(f'<dt>{run}</dt><dd class="{state}">{_text(answers[place])}</dd>')
    facts = " · ".join(f"{name} {example.facts.get(name, 'none')}" for name in found.fields)
    return (
        f'<div class="card" data-kind="{kind}"><p>{_text(example.question)}</p><dl>{"".join(rows)}</dl>'
        f'<p class="soft">{_text(facts)}</p></div>'
    )


def _text(value: object) -> str:
    return escape(shown(value))
