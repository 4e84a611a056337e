"""An explanation of an answer: it prints as text, plots itself, and shows itself in a notebook.

In: what was found. Knows nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pave.explaining.found import Found
from pave.text.shown import Lines, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEARLY = math.log(2)  # nats: an answer that loses these is half as likely


@dataclass(frozen=True, repr=False)
class Explanation(Found, Lines):
    """Why a model gives an answer. Attention (`readings`) shows what was read, not that it mattered; deletion has shown
    it of the seconds in `cited`."""

    def lines(self) -> list[str]:
        said = f"{shown(self.answer)} ({'; '.join(map(str, self.cited))})" if self.cited else shown(self.answer)
        lines = [said, f"  without the patch: {shown(self.without)}"]
        for each in self.cited:
            other = f"{each.other[0]:.1f}–{each.other[1]:.1f} s"
            lines.append(f"  without {each.start:.1f}–{each.end:.1f} s: {effect(each.answer, each.lost)}")
            lines.append(f"  without {other} instead: {effect(each.other_answer, each.other_lost)}")
        if self.deletions and not self.cited:
            several = any(bool((each.lost >= CLEARLY).any()) for each in self.deletions)
            lines.append(f"  {'it depends on several moments' if several else 'it depends on no second of it'}")
        for reading in self.readings:
            if reading.times is not None:
                at, senses = reading.times[int(reading.by_step.sum(0).argmax())], " + ".join(reading.senses)
                lines.append(f"  {senses} ({shown(reading.patch)}): read most at {at:.2f} s; attention is no proof")
        return lines + [f"  {shown(name)}: {shown(reason)}" for name, reason in self.missing.items()]

    def plot(self) -> Figure:
        """Key frames, sound, attention, and what each second is worth, on one axis of time."""
        from pave.explaining.picture import draw

        return draw(self)

    def _repr_html_(self) -> str:
        from pave.explaining.picture import svg

        return f"<pre>{escape(str(self))}</pre>{svg(self)}"


def effect(answer: str, lost: float) -> str:
    """What is said without some seconds, and how likely the answer with them is then."""
    return f"{shown(answer)}, {'as likely' if abs(lost) < 0.05 else f'{math.exp(-lost):.2g} times as likely'}"
