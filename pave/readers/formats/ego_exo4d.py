"""Ego-Exo4D, proficiency of the demonstrator (Grauman et al. 2024): one wearer's camera, up to four around.

`{"annotations": [{"take_uid", "video_paths": {"ego": ..., "exo1": ..., ...}, "proficiency_score": "Late Expert"}]}`.
The wearer's video is the clip, the others are the signal `views`, in the order of their names. The data asks no
question: `question:` replaces ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, others, text_of
from pave.text.shown import quoted

LEVELS = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
QUESTION = f"How skilled is the person at this activity? Answer with one of: {', '.join(LEVELS)}."


class EgoExo4d(Format):
    NEEDS = needs("take_uid video_paths proficiency_score")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        paths, level = value.get("video_paths"), text_of(value, "proficiency_score")
        if not isinstance(paths, dict) or not isinstance(paths.get("ego"), str):
            raise Broken(f"needs 'video_paths' with 'ego', got {quoted(paths)}")
        if level not in LEVELS:
            raise Broken(f"'proficiency_score' must be one of {', '.join(LEVELS)}, got {quoted(level)}")
        views = [paths[name] for name in sorted(paths) if name.startswith("exo")]
        facts = others(value, "video_paths")
        turns = [(self.options.question or QUESTION, level)]
        yield Sample(paths["ego"], turns, {"views": views} if views else {}, facts=facts)


READER = EgoExo4d
