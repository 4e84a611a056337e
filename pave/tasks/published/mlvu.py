"""MLVU, the seven types with options of its development set (Zhou et al. 2024). The score is the mean over the types,
as its authors have it. The prompt is that of their evaluation/multiple_choice_evaluation and of lmms-eval at 75571cf.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording(
    "Question: {question}\nOptions:\n{options}\nOnly give the best option.\nBest option: (",
    "({letter}) {text}",
    letter=True,
)
TASK = Task(
    what="films of minutes to hours",
    senses="",
    files=("json/[1-7]_*.json", "data/[1-7]_*.json", "[1-7]_*.json"),
    format="mlvu",
    questions=2174,
    metrics=("option",),
    data="https://huggingface.co/datasets/MLVU/MVLU",
    licence="CC BY-NC-SA 4.0",
    split="dev",
    by=("question_type",),
    balanced="question_type",
    wording=ASKED,
    prompt_of="MLVU",
    max_new_tokens=LETTER,
)
