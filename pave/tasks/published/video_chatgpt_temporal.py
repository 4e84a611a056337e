"""Video-ChatGPT's questions about the order of events (Maaz et al. 2024), for `--judge-aspect temporal`."""

from __future__ import annotations

from dataclasses import replace

from pave.tasks.published import video_chatgpt

TASK = replace(video_chatgpt.TASK, what="long answers about the order of events", files=("temporal_qa.json",))
