"""AVEB, questions about films: NExT-QA, as SAVE has it (Sun et al. 2024). The candidates are listed below the question;
the prompt for them is not published.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="why and how in films (NExT-QA)",
    senses="",
    files=("nextqa_test.json",),
    format="save-bench",
    questions=1000,
    metrics=("match", "contains"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    max_new_tokens=64,
)
