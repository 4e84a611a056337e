"""AVHBench (Sung-Bin et al. 2025): does the answer begin with the right one of yes and no? By kind of hallucination.
Its versions differ in the number of questions.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="seen or only heard, heard or only seen",
    senses="sound",
    files=("QA.json", "qa.json", "json/*.json"),
    format="avhbench",
    questions=None,
    metrics=("yes-no",),
    data="https://github.com/kaist-ami/AVHBench",
    licence="not stated",
    where={
        "task": (
            "Audio-driven Video Hallucination",
            "Video-driven Audio Hallucination",
            "AV Hallucination (Video)",
            "AV Hallucination (Audio)",
            "AV Matching",
        )
    },
    by=("task",),
    prompt_of="AVHBench",
    max_new_tokens=64,
)
