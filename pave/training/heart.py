"""Whether a patch knows its training clips by heart instead of using its sense.

Where each training clip has pictures of its own, a patch can learn which answer goes with which pictures. Then it gives
that answer with any signal. So some training clips are asked again with the signals of others, and compared with
held-out ones treated alike.

In: clips, and their scores. Out: shares of right answers. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pave.training.dataset import TrainingClip, shuffled
from pave.training.loss import Score

CLIPS = 64  # of the training that are asked again, at most


def familiar(clips: Sequence[TrainingClip], acts: Callable[[TrainingClip], bool], seed: int) -> list[TrainingClip]:
    """Training clips with the signals of others; none if fewer than two have any."""
    return shuffled([clip for clip in clips if acts(clip)][:CLIPS], acts, seed)


def compared(**parts: tuple[Score | None, Sequence[TrainingClip]]) -> dict[str, Any]:
    """Shares of right answers, and how many questions they are of; {} if a part has none."""
    if not all(score for score, _ in parts.values()):
        return {}
    return {
        name: {"right": score.right["all"], "questions": sum(len(clip.turns) for clip in clips)}
        for name, (score, clips) in parts.items()
        if score
    }
