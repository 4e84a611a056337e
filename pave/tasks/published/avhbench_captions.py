"""AVHBench's captions of what is seen and heard (Sung-Bin et al. 2025)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="captions of what is seen and heard",
    senses="sound",
    files=("QA.json", "qa.json", "json/*.json"),
    format="avhbench",
    questions=None,
    metrics=("cider", "meteor", "rouge-l"),
    data="https://github.com/kaist-ami/AVHBench",
    licence="not stated",
    where={"task": ("AV Captioning",)},
    prompt_of="AVHBench",
    max_new_tokens=64,
)
