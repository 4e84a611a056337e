"""Video-MME: questions about short, medium and long films, with four options (Fu et al. 2024).

The rows of the published table: `{"videoID", "duration", "domain", "sub_category", "task_type", "question_id",
"question", "options": ["A. ...", ...], "answer": "C"}`. `duration` is short, medium or long.
"""

from __future__ import annotations

from pave.readers.choices import MultipleChoice
from pave.readers.sample import needs


class VideoMme(MultipleChoice):
    NEEDS = needs("videoID question options answer task_type")
    VIDEO, OPTIONS, RIGHT, LABELLED = "videoID", "options", "letter", True


READER = VideoMme
