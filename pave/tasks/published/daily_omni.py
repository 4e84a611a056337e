"""Daily-Omni (Zhou et al. 2025). The prompt is that of its test_model/Qwen2.5-Omni/testmodel.py, which prints the
choices as Python prints a list.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "Your task is to accurately answer multiple-choice questions based on the given video.\n"
    "Select the single most accurate answer from the given choices.\n"
    "Question: {question}\nChoices: {options!r}\n"
    "Your answer should be a capital letter representing your choice: A, B, C, or D. Don't generate any other text.",
    "{letter}. {text}",
    letter=True,
)
TASK = Task(
    what="sound and pictures of daily life, in time",
    senses="sound",
    files=("qa.json",),
    format="daily-omni",
    questions=1197,
    metrics=("option",),
    data="https://huggingface.co/datasets/liarliar/Daily-Omni",
    licence="not stated",
    split="all",
    by=("Type", "video_duration"),
    wording=ASKED,
    prompt_of="Daily-Omni",
    max_new_tokens=LETTER,
)
