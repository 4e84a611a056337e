"""Perception Test (Patraucean et al. 2023), its questions with options. The prompt is that of lmms-eval at 75571cf."""

from __future__ import annotations

from pave.readers.wording import LETTERED
from pave.tasks.task import LETTER, Task

TASK = Task(
    what="memory, physics and more in filmed scenes",
    senses="",
    files=("mc_question_valid.json",),
    format="perception-test",
    questions=19140,
    metrics=("option",),
    data="https://github.com/google-deepmind/perception_test",
    licence="CC BY 4.0",
    split="valid",
    by=("area", "reasoning"),
    wording=LETTERED,
    prompt_of="lmms-eval",
    max_new_tokens=LETTER,
)
