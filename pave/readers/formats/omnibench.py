"""OmniBench: questions about a picture and a sound that belong together, with four options (Li et al. 2024).

Lines of `{"image_path", "audio_path", "question", "options": [...], "answer": text of the right one, "task type",
"audio type", ...}`. The picture is the clip, the sound is the signal `audio`. The transcript of the sound and the
description of the picture, which the file has for models without these senses, are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pave.readers.choices import MultipleChoice
from pave.readers.sample import Sample, needs, text_of


class OmniBench(MultipleChoice):
    NEEDS = needs("image_path audio_path question options answer")
    VIDEO, OPTIONS = "image_path", "options"

    def sample(self, value: Mapping[str, Any]) -> Sample:
        sample = super().sample(value)
        facts = {key: each for key, each in sample.facts.items() if key != "audio_path"}
        return replace(sample, facts=facts, signals={"audio": text_of(value, "audio_path")}, ending="")


READER = OmniBench
