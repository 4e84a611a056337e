"""OmniBench (Li et al. 2024), with the picture and the sound. The prompt is that of its inference/demo_api_call.py."""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "Please answer the following question based on the given image and audio:\n{question}.\n"
    "Please choose only one answer from the following options:\n{options}.",
    "{letter}. {text}",
    letter=True,
)
TASK = Task(
    what="a picture and the sound that belongs to it",
    senses="sound",
    files=("batch-5_1142_20240817.jsonl",),
    format="omnibench",
    questions=1142,
    metrics=("option",),
    data="https://github.com/multimodal-art-projection/OmniBench",
    licence="not stated",
    split="all",
    by=("task type", "audio type"),
    wording=ASKED,
    prompt_of="OmniBench",
    max_new_tokens=LETTER,
)
