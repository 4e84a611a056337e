"""VALOR-32K (Chen et al. 2023): captions of what is seen and heard."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="captions of what is seen and heard",
    senses="sound",
    files=("desc_test.json",),
    format="valor",
    questions=3500,
    metrics=("cider", "bleu-4", "meteor", "rouge-l"),
    data="https://github.com/TXH-mercury/VALOR",
    licence="MIT",
    max_new_tokens=64,
)
