"""Video-ChatGPT's questions about the order of events (Maaz et al. 2024), for `--judge-aspect temporal`."""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="long answers about the order of events",
    senses="",
    files=("temporal_qa.json",),
    format="video-chatgpt",
    questions=None,
    metrics=("f1", "rouge-l"),
    data="https://github.com/mbzuai-oryx/Video-ChatGPT (videos: http://activity-net.org)",
    licence="not stated",
    prompt_of="Video-ChatGPT",
)
