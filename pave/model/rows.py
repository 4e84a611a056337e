"""Questions as users write them -> prepared ones: clips are read, encoded and laid out, each once.

In: rows of clip, question, patches and signals; a clip is a path, a `Clip`, frames, a picture, or features. Out: a
`Prepared`, with what was perceived in each row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from pave.errors import SignalError, UsageError, nearest
from pave.media.clip import Clip
from pave.model.answer import Prepared
from pave.model.call import Calls, senses_of
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.layout import lay_out, perceived

Rows = Sequence[Sequence[Any] | Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One question."""

    clip: Any
    question: str
    patches: Sequence[str] | None  # None: all that are enabled
    signals: Mapping[str, Any]  # streams that were handed over


def prepared(calls: Calls, asked: Rows) -> Prepared:
    """Read, encode and lay out. A clip that stands in several rows is read once, and encoded once where its signals are
    its own."""
    rows = [_row(row) for row in asked]
    uses = calls.applied.uses([row.patches for row in rows], len(rows))
    begin = time.perf_counter()
    clips = _clips(calls, rows)
    read = time.perf_counter()
    features = calls.perception.features(clips, senses_of(uses))
    encoded = time.perf_counter()
    layout = lay_out(calls.host, features, perceived(uses, features))
    inputs = calls.around(layout, [row.question for row in rows])
    signals = [_signals(inputs, clip, i) for i, clip in enumerate(features)]
    seconds = {"read": read - begin, "encode": encoded - read, "prepare": time.perf_counter() - encoded}
    return Prepared(inputs, signals, seconds)


def _row(row: Sequence[Any] | Mapping[str, Any]) -> Row:
    """One row, in whichever form it was written."""
    if not isinstance(row, Mapping):
        if not isinstance(row, tuple | list) or not 2 <= len(row) <= 3:
            got = f"{len(row)} values" if isinstance(row, tuple | list) else f"{row!r}; give a list of rows"
            raise UsageError(f"a row is (clip, question) or (clip, question, patches), got {got}")
        row = dict(zip(("clip", "question", "patches"), row, strict=False))
    signals = {key: value for key, value in row.items() if key not in ("clip", "question", "patches")}
    if "clip" not in row or not isinstance(row.get("question"), str):
        got = {key: type(value).__name__ for key, value in row.items()}
        raise UsageError(f"a row needs clip and question, a text; got {got}")
    patches = row.get("patches")
    return Row(row["clip"], row["question"], (patches,) if isinstance(patches, str) else patches, signals)


def _clips(calls: Calls, rows: Sequence[Row]) -> list[Clip | ClipFeatures]:
    """The clip of each row, with the streams that were handed over."""
    known: dict[Any, Clip] = {}
    clips = []
    for row in rows:
        given, signals = row.clip, _checked(calls, row.signals)
        if signals and not isinstance(given, str | Path | Clip):
            clips.append(_from_frames(given, signals))
            continue
        key = given if isinstance(given, str | Path) else id(given)
        if key not in known:
            known[key] = _read(given, calls.host.frames)
        clips.append(_with_signals(known[key], signals) if signals else known[key])
    return clips


def _read(clip: Any, frames: int) -> Clip:
    if isinstance(clip, Clip):
        return clip
    if isinstance(clip, str | Path):
        return Clip.read(clip, frames=frames)
    return Clip.from_frames(clip)


def _checked(calls: Calls, signals: Mapping[str, Any]) -> Mapping[str, Any]:
    """Streams that were handed over; one that no applied patch reads is an error."""
    senses = [sense for attached in calls.applied.modules for sense in attached.config.senses.values()]
    read = {encoder.spec.sense for encoder in calls.perception.encoders(senses).values()} if signals else set()
    for name in signals:
        if name not in read:
            raise SignalError(f"no applied patch reads the signal {name!r}; {nearest(name, read)}")
    heard = signals.get("audio")
    pair = isinstance(heard, tuple | list) and len(heard) == 2 and isinstance(heard[1], Integral)
    if heard is not None and not pair:
        raise SignalError("audio= is a pair, (samples, rate in Hz), or None to leave the clip's own sound out")
    return signals


def _from_frames(frames: Any, signals: Mapping[str, Any]) -> Clip:
    """Frames without a clock of their own, spread over the sound that came with them."""
    others = {name: value for name, value in signals.items() if name != "audio"}
    sound, rate = signals.get("audio") or (None, None)
    return Clip.from_frames(frames, audio=sound, rate=rate, **others)


def _with_signals(clip: Clip, signals: Mapping[str, Any]) -> Clip:
    """The clip with streams that were handed over in place of its own."""
    others = {name: value for name, value in signals.items() if name != "audio"}
    clip = clip.beside(others)
    if "audio" not in signals:
        return clip
    if signals["audio"] is None:
        report = replace(clip.report, audio="left out by the caller")
        return replace(clip, audio=None, rate=None, audio_start=0.0, report=report)
    sound, rate = signals["audio"]
    heard = Clip.from_frames(audio=sound, rate=rate)
    report = replace(clip.report, audio=heard.report.audio)
    return replace(clip, audio=heard.audio, rate=heard.rate, audio_start=0.0, report=report)


def _signals(inputs: Inputs, clip: ClipFeatures, row: int) -> dict[str, str]:
    """For every sense of a row's patches: what was perceived, or why nothing was."""
    found = {}
    for use in inputs.uses:
        for sense, facts in use.attached.config.senses.items() if use.rows[row] else ():
            side = clip.sides[facts.preprocessing]
            if side is not None and side.present:
                found[sense] = f"present: {len(side.x)} steps from {side.times[0]:.2f} s"
            else:
                found[sense] = clip.absent.get(facts.preprocessing, "absent: nothing in it can be read")
    return found
