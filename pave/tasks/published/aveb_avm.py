"""AVEB, matching: does the sound belong to the picture or film? As SAVE has it (Sun et al. 2024)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="whether sound and picture belong together",
    senses="sound",
    files=("audiovisualmatching_combined.json",),
    format="save-bench",
    questions=1000,
    metrics=("yes-no",),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=64,
)
