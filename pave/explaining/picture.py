"""A picture of an explanation: key frames, sound, attention, and what each second is worth, on one axis of time.

In: what was found. Out: a figure of matplotlib, or SVG. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import StringIO
from math import isqrt
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pave.explaining.found import Deletions, Found, Reading

INK, FAINT, SOUND, CITED, LINE = "#1f2430", "#8a92a3", "#3d6fb6", "#d55e00", "#d9dce1"
LEFT, RIGHT = 0.12, 0.985  # of the width: the ends of the axis of time
BINS = 800  # of a drawn sound
WIDTH = 10  # inches


def draw(found: Found) -> Figure:
    """The figure; its rows depend on what there is."""
    rows: list[tuple[float, Callable[[Axes], None]]] = []
    if found.frames is not None:
        rows.append((0.9, lambda axes: _frames(axes, found, "key frames")))
    if found.sound is not None:
        rows.append((0.7, lambda axes: _sound(axes, found)))
    for reading in found.readings:
        maps = _maps(reading)
        if maps is not None and found.frames is not None:
            rows.append((0.9, partial(_mapped, found=found, reading=reading, maps=maps)))
        if reading.times is not None:
            rows.append((0.9, partial(_reading, reading=reading)))
    rows += [(0.9, partial(_deletions, deletions=deletions)) for deletions in found.deletions]
    heights = [height for height, _ in rows]
    figure = Figure(figsize=(WIDTH, 0.6 + 1.1 * sum(heights)), facecolor="white")
    every = figure.subplots(len(rows), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.98, bottom=0.45 / figure.get_figheight(), hspace=0.3)
    for axes, (_, fill) in zip(every, rows, strict=True):
        fill(axes)
        axes.set_xlim(*span_of(found))
        axes.tick_params(colors=FAINT, labelsize=7, labelbottom=axes is every[-1])
        axes.spines[:].set_color(LINE)
        for cited in found.cited:
            axes.axvspan(cited.start, cited.end, color=CITED, alpha=0.15, lw=0, zorder=0)
    every[-1].set_xlabel("seconds", size=8, color=FAINT)
    return figure


def svg(found: Found) -> str:
    """The figure as one element of HTML; equal explanations give equal text."""
    text = StringIO()
    with rc_context({"svg.hashsalt": "pave", "svg.fonttype": "none", "font.family": "sans-serif"}):
        draw(found).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def span_of(found: Found) -> tuple[float, float]:
    """The seconds that the axis shows."""
    times = found.key_times.tolist()
    first, last = [times[0]], [times[-1]]
    for each in found.deletions:
        first.append(float(each.windows.min()))
        last.append(float(each.windows.max()))
    half = _half(found)
    return min(min(first), times[0] - half), max(max(last), times[-1] + half, min(first) + 0.1)


def _half(found: Found) -> float:
    """Half the distance of two key frames."""
    times = found.key_times
    return float(times[-1] - times[0]) / max(1, len(times) - 1) / 2


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, size=7, color=INK, rotation=0, ha="right", va="center", labelpad=6)
    axes.yaxis.set_label_coords(-0.035, 0.5)
    axes.set_yticks([])


def _frames(axes: Axes, found: Found, label: str, over: np.ndarray | None = None) -> None:
    """The key frames; grey below maps (t h w) from 0 to 1."""
    assert found.frames is not None
    _label(axes, label)
    half = 0.94 * _half(found) or 0.5
    for i, (frame, at) in enumerate(zip(found.frames, found.key_times.tolist(), strict=True)):
        image = frame.permute(1, 2, 0).numpy()
        extent = (at - half, at + half, 0, 1)
        where: Any = {"extent": extent, "aspect": "auto", "interpolation": "nearest", "zorder": 2}
        axes.imshow(image if over is None else image.mean(-1), cmap="gray", vmin=0, vmax=255, **where)
        if over is not None:
            axes.imshow(over[i], cmap="inferno", vmin=0, vmax=1, alpha=0.6, **where)
    axes.set_ylim(0, 1)


def _sound(axes: Axes, found: Found) -> None:
    assert found.sound is not None
    _label(axes, "sound")
    samples = found.sound.numpy()
    size = max(1, len(samples) // BINS)
    parts = samples[: len(samples) // size * size].reshape(-1, size)
    at = found.sound_start + (np.arange(len(parts)) + 0.5) * size / found.rate
    axes.fill_between(at, parts.min(1), parts.max(1), color=SOUND, lw=0.5, zorder=2)
    most = max(0.1, float(np.abs(samples).max(initial=0)))
    axes.set_ylim(-1.1 * most, 1.5 * most)
    for cited in (each for each in found.cited if each.sense == "audio"):
        axes.text((cited.start + cited.end) / 2, 1.15 * most, str(cited), size=7, color=CITED, ha="center", zorder=3)


def _maps(reading: Reading) -> np.ndarray | None:
    """Maps over the picture (t h w), 0 to 1: where in a grid of side tokens was read; of a sense without one, where in
    the key frame it was added. None: neither is a grid."""
    maps, side = reading.maps, isqrt(reading.strength.shape[1])
    if reading.resampled or maps[0].numel() == 1:
        if side == 1 or side**2 != reading.strength.shape[1]:
            return None
        maps = reading.strength.unflatten(1, (side, side))
    return (maps / maps.max().clamp(min=1e-9)).numpy()


def _mapped(axes: Axes, found: Found, reading: Reading, maps: np.ndarray) -> None:
    added = reading.resampled or reading.weights.shape[2:].numel() == 1
    _frames(axes, found, f"{_name(reading)}\n{'added' if added else 'read'} where", maps)


def _reading(axes: Axes, reading: Reading) -> None:
    """The weights of the time steps (across) for each key frame (down)."""
    assert reading.times is not None
    _label(axes, f"{_name(reading)}\nread by each\nkey frame")
    weights, times = reading.by_step.numpy(), reading.times.numpy()
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.5
    edges = np.append(times - half, times[-1] + half)
    axes.pcolormesh(edges, np.arange(len(weights) + 1), weights, cmap="Blues", vmin=0, zorder=1, rasterized=True)
    axes.set_ylim(len(weights), 0)


def _name(reading: Reading) -> str:
    return " + ".join(reading.senses)


def _deletions(axes: Axes, deletions: Deletions) -> None:
    _label(axes, f"{deletions.sense}\nnats lost\nwithout")
    starts, ends = deletions.windows.numpy().T
    axes.bar((starts + ends) / 2, deletions.lost.numpy(), (ends - starts) * 0.45, color=FAINT, zorder=2)
    axes.axhline(0, color=LINE, lw=0.8)
    axes.set_ylim(min(-0.2, 1.1 * float(deletions.lost.min())), max(2.0, 1.1 * float(deletions.lost.max())))
    axes.yaxis.set_major_locator(MaxNLocator(3))
