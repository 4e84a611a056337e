"""Video-MME with subtitles (Fu et al. 2024): those that are on screen at the key frames, as in PAVE's
lmms_eval/tasks/videomme_feature. A film without subtitles says so.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "This video's subtitles are listed below: \n{subtitles}\n"
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:",
    "{letter}. {text}",
    letter=True,
    subtitles="subtitle/{name}.srt",
)
TASK = Task(
    what="films of minutes to an hour, with subtitles",
    senses="subtitles",
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
