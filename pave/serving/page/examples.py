"""Clips of the Playroom to try, each with its questions and their answers. No training has seen their scenes.

In: a number. Out: what can be asked about a clip, and its mp4, rendered when somebody wants it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from pave.playroom.events import FLASHES
from pave.playroom.questions import CAPTION, CHANNELS, Question, draw_questions
from pave.playroom.world import choose, draw_scene, draw_script
from pave.playroom.writer import clip_seeds, write_clip

# Clips of the first test set: several sounds, one sound several times, two within a second; and signs that flash
# between key frames, besides the sounds.
HEARD, FLASHED = (1, 4, 10, 3, 6), (9,)
SEEDS = dict(enumerate(clip_seeds(12, seed=0, split="test")))


def listed() -> list[dict[str, Any]]:
    """All examples: where their clips are, what they are about, and the questions with their answers."""
    return [
        {
            "id": str(each),
            "object": "example",
            "clip": f"/v1/examples/{each}",
            "about": about,
            "questions": _asked(each),
        }
        for about, some in (("sounds", HEARD), ("signs", FLASHED))
        for each in some
    ]


def _asked(number: int) -> list[dict[str, str]]:
    """The questions about a clip: `needs` names the senses that the answer takes."""
    seed = SEEDS[number]
    scene = draw_scene(seed, "test")
    if number in HEARD:
        questions = draw_questions(scene, draw_script(seed), CHANNELS, seed)
    else:
        rng, state = Random(f"asked {seed}"), FLASHES.draw(scene, seed)
        drawn: list[Question] = [choose(choice, rng) for choice in FLASHES.questions(scene, state)]
        questions = [each for each in drawn if each.channel != CAPTION]
    return [{"text": each.text, "answer": each.answer, "needs": each.channel} for each in questions]


@cache
def film(id: str) -> bytes | None:
    """The clip as mp4, about 100 kB; None: no such example."""
    number = next((each for each in (*HEARD, *FLASHED) if str(each) == id), None)
    if number is None:
        return None
    seed = SEEDS[number]
    scene = draw_scene(seed, "test")
    extra = {} if number in HEARD else {"fast": FLASHES.draw(scene, seed)}
    with TemporaryDirectory(prefix="pave-example-") as folder:
        path = Path(folder, "clip.mp4")
        write_clip(path, scene, draw_script(seed), seed, extra=extra)
        return path.read_bytes()
