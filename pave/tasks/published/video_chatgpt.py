"""Video-ChatGPT's benchmark (Maaz et al. 2024), which a judge scores: `--judge-aspect correctness,detail,context`. Its
own figures are these scores; `f1` only shows that there are answers.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="long answers about films",
    senses="",
    files=("generic_qa.json",),
    format="video-chatgpt",
    questions=None,
    metrics=("f1", "rouge-l"),
    data="https://github.com/mbzuai-oryx/Video-ChatGPT (videos: http://activity-net.org)",
    licence="not stated",
    prompt_of="Video-ChatGPT",
)
