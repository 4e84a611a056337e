"""Video-ChatGPT's questions in two wordings (Maaz et al. 2024), for `--judge-aspect consistency`."""

from __future__ import annotations

from dataclasses import replace

from pave.tasks.published import video_chatgpt

TASK = replace(
    video_chatgpt.TASK, what="long answers to the same question in two wordings", files=("consistency_qa.json",)
)
