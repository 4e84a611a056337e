"""AVEB, and AVSSD of Audio-Visual LLM: what makes the sound in clips of VGGSound, as SAVE has it (Sun et al. 2024).
Both papers ask a judge (`--judge`).
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="what makes the sound (VGGSound)",
    senses="sound",
    files=("testdata_formatted.json",),
    format="save-bench",
    questions=847,
    metrics=("match", "f1", "contains"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=256,
)
