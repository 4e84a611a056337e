"""AVEB, dialogue: the last question after the others with their true answers, as SAVE has it (Sun et al. 2024). Its
paper asks a judge (`--judge`).
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="a dialogue about sound and pictures at home",
    senses="sound",
    files=("avsd_textformat_subset.json",),
    format="save-bench",
    questions=500,
    metrics=("match", "f1", "contains"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    turns="last",
    max_new_tokens=256,
)
