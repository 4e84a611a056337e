"""Video-ChatGPT's questions in two wordings (Maaz et al. 2024), for `--judge-aspect consistency`."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="long answers to the same question in two wordings",
    senses="",
    files=("consistency_qa.json",),
    format="video-chatgpt",
    questions=None,
    metrics=("f1", "rouge-l"),
    data="https://github.com/mbzuai-oryx/Video-ChatGPT (videos: http://activity-net.org)",
    licence="not stated",
    prompt_of="Video-ChatGPT",
)
