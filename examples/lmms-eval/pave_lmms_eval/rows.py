"""Requests of lmms-eval -> rows of `ask_batch`.

In: messages of a request, its document, and its generation options. Out: rows and options, as `PatchedModel.ask_batch`
takes them. Knows nothing of lmms-eval's classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pave.data import TRACKS
from pave.errors import UsageError
from pave.model.options import settings
from pave.text.shown import quoted

Message = Mapping[str, Any]
EXTRA = "pave"  # column of our own documents: further signals and tracks of a row, as JSON
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")


def turn(visuals: Iterable[Any] | None, text: str) -> list[Message]:
    """One question as messages. visuals: what `doc_to_visual` gives: paths, pictures, and decoded sounds."""
    parts = [
        {"type": "audio" if isinstance(each, str) and each.lower().endswith(SOUNDS) else "video", "url": each}
        for each in visuals or ()
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def row_of(messages: Sequence[Message], doc: Mapping[str, Any]) -> dict[str, Any]:
    """A row: the last message is the question, those before it are the dialogue, and their media are the clip."""
    roles = [each["role"] for each in messages]
    if len(roles) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        raise UsageError(f"messages of {', '.join(roles)}: give user and assistant by turns, and the user last")
    parts = [_parts(each) for each in messages]
    texts = ["\n".join(part["text"] for part in own if part["type"] == "text") for own in parts]
    row: dict[str, Any] = {"question": texts[-1], "history": list(zip(texts[:-1:2], texts[1::2], strict=True))}
    for part in (part for own in parts for part in own if part["type"] != "text"):
        name, value = _medium(part)
        if name in row:
            what = "sound" if name == "audio" else "video or picture"
            raise UsageError(f"a question of this task has more than one {what}; pave reads one")
        row[name] = value
    return row | json.loads(doc.get(EXTRA) or "{}")


def _parts(message: Message) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _medium(part: Mapping[str, Any]) -> tuple[str, Any]:
    """The name in a row, and the value, of a video, picture or sound."""
    url = part["url"]
    times = {**part, **(url if isinstance(url, Mapping) else {})}
    if any(times.get(name) is not None for name in ("start_time", "end_time", "video_start", "video_end")):
        raise UsageError("a question of this task is about a part of its video; pave reads whole files only: cut them")
    if isinstance(url, Mapping) and "array" in url:
        return "audio", (url["array"], url["sampling_rate"])
    return ("audio" if part["type"] == "audio" else "clip"), url


def heard(row: Mapping[str, Any], read: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The row with those of its signals that an applied patch reads, and the names of the others."""
    own = {"clip", "question", "history", *TRACKS}
    unread = [name for name in row if name not in own | {*read}]
    return {name: value for name, value in row.items() if name not in unread}, unread


def options_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Generation options: those of `ask_batch`, the texts at which an answer is cut, and the names of those that are of
    other models, such as `image_aspect_ratio`."""
    until = given.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(each for each in until if each)
    known = {name: value for name, value in given.items() if name in settings() and value is not None}
    if not known.get("do_sample", True):  # tasks name a temperature beside it; without sampling it has no effect
        known = {name: value for name, value in known.items() if name not in ("temperature", "top_p", "top_k")}
    if not isinstance(known.get("max_new_tokens", 1), int):
        raise UsageError(f"max_new_tokens={quoted(known['max_new_tokens'])} must be a whole number")
    others = [name for name in given if name not in settings() and name != "until"]
    return known | ({"stop_strings": list(stops)} if stops else {}), stops, others


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of `stops`."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text
