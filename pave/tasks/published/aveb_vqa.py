"""AVEB, questions about pictures: GQA, as SAVE has it (Sun et al. 2024)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="questions about pictures (GQA)",
    senses="",
    files=("testdev_balanced_questions_with_images.json",),
    format="save-bench",
    questions=12577,
    metrics=("match", "contains"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=64,
)
