"""Daily-Omni: questions about sound and pictures of daily life, with four options (Zhou et al. 2025).

A list of `{"video_id", "Question", "Choice": ["A. ...", ...], "Answer": "B", "Type", "video_category",
"video_duration"}`. The clip is `<video_id>/<video_id>_video.mp4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pave.readers.choices import MultipleChoice
from pave.readers.sample import needs, text_of


class DailyOmni(MultipleChoice):
    NEEDS = needs("video_id Question Choice Answer")
    VIDEO, QUESTION, OPTIONS, ANSWER = "video_id", "Question", "Choice", "Answer"
    RIGHT, LABELLED = "letter", True

    def video(self, value: Mapping[str, Any]) -> str:
        return f"{text_of(value, self.VIDEO)}_video"


READER = DailyOmni
