"""The demo: the same questions to a frozen video LLM and to the same model with a patch, offline.

In: a folder, a number of clips, a seed. Out: mp4 files with sound, a table on stdout and a picture. Every result is
computed on the spot: the files are written, then decoded, encoded and asked about like any user's clip.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from rich import box
from rich.table import Table
from rich.text import Text

from pave.cli.terminal import lines_of, say, say_table
from pave.media.clip import Clip
from pave.model.patched import PatchedModel, load
from pave.playroom import sound, world, writer
from pave.text.shown import counted, shown

BASE, PATCH, SPLIT = "playroom", "audio-playroom", "test"
PER_CLIP = 4  # questions asked about a clip, at most
INK, FAINT, RIGHT, WRONG, SOUND = "#1f2430", "#8a90a0", "#1b7f4d", "#b3412f", "#3d6fb6"

CLOSING = """\
Small and synthetic here: the clips ({seconds:g} seconds, {size} x {size} pixels, {sounds} sounds) and the base, a
LLaVA-OneVision of {millions:.1f} million parameters, trained on frames of this synthetic world. The base
has no sound encoder, so it can only guess the answers to questions about sound. Files, decoder,
alignment, fusion and patch format are the same as for a real model. With a 7B base (16 GB of
weights) and a patch that you trained for it with pave-train on your own clips, the command is

    pave ask clip.mp4 "What do you hear?" --base llava-hf/llava-onevision-qwen2-7b-ov-hf --patch FOLDER
"""


@dataclass(frozen=True)
class Asked:
    """One question and both answers."""

    question: str
    channel: str
    truth: str
    base: str
    patched: str


@dataclass(frozen=True)
class Subject:
    """One clip: its file, its content, the true times of its sounds, and the questions asked about it."""

    path: Path
    clip: Clip
    events: Sequence[tuple[str, float]]
    asked: Sequence[Asked]


def run(out: Path, *, clips: int, seed: int) -> list[Subject]:
    """Write the clips, ask both models, print the table, draw the picture."""
    start = time.perf_counter()
    lines = writer.write_clips(out, clips, seed, SPLIT)
    say(f"{counted(clips, 'clip')} with sound in {out / 'clips'} ({time.perf_counter() - start:.1f} s)")
    model = load(BASE)
    say(*lines_of(model.apply_patch(PATCH)), "")
    start = time.perf_counter()
    seeds = writer.clip_seeds(clips, seed, SPLIT)
    subjects = [_ask(model, out, rows, number) for rows, number in zip(_by_clip(lines), seeds, strict=True)]
    say_table(_table(subjects))
    say(_score(subjects, time.perf_counter() - start))
    picture = out / "demo.png"
    draw(max(subjects, key=_instructive), picture)
    say(f"picture: {picture}", "", *lines_of(_closing(model)))
    return subjects


def _closing(model: PatchedModel) -> str:
    millions = sum(parameter.numel() for parameter in model.base.parameters()) / 1e6
    return CLOSING.format(seconds=world.SECONDS, size=world.SIZE, sounds=len(world.SOUNDS), millions=millions)


def _by_clip(jsonl: Path) -> list[list[dict]]:
    """Rows of a JSONL file, one list per clip, in file order."""
    found: dict[str, list[dict]] = {}
    for line in jsonl.read_text("utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["video"], []).append(row)
    return list(found.values())


def _ask(model: PatchedModel, out: Path, rows: Sequence[dict], seed: int) -> Subject:
    path = out / rows[0]["video"]
    clip = Clip.read(path, frames=model.host.frames)
    events = world.schedule(world.draw_scene(seed, SPLIT), world.draw_script(seed))
    asked = []
    for row in _varied(rows)[:PER_CLIP]:
        question, truth = (turn["value"].removeprefix("<video>\n") for turn in row["conversations"])
        with model.patches_off():
            base = model.ask(clip, question)
        asked.append(Asked(question, row["channel"], truth, str(base), str(model.ask(clip, question))))
    return Subject(path, clip, events, asked)


def _varied(rows: Sequence[dict]) -> list[dict]:
    """The first question of each channel, then the second of each, and so on."""
    turns = Counter[str]()
    order = []
    for row in rows:
        turns[row["channel"]] += 1
        order.append(turns[row["channel"]])
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


def _instructive(subject: Subject) -> tuple[bool, int, int]:
    """Sort key for the clip to draw: questions that need both senses, then many sounds, then answers that differ."""
    needs_both = any(asked.channel == "audio+video" for asked in subject.asked)
    return needs_both, len(subject.events), sum(asked.base != asked.patched for asked in subject.asked)


def _table(subjects: Sequence[Subject]) -> Table:
    table = Table(title="Questions about the clips", title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    for name, widest in (("channel", 11), ("question", 56), ("truth", 8), ("base", 10), ("patched", 10)):
        table.add_column(name, max_width=widest, no_wrap=name != "question")
    for subject in subjects:
        for asked in subject.asked:
            answers = (_marked(answer, answer == asked.truth) for answer in (asked.base, asked.patched))
            table.add_row(*(Text(shown(cell)) for cell in (asked.channel, asked.question, asked.truth)), *answers)
        table.add_section()
    return table


def _marked(answer: str, right: bool) -> Text:
    return Text(f"{'✓' if right else '✗'} {shown(answer)}", style="green" if right else "red")


def _score(subjects: Sequence[Subject], seconds: float) -> str:
    asked = [asked for subject in subjects for asked in subject.asked]
    base, patched = (sum(getattr(one, model) == one.truth for one in asked) for model in ("base", "patched"))
    return f"correct answers: base {base} of {len(asked)}, patched {patched} of {len(asked)} ({seconds:.1f} s)"


def draw(subject: Subject, target: Path) -> None:
    """Key frames and waveform of one clip on one time axis, above its questions and answers."""
    figure = Figure(figsize=(12, 6.4), dpi=150, facecolor="white")
    figure.text(
        0.045, 0.945, "A frozen video LLM, before and after a patch adds sound", size=17, color=INK, weight="bold"
    )
    figure.text(0.045, 0.905, f"{subject.path.name}: key frames, sound, and three questions", size=10, color=FAINT)
    _draw_frames(figure.add_axes((0.045, 0.625, 0.91, 0.225)), subject.clip)
    _draw_wave(figure.add_axes((0.045, 0.37, 0.91, 0.20)), subject)
    for place, asked in enumerate(subject.asked[:3]):
        _draw_answers(figure.add_axes((0.045 + 0.31 * place, 0.035, 0.29, 0.25)), asked)
    figure.savefig(target)


def _time_axis(axes: Axes) -> None:
    axes.set_xlim(-0.32, world.SECONDS + 0.27)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])


def _draw_frames(axes: Axes, clip: Clip) -> None:
    if clip.frames is None or clip.times is None:
        raise ValueError("a clip without frames cannot be drawn")
    _time_axis(axes)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    half = 0.46 * float(clip.times[-1] - clip.times[0]) / max(len(clip.times) - 1, 1)
    for frame, at in zip(clip.frames, clip.times.tolist(), strict=True):
        axes.imshow(frame.permute(1, 2, 0).numpy(), extent=(at - half, at + half, 0.12, 1), aspect="auto", zorder=2)
        axes.plot([at, at], [0, 0.12], color=FAINT, lw=1)
        axes.text(at, -0.02, f"{at:.2f} s", ha="center", va="top", size=8, color=FAINT)
    axes.set_ylim(0, 1)


def _draw_wave(axes: Axes, subject: Subject) -> None:
    _time_axis(axes)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8)
    axes.set_xlabel("seconds", size=8, color=FAINT, labelpad=1)
    axes.set_ylim(-1.1, 1.6)
    if subject.clip.audio is not None and subject.clip.rate:
        samples = subject.clip.audio.mean(0).numpy()
        loudest = max(
            float(np.abs(samples).max()), 0.1
        )  # the floor keeps the noise of a silent clip from being scaled up to full height
        low, high, at = _envelope(samples / loudest, subject.clip.rate, subject.clip.audio_start)
        axes.fill_between(at, low, high, color=SOUND, lw=0)
    for name, start in subject.events:
        axes.axvspan(start, start + sound.TONE_SECONDS, color=SOUND, alpha=0.13, lw=0)
        axes.text(start + sound.TONE_SECONDS / 2, 1.22, name, ha="center", size=11, color=SOUND, weight="bold")
    if not subject.events:
        axes.text(world.SECONDS / 2, 0.6, "no sound but faint room noise", ha="center", size=10, color=SOUND)


def _envelope(samples: np.ndarray, rate: int, start: float, bins: int = 900) -> tuple[np.ndarray, ...]:
    """Lowest and highest sample of each of `bins` stretches, and their times in seconds."""
    samples = samples[: len(samples) // bins * bins].reshape(bins, -1)
    middles = (np.arange(bins) + 0.5) * samples.shape[1] / rate + start
    return samples.min(1), samples.max(1), middles


def _draw_answers(axes: Axes, asked: Asked) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    card = FancyBboxPatch(
        (0.01, 0.02), 0.98, 0.96, boxstyle="round,pad=0,rounding_size=0.04", fc="#f5f6f9", ec="#dde0e8"
    )
    axes.add_patch(card)
    question = "\n".join(textwrap.wrap(asked.question, 36))
    axes.text(0.05, 0.91, question, size=11, color=INK, weight="bold", va="top", linespacing=1.3)
    rows = ((0.50, "truth", asked.truth), (0.32, "base", asked.base), (0.14, "patched", asked.patched))
    for height, source, answer in rows:
        colour = INK if source == "truth" else RIGHT if answer == asked.truth else WRONG
        mark = "" if source == "truth" else "  ✓" if answer == asked.truth else "  ✗"
        axes.text(0.05, height, source, size=10, color=FAINT, va="center")
        words = textwrap.shorten(answer, 24, placeholder="…") + mark
        axes.text(0.30, height, words, size=12, color=colour, va="center", weight="bold")
