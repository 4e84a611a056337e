"""SQA3D (Ma et al. 2023): the situation and the question are the prompt. Exact matches after LEO's cleaning, by the
first word of the question.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="questions from within a scanned room",
    senses="depth",
    files=("v1_balanced_questions_test_scannetv2.json",),
    format="sqa3d",
    questions=3519,
    metrics=("em", "em-refined"),
    data="https://github.com/SilongYong/SQA3D (scans: http://www.scan-net.org)",
    licence="CC BY 4.0",
    by=("kind",),
    prompt_of="PAVE",
)
