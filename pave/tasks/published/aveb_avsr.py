"""AVEB, speech with pictures: How2, as SAVE has it (Sun et al. 2024)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="speech with pictures (How2)",
    senses="sound",
    files=("how2_test.json",),
    format="save-bench",
    questions=531,
    metrics=("wer",),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=256,
)
