"""From the captions of a clip to questions and answers about it: captions of the whole, instructions, verification.

In: a `Captioned`, and somebody who answers requests. Out: `Entry`s, each kept or dropped, with the reason. All depends
on the replies alone, so going through it again with the same replies gives the same. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pave.curation.captions import Captioned
from pave.curation.config import Channel, Curation, Kind
from pave.curation.prompts import ABOUT, SCORES, Pair, Prompt, entries, pairs, scores
from pave.endpoint.client import Messages, Reply

T = TypeVar("T")
Ask = Callable[[Messages], Reply]
AGAIN = 1  # times that an unreadable reply is sent back


@dataclass(frozen=True)
class Entry:
    """Questions and answers about a channel of a clip. `why`: the reason for which they are dropped; empty: they are
    not. Without turns: what was asked for was not had. `detail`: more about the reason."""

    channel: Channel | None = None  # None: all of the clip
    kind: Kind | None = None  # None: of all kinds
    turns: tuple[Pair, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    detail: str = ""


class _Lost(Exception):
    """A reply is of no use: why, and more about it."""


def written(clip: Captioned, ask: Ask, prompts: Mapping[str, Prompt], options: Curation) -> Iterator[Entry]:
    """All entries about a clip."""
    if clip.why or not (clip.pictures or clip.sounds):
        why = ("unreadable clip", clip.why) if clip.why else ("nothing to caption", "neither pictures nor sound")
        yield Entry(why=why[0], detail=why[1])
        return
    known: dict[Channel, str] = {}
    for channel, context in _contexts(clip, known):
        try:
            known[channel] = _asked(ask, prompts[channel].messages(context), _caption)
        except _Lost as lost:
            yield Entry(channel, why=lost.args[0], detail=lost.args[1])
            continue
        for kind in options.kinds:
            yield from _instructions(known[channel], channel, kind, ask, prompts, options)


def _contexts(clip: Captioned, known: Mapping[Channel, str]) -> Iterator[tuple[Channel, str]]:
    """The channels of a clip, each with what its caption is made of; `known`: the captions so far."""
    if clip.pictures:
        yield "video", "\n".join(f"{second:.1f} s: {text}" for second, text in clip.pictures)
    if clip.sounds:
        yield "audio", "\n".join(f"{begin:.1f} to {end:.1f} s: {text}" for begin, end, text in clip.sounds)
    if "video" in known and "audio" in known:
        yield "audio+video", f"Seen: {known['video']}\nHeard: {known['audio']}"


def _instructions(
    caption: str, channel: Channel, kind: Kind, ask: Ask, prompts: Mapping[str, Prompt], options: Curation
) -> Iterator[Entry]:
    about = ABOUT[channel]
    try:
        messages = prompts[kind].messages(caption, about=about, count=str(options.each))
        found = _asked(ask, messages, pairs)
    except _Lost as lost:
        yield Entry(channel, kind, why=lost.args[0], detail=lost.args[1])
        return
    asked = [tuple(found)] if kind == "dialogue" else [(pair,) for pair in found]
    messages = prompts["verify"].messages(f"{caption}\n\n{entries(asked)}", about=about)
    try:
        given = _asked(ask, messages, partial(scores, count=len(asked)))
    except _Lost as lost:
        yield from (Entry(channel, kind, turns, {}, f"not verified: {lost.args[0]}", lost.args[1]) for turns in asked)
        return
    for turns, own in zip(asked, given, strict=True):
        low = [name for name in SCORES if own[name] < options.least]
        detail = ", ".join(f"{name} {own[name]:g}" for name in low)
        yield Entry(channel, kind, turns, own, low[0] if low else "", detail)


def _caption(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return " ".join(text.split())


def _asked(ask: Ask, messages: Messages, read: Callable[[str], T]) -> T:
    """What a reply says. One that cannot be read is sent back, with the reason."""
    for left in range(AGAIN, -1, -1):
        reply = ask(messages)
        if reply.ended == "refused":
            raise _Lost("refused", reply.text)
        try:
            if reply.ended == "cut":
                raise ValueError("it is longer than the limit of tokens")
            return read(reply.text)
        except ValueError as flaw:
            if not left:
                raise _Lost("cut" if reply.ended == "cut" else "unreadable reply", str(flaw)) from None
            remedy = f"This reply cannot be used: {flaw}. Reply again, only as required."
            messages = [*messages, {"role": "assistant", "content": reply.text}, {"role": "user", "content": remedy}]
    raise AssertionError("the last try returns or raises")
