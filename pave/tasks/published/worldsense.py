"""WorldSense (Hong et al. 2025), with sound. The prompt is that which its authors have in VLMEvalKit, in one turn."""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "Carefully watch this video and pay attention to every detail. "
    "Based on your observations, select the best option that accurately addresses the question.\n"
    "These are the frames of a video and the corresponding audio. "
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n"
    "Question: {question}\n{options}\nAnswer:",
    "{letter}. {text}",
    letter=True,
)
TASK = Task(
    what="scenes that need sound and pictures together",
    senses="sound",
    files=("worldsense_qa.json",),
    format="worldsense",
    questions=3172,
    metrics=("option",),
    data="https://huggingface.co/datasets/honglyhly/WorldSense",
    licence="not stated",
    split="all",
    by=("domain", "task_type"),
    wording=ASKED,
    prompt_of="WorldSense",
    max_new_tokens=LETTER,
)
