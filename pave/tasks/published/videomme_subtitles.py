"""Video-MME with subtitles (Fu et al. 2024): those that are on screen at the key frames, as in PAVE's
lmms_eval/tasks/videomme_feature. A film without subtitles says so.
"""

from __future__ import annotations

from dataclasses import replace

from pave.readers.wording import Wording
from pave.tasks.published import videomme

ASKED = Wording(
    "This video's subtitles are listed below: \n{subtitles}\n"
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:",
    "{letter}. {text}",
    letter=True,
    subtitles="subtitle/{name}.srt",
)
TASK = replace(videomme.TASK, what="films of minutes to an hour, with subtitles", senses="subtitles", wording=ASKED)
