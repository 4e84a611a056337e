"""The clip of the README and the drawing of its way through PAVE.

    python docs/make_pictures.py

In: the synthetic Playroom, its base and `audio-playroom`. Out: examples/room.mp4 (only if it is missing) and
docs/images/way.png. Frames, spectrum, segments and answers in the drawing are measured when it is drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

import pave
from pave.encoder import load_encoder
from pave.playroom import sound, world, writer

ROOT = Path(__file__).parents[1]
CLIP, PICTURE = ROOT / "examples" / "room.mp4", ROOT / "docs" / "images" / "way.png"
PATCH = ROOT / "patches" / "audio-playroom" / "patch.safetensors"
SEED, SPLIT = 52_665_000_046, "test"  # a beep, a bell and a drum, while a ball changes its colour
QUESTION, TRUTH = "what colour is the ball when you hear the bell?", "red"
INK, FAINT, RIGHT, WRONG, SOUND, FUSION = "#1f2430", "#7b8190", "#1b7f4d", "#b3412f", "#3d6fb6", "#8a5cb8"
LEFT, WIDTH = 0.165, 0.545  # of the time axis in the figure


def write_room() -> None:
    """The clip as `pave playroom` makes it, in 37 kB instead of 100: a repository keeps it for ever."""
    writer.CODEC = {"crf": "28", "preset": "veryslow", "x264-params": "mbtree=0"}
    writer.write_clip(CLIP, world.draw_scene(SEED, SPLIT), world.draw_script(SEED), SEED)


def draw() -> None:
    model = pave.load("playroom")
    report = model.apply_patch("audio-playroom")
    clip = pave.Clip.read(CLIP, frames=model.host.frames)
    patched = str(model.ask(clip, QUESTION))
    with model.patches_off():
        base = str(model.ask(clip, QUESTION))
    sense = model.attached()[0].config.senses["audio"]
    side = load_encoder(sense.encoder, **sense.options).encode(clip)
    assert side is not None and clip.frames is not None and clip.times is not None
    assert clip.audio is not None and clip.rate is not None

    figure = Figure(figsize=(12, 5.9), dpi=150, facecolor="white")
    whole = figure.add_axes((0, 0, 1, 1))
    whole.set_axis_off()
    whole.set(xlim=(0, 1), ylim=(0, 1))
    times = clip.times.numpy()
    half = 0.45 * (times[-1] - times[0]) / (len(times) - 1)
    low, high = times[0] - half - 0.05, times[-1] + half + 0.05

    def lane(bottom: float, height: float) -> Axes:
        axes = figure.add_axes((LEFT, bottom, WIDTH, height))
        axes.set_axis_off()
        axes.set(xlim=(low, high), ylim=(0, 1))
        return axes

    frames, tokens, fuse = lane(0.82, 0.14), lane(0.605, 0.14), lane(0.46, 0.135)
    spectrum, wave = lane(0.335, 0.115), lane(0.085, 0.165)
    for picture, at in zip(clip.frames, times, strict=True):
        pixels = picture.permute(1, 2, 0).numpy()
        frames.imshow(pixels, extent=(at - half, at + half, 0, 1), aspect="auto")
        for y, x in np.ndindex(*model.host.grid):
            rows, columns = (pixels.shape[i] // model.host.grid[i] for i in (0, 1))
            colour = pixels[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns].mean((0, 1)) / 255
            wide, tall = 2 * half / model.host.grid[1], 1 / model.host.grid[0]
            corner = (at - half + wide * (x + 0.08), 1 - tall * (y + 0.92))
            tokens.add_patch(Rectangle(corner, 0.84 * wide, 0.84 * tall, fc=colour, lw=0))
    for axes in (frames, tokens):
        axes.set(xlim=(low, high), ylim=(0, 1))
    edges = np.concatenate([[low], (times[1:] + times[:-1]) / 2, [high]])
    for at, begin, end in zip(times, edges[:-1], edges[1:], strict=True):
        gap = 0.012
        corners = [(begin + gap, 0), (end - gap, 0), (at + half, 1), (at - half, 1)]
        fuse.add_patch(Polygon(corners, closed=True, fc=FUSION, alpha=0.13, lw=0))
        fuse.text(at, 0.5, "+", ha="center", va="center", size=15, color=FUSION, weight="bold")
    bands = side.x[:, 0, 0, :].numpy()
    at = side.times.numpy()
    bands = (bands - bands.min()) / (bands.max() - bands.min())
    hop = float(at[1] - at[0])
    extent = (at[0] - hop / 2, at[-1] + hop / 2, 0, 1)
    spectrum.imshow(bands.T[::-1], extent=extent, aspect="auto", cmap="Blues", interpolation="nearest")
    for edge in edges[1:-1]:
        spectrum.axvline(edge, color="white", lw=2.5)
    spectrum.set(xlim=(low, high), ylim=(0, 1))
    samples = clip.audio.mean(0).numpy()
    samples = samples[: len(samples) // 900 * 900].reshape(900, -1) / np.abs(samples).max()
    when = clip.audio_start + (np.arange(900) + 0.5) * samples.shape[1] / clip.rate
    wave.fill_between(when, 0.5 + 0.42 * samples.min(1), 0.5 + 0.42 * samples.max(1), color=SOUND, lw=0)
    for name, start in world.schedule(world.draw_scene(SEED, SPLIT), world.draw_script(SEED)):
        middle = start + sound.TONE_SECONDS / 2
        whole.text(LEFT + WIDTH * (middle - low) / (high - low), 0.048, name, ha="center", size=11, color=SOUND)

    for y, title, where in (
        (0.895, "8 key frames", "media"),
        (0.68, "visual tokens", "bases"),
        (0.53, "fusion adds", "fusion, patch"),
        (0.395, "side tokens", "encoders"),
        (0.17, "sound", "media"),
    ):
        colour = FUSION if "fusion" in title else INK
        whole.text(0.145, y + 0.012, title, ha="right", va="center", size=12.5, color=colour, weight="bold")
        whole.text(0.145, y - 0.026, where, ha="right", va="center", size=10, color=FAINT, family="monospace")
    _arrow(whole, (LEFT + WIDTH / 2, 0.813), (LEFT + WIDTH / 2, 0.756), "vision tower, frozen")
    _arrow(whole, (LEFT + WIDTH / 2, 0.262), (LEFT + WIDTH / 2, 0.322), "sound encoder, frozen")

    _arrow(whole, (LEFT + WIDTH + 0.008, 0.675), (0.765, 0.675), "")
    _box(whole, (0.77, 0.595, 0.205, 0.16), "#eef0f4", "#c9cdd8")
    whole.text(0.8725, 0.70, "language model", ha="center", va="center", size=12.5, color=INK, weight="bold")
    whole.text(0.8725, 0.645, "frozen, with the LoRA of the patch", ha="center", va="center", size=9.5, color=FAINT)
    whole.text(
        0.8725,
        0.905,
        "“what colour is the ball\nwhen you hear the bell?”",
        ha="center",
        va="center",
        size=11,
        color=INK,
    )
    _arrow(whole, (0.8725, 0.855), (0.8725, 0.763), "")
    _arrow(whole, (0.8725, 0.587), (0.8725, 0.507), "")
    _box(whole, (0.77, 0.28, 0.205, 0.22), "#ffffff", "#c9cdd8")
    for y, who, answer in ((0.44, "base", base), (0.34, "patched", patched)):
        right = answer == TRUTH
        whole.text(0.787, y, who, va="center", size=11.5, color=FAINT)
        whole.text(
            0.868,
            y,
            f"{answer} {'✓' if right else '✗'}",
            va="center",
            size=15,
            color=RIGHT if right else WRONG,
            weight="bold",
        )
    facts = f"the patch audio-playroom:\n{report.params:,} parameters, {PATCH.stat().st_size / 1e6:.2f} MB"
    whole.text(0.8725, 0.17, facts, ha="center", va="center", size=9.5, color=FAINT, linespacing=1.5)
    figure.savefig(PICTURE)
    print(f"{PICTURE}: base {base!r}, patched {patched!r}, truth {TRUTH!r}")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], words: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=FAINT, lw=1.4))
    axes.text(start[0] + 0.012, (start[1] + end[1]) / 2, words, va="center", size=9.5, color=FAINT)


def _box(axes: Axes, place: tuple[float, float, float, float], face: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=0.012"
    axes.add_patch(FancyBboxPatch(place[:2], *place[2:], boxstyle=style, fc=face, ec=edge, mutation_aspect=2))


if __name__ == "__main__":
    if not CLIP.exists():
        write_room()
    draw()
