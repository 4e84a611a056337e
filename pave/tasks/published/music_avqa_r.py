"""MUSIC-AVQA-R (Ma et al. 2024): the questions of MUSIC-AVQA in other words, 25 times each."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="musical performances, questions rephrased",
    senses="sound",
    files=("avqa-test-headtail.json",),
    format="music-avqa",
    questions=211572,
    metrics=("contains", "match"),
    data="https://github.com/reml-group/MUSIC-AVQA-R",
    licence="not stated",
    by=("modality", "type"),
    prompt_of="PAVE",
)
