"""Video-MME without subtitles (Fu et al. 2024). The prompt is that of PAVE's lmms_eval/tasks/videomme_feature, which
names subtitles all the same.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\n\n"
    "Answer with the option's letter from the given choices directly.",
    "{letter}. {text}",
    letter=True,
)
TASK = Task(
    what="films of minutes to an hour",
    senses="",
    files=("videomme/test-*.parquet", "test-*.parquet"),
    format="videomme",
    questions=2700,
    metrics=("option",),
    data="https://huggingface.co/datasets/lmms-lab/Video-MME",
    licence="for academic research",
    by=("duration", "task_type"),
    wording=ASKED,
    prompt_of="PAVE",
    max_new_tokens=LETTER,
)
