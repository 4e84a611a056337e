"""ShareGPT: `conversations` as LLaVA's, with lists of media, `videos`, `images` and `audios`, and perhaps a `system`.

As LLaMA-Factory and ms-swift read it: `{"conversations": [{"from", "value"}], "videos": ["a.mp4"]}`. A system prompt is
not used: a base has its own, and it stays among the facts of a question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, one_medium, others, paired
from pave.text.shown import quoted

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")


class Sharegpt(Format):
    NEEDS = needs("videos conversations", "images conversations")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        turns, system = without_system(value.get("conversations"), "from")
        facts = others(value, "conversations", "videos", "images", "audios") | ({"system": system} if system else {})
        pairs = paired(turns, "conversations", "from", "value", ASKS, ANSWERS)
        video, _ = one_medium(value, "videos", "images")
        yield Sample(video, pairs, sounds(value.get("audios")), facts=facts)


def without_system(turns: Any, speaker: str) -> tuple[Any, Any]:
    """Turns without a system prompt at their beginning, and that prompt."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return (turns[1:], first) if isinstance(first, dict) and first.get(speaker) == "system" else (turns, None)


def sounds(audios: Any) -> dict[str, Any]:
    """The signal of a list of sounds; without a list, the video's own is heard."""
    if audios is None or audios == []:
        return {}
    if isinstance(audios, list) and len(audios) == 1:
        return {"audio": audios[0]}
    raise Broken(f"'audios' must be a list of one path, got {quoted(audios)}")


READER = Sharegpt
