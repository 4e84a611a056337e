"""VATEX (Wang et al. 2019): captions, of which each clip has ten. Which split Audio-Visual LLM reports is not stated;
this is the public test.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="captions of ten seconds",
    senses="sound",
    files=("vatex_public_test_english_v1.1.json",),
    format="vatex",
    questions=6000,
    metrics=("cider", "bleu-4", "meteor", "rouge-l"),
    data="https://eric-xw.github.io/vatex-website",
    licence="CC BY 4.0",
    split="public test",
    max_new_tokens=64,
)
