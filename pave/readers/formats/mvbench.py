"""MVBench: twenty kinds of questions about motion and time, with options, on films of other data sets (Li et al. 2024).

One file for each kind, such as `action_sequence.json`, a list of `{"video", "question", "candidates": [...], "answer":
text of the right one}`; five kinds have `start` and `end`, the seconds that are asked about. `kind` is the name of the
file. Folders of the media are those of the published archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pave.readers.choices import MultipleChoice
from pave.readers.sample import Broken, Sample, needs, text_of
from pave.text.shown import quoted

FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "object_interaction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "counterfactual_inference": "clevrer/video_validation",
    "object_shuffle": "perception/videos",
    "action_count": "perception/videos",
    "state_change": "perception/videos",
    "character_order": "perception/videos",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
}
PICTURES = "episodic_reasoning"  # whose clips are folders of pictures,
RATE = 3  # of so many a second; to a reader of pictures each lasts a second


class MvBench(MultipleChoice):
    NEEDS = needs("video question candidates answer")

    def sample(self, value: Mapping[str, Any]) -> Sample:
        sample, kind = super().sample(value), self.options.file.stem
        facts = {key: each for key, each in sample.facts.items() if key not in ("start", "end")} | {"kind": kind}
        pace, ending = (RATE, "") if kind == PICTURES else (1, ".mp4")
        return replace(sample, facts=facts, span=_span(value, pace), ending=ending)

    def video(self, value: Mapping[str, Any]) -> str:
        folder = FOLDERS.get(self.options.file.stem)
        return f"video/{folder}/{text_of(value, self.VIDEO)}" if folder else text_of(value, self.VIDEO)


def _span(value: Mapping[str, Any], pace: int) -> tuple[float, float] | None:
    """The seconds that are asked about."""
    if "start" not in value and "end" not in value:
        return None
    start, end = value.get("start"), value.get("end")
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (start, end)):
        raise Broken(f"'start' and 'end' must be seconds, got {quoted(start)} and {quoted(end)}")
    return float(start) * pace, float(end) * pace  # pyright: ignore[reportArgumentType]


READER = MvBench
