"""ActivityNet-QA (Yu et al. 2019). Its authors count equal texts; Video-ChatGPT and those after it ask a judge
(`--judge`). The prompt is that of lmms-eval at 75571cf.
"""

from __future__ import annotations

from pave.readers.wording import Wording
from pave.tasks.task import Task

TASK = Task(
    what="films of three minutes",
    senses="",
    files=("test_q.json",),
    format="activitynet-qa",
    questions=8000,
    metrics=("match", "exact", "contains"),
    data="https://github.com/MILVLG/activitynet-qa (videos: http://activity-net.org)",
    licence="MIT, non-commercial",
    by=("kind",),
    wording=Wording("{question} Answer the question using a single word or phrase.", sentence=True),
    prompt_of="lmms-eval",
    max_new_tokens=64,
)
