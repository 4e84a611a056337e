"""MUSIC-AVQA (Li et al. 2022). `contains` is the score of the PAVE paper: the right answer occurs in the answer
(tools/audio/music-avqa/calculate_acc.py), by modality and by type; `match` is the strict one.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="musical performances",
    senses="sound",
    files=("json_update/avqa-test.json", "updated_avqa-test.json", "avqa-test.json"),
    format="music-avqa",
    questions=9129,
    metrics=("contains", "match"),
    data="https://github.com/GeWu-Lab/MUSIC-AVQA",
    licence="MIT (code)",
    by=("modality", "type"),
    prompt_of="PAVE",
)
