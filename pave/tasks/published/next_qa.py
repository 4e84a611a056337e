"""NExT-QA (Xiao et al. 2021), with five options. The prompt is that of LLaVA-OneVision for options (lmms-eval's
egoschema and perceptiontest).
"""

from __future__ import annotations

from pave.readers.wording import LETTERED
from pave.tasks.task import LETTER, Task

TASK = Task(
    what="why and how in films of daily life",
    senses="",
    files=("nextqa/test.csv", "test.csv"),
    format="next-qa",
    questions=8564,
    metrics=("option",),
    data="https://github.com/doc-doc/NExT-QA",
    licence="MIT",
    split="test",
    by=("kind", "type"),
    wording=LETTERED,
    prompt_of="lmms-eval",
    max_new_tokens=LETTER,
)
