"""AVQA (Yang et al. 2022): what is heard and seen in clips of VGGSound, with four choices. The PAVE authors published
no script for it; the choices are listed below the question, and the answer is the text of one.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="everyday sounds and scenes",
    senses="sound",
    files=("val_qa.json",),
    format="avqa",
    questions=None,
    metrics=("match", "contains"),
    data="https://mn.cs.tsinghua.edu.cn/avqa (videos: VGGSound)",
    licence="not stated",
    split="val",
    by=("question_relation", "question_type"),
)
