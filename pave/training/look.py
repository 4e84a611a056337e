"""What is measured of a patch while it trains, and when it is done.

In: scores of held-out questions, and what the base keeps. Out: figures by name. With the signals of other clips, a
patch that uses its sense does worse than with each clip's own. Knows nothing of how they are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from pave.training.loss import Score
from pave.training.retention import Retention


@dataclass(frozen=True)
class Look:
    """What is measured of a patch: on held-out questions, if there are any, and on those that need no sense."""

    own: Score | None
    other: Score | None  # with the signals of other clips
    kept: Retention

    @property
    def figures(self) -> dict[str, float]:
        """Figures by name."""
        scores = {"held-out": self.own, "shuffled": self.other}
        shares = {name: each.right["all"] for name, each in scores.items() if each}
        losses = {f"{name} loss": each.loss for name, each in scores.items() if each}
        return {**shares, **losses, "retention": self.kept.tokens}

    def compared(self, base: Score) -> dict[str, dict[str, float]]:
        """Shares of right answers by channel, of the base, of the patch, and with the signals of other clips."""
        scores = {"base": base, "patched": self.own, "shuffled": self.other}
        return {key: {name: each.right[key] for name, each in scores.items() if each} for key in base.right}
