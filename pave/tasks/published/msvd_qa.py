"""MSVD-QA (Xu et al. 2017). Its clips have no sound. Audio-Visual LLM asks a judge (`--judge`)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="questions made from captions of MSVD",
    senses="",
    files=("MSVD-QA/test_qa.json", "test_qa.json"),
    format="msvd-qa",
    questions=13157,
    metrics=("match", "contains"),
    data="https://github.com/xudejing/video-question-answering",
    licence="not stated",
    max_new_tokens=64,
)
