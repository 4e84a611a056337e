"""Messages: `messages` with roles, and lists of media, as ms-swift, LLaMA-Factory and TRL read them.

`{"messages": [{"role": "user", "content": "<video>What do you hear?"}, {"role": "assistant", "content": "A kettle."}],
"videos": ["a.mp4"]}`. A content may also be a list of parts, as in Hugging Face's chat templates, of which one names
the clip: `{"type": "video", "video": "a.mp4"}`. A system prompt is not used, and stays among the facts of a question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pave.readers.formats.sharegpt import sounds, without_system
from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, one_medium, others, paired
from pave.text.shown import quoted

MEDIA = {"video": "videos", "image": "images", "audio": "audios"}  # types of a part, and the lists they belong to


class Messages(Format):
    NEEDS = needs("messages")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        turns, system = without_system(value.get("messages"), "role")
        media: dict[str, Any] = {name: value.get(name) or [] for name in MEDIA.values()}
        if isinstance(turns, list):
            turns = [_joined(turn, media) for turn in turns]
        pairs = paired(turns, "messages", "role", "content", ("user",), ("assistant",))
        facts = others(value, "messages", *MEDIA.values()) | ({"system": system} if system else {})
        video, _ = one_medium(media if any(media.values()) else value, "videos", "images")
        yield Sample(video, pairs, sounds(media["audios"]), facts=facts)


def _joined(turn: Any, media: dict[str, Any]) -> Any:
    """A turn whose parts are one text; their media are added to the lists."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn
    texts = []
    for part in turn["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in MEDIA:
            named = part.get(kind, part.get("path", part.get("url")))
            listed = media[MEDIA[kind]]
            if named is not None:  # else it is a placeholder of a medium in the lists
                media[MEDIA[kind]] = [*(listed if isinstance(listed, list) else [listed]), named]
        else:
            raise Broken(f"expected a part of type text, {', '.join(MEDIA)}, got {quoted(part)}")
    return turn | {"content": "\n".join(texts)}


READER = Messages
