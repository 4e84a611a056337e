"""MSRVTT-QA (Xu et al. 2017). Audio-Visual LLM asks a judge (`--judge`); the strict match is that of its authors."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="questions made from captions of MSR-VTT",
    senses="sound",
    files=("MSRVTT-QA/test_qa.json", "test_qa.json"),
    format="msrvtt-qa",
    questions=72821,
    metrics=("match", "contains"),
    data="https://github.com/xudejing/video-question-answering",
    licence="not stated",
    max_new_tokens=64,
)
