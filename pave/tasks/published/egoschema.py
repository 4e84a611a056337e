"""EgoSchema (Mangalam et al. 2023): the 500 questions whose answers are published. The prompt is that of lmms-eval at
75571cf.
"""

from __future__ import annotations

from pave.readers.wording import LETTERED
from pave.tasks.task import LETTER, Task

TASK = Task(
    what="three minutes of a wearer's camera",
    senses="",
    files=("questions.json",),
    format="egoschema",
    questions=500,
    metrics=("option",),
    data="https://github.com/egoschema/EgoSchema",
    licence="not stated",
    split="published answers",
    by=(),
    wording=LETTERED,
    prompt_of="lmms-eval",
    max_new_tokens=LETTER,
)
