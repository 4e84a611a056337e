"""Lines of the JSONL that `pave-train` reads, and folders of clips with them.

In: a folder, clips with questions. Out: `NAME.jsonl` beside `clips/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from films import write_film


@dataclass(frozen=True)
class Clip:
    """A film and the questions about it."""

    name: str
    frames: np.ndarray  # (t y x 3)
    sound: np.ndarray  # (n,)
    asked: tuple[tuple[str, str], ...]  # questions with their answers
    facts: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, split: str, clips: Iterable[Clip]) -> int:
    """Write the films and `<split>.jsonl`; returns their number."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines = []
    for clip in clips:
        path = folder / "clips" / f"{split}-{clip.name}.mp4"
        write_film(path, clip.frames, clip.sound)
        for question, answer in clip.asked:
            turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
            video = path.relative_to(folder).as_posix()
            lines.append({"id": clip.name, "video": video, **clip.facts, "conversations": turns})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return len(lines)
