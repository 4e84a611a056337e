"""A picture of a run: the loss of its steps, and what was measured of held-out questions.

In: losses and looks. Out: a PNG. The distance between held-out questions with the signals of their clips and with those
of others is what the patch gains from its sense. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from pave.files.atomic import replacing

NAME = "curves.png"
INK, FAINT, OWN, OTHER, KEPT = "#1f2430", "#b9bec9", "#1b7f4d", "#b3412f", "#3d6fb6"
SMOOTH = 0.05  # of all steps: the window of the smoothed loss
# Line in a picture: name of the figure, label, colour, style. The dashed ones show what lies under them.
ABOVE = (("held-out loss", "held-out", OWN, "-"), ("shuffled loss", "held-out, signals of other clips", OTHER, "--"))
BELOW = (
    ("held-out", "held-out, right answers", OWN, "-"),
    ("shuffled", "held-out, signals of other clips", OTHER, "--"),
    ("retention", "what the base keeps of its own answers", KEPT, "-"),
)


def draw(
    file: Path, title: str, losses: Sequence[float], looks: Sequence[Mapping[str, float]], base: float | None = None
) -> None:
    """Draw a run. `base`: accuracy on the held-out questions without the patch. FileError if it cannot be written."""
    from matplotlib.figure import Figure  # takes half a second, and most runs need it only at their end
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6), dpi=120, facecolor="white", layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.set_title(title, loc="left", color=INK)
    above.plot(range(1, len(losses) + 1), losses, color=FAINT, linewidth=0.8)
    above.plot(range(1, len(losses) + 1), _smoothed(losses), color=INK, label="training")
    for axes, lines in ((above, ABOVE), (below, BELOW)):
        for name, label, colour, style in lines:
            if points := [(look["step"], look[name]) for look in looks if name in look]:
                axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3.5, label=label)
        axes.grid(color=FAINT, alpha=0.4, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    if base is not None:
        below.axhline(base, color=INK, linestyle=":", linewidth=1, label="held-out, base")
    above.set_ylabel("loss")
    above.set_ylim(bottom=0)
    below.set_ylabel("share")
    below.set_ylim(-0.02, 1.02)
    below.set_xlabel("step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.legend(frameon=False, fontsize=8)
    with replacing(file) as content:
        figure.savefig(content, format="png")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Each value, averaged with those shortly before it."""
    width = max(1, round(SMOOTH * len(values)))
    sums = [0.0, *accumulate(values)]
    begins = (max(0, place - width) for place in range(1, len(sums)))
    return [(sums[end] - sums[begin]) / (end - begin) for end, begin in enumerate(begins, 1)]
