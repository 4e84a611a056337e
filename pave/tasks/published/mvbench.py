"""MVBench (Li et al. 2024): 200 questions of each of twenty kinds. The prompt is that of lmms-eval at 75571cf, with
which LLaVA-OneVision and PAVE are evaluated.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import LETTER, Task

ASKED = Wording("Question:{question}\nOption:\n{options}\nOnly give the best option.", "({letter}) {text}", letter=True)
TASK = Task(
    what="motion and time in short films",
    senses="",
    files=("json/*.json",),
    format="mvbench",
    questions=4000,
    metrics=("option",),
    data="https://huggingface.co/datasets/OpenGVLab/MVBench",
    licence="MIT (annotations)",
    by=("kind",),
    wording=ASKED,
    prompt_of="lmms-eval",
    max_new_tokens=LETTER,
)
