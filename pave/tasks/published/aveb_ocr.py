"""AVEB, text in pictures: TextVQA, as SAVE has it (Sun et al. 2024). An answer is right if it is one of the ten."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="text in pictures (TextVQA)",
    senses="",
    files=("textvqa.json",),
    format="save-bench",
    questions=5000,
    metrics=("match", "contains"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=64,
)
