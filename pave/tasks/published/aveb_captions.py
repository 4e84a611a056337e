"""AVEB, captions of pictures: Flickr30k, as SAVE has it (Sun et al. 2024)."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="captions of pictures (Flickr30k)",
    senses="",
    files=("flickr30k_captions.json",),
    format="save-bench",
    questions=1000,
    metrics=("cider", "meteor"),
    data="https://huggingface.co/datasets/tsinghua-ee/SAVEBench",
    licence="not stated",
    prompt_of="SAVE",
    max_new_tokens=64,
)
