"""Questions in the forms that users pass -> prepared ones: each clip is read, encoded and laid out once.

In: rows of clip, question, patches and signals; a clip is a path, a `Clip`, frames, a picture, or features. Out: a
`Prepared`, with the signals read in each row.
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
from pave.model.layout import lay_out, perceived, refuse_questions

Rows = Sequence[Sequence[Any] | Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One question."""

    clip: Any
    question: str
    patches: Sequence[str] | None  # None: all that are enabled
    signals: Mapping[str, Any]  # streams passed by the caller


def prepared(calls: Calls, asked: Rows) -> Prepared:
    """Read, encode and lay out. A clip of several rows is read once, and encoded once unless signals are passed with
    it."""
    rows = [_row(row) for row in asked]
    refuse_questions(calls.host, [row.question for row in rows])  # before any clip is read
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
    """One row, from either form."""
    if not isinstance(row, Mapping):
        if not isinstance(row, tuple | list) or not 2 <= len(row) <= 3:
            got = f"{len(row)} values" if isinstance(row, tuple | list) else f"{row!r}; pass a list of rows"
            raise UsageError(f"a row is (clip, question) or (clip, question, patches), got {got}")
        row = dict(zip(("clip", "question", "patches"), row, strict=False))
    signals = {key: value for key, value in row.items() if key not in ("clip", "question", "patches")}
    if "clip" not in row or not isinstance(row.get("question"), str):
        got = {key: type(value).__name__ for key, value in row.items()}
        raise UsageError(f"a row needs a clip and a question (str), got {got}")
    patches = row.get("patches")
    return Row(row["clip"], row["question"], (patches,) if isinstance(patches, str) else patches, signals)


def _clips(calls: Calls, rows: Sequence[Row]) -> list[Clip | ClipFeatures]:
    """The clip of each row, with the streams passed by the caller."""
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
    """Streams passed by the caller; SignalError for one that no applied patch reads."""
    senses = [sense for attached in calls.applied.modules for sense in attached.config.senses.values()]
    read = {encoder.spec.sense for encoder in calls.perception.encoders(senses).values()} if signals else set()
    for name in signals:
        if name not in read:
            raise SignalError(f"no applied patch reads the signal {name!r}; {nearest(name, read)}")
    audio = signals.get("audio")
    pair = isinstance(audio, tuple | list) and len(audio) == 2 and isinstance(audio[1], Integral)
    if audio is not None and not pair:
        raise SignalError("audio= must be a pair (samples, rate in Hz), or None to drop the clip's own sound")
    return signals


def _from_frames(frames: Any, signals: Mapping[str, Any]) -> Clip:
    """Frames without times, spread evenly over the sound passed with them."""
    others = {name: value for name, value in signals.items() if name != "audio"}
    sound, rate = signals.get("audio") or (None, None)
    return Clip.from_frames(frames, audio=sound, rate=rate, **others)


def _with_signals(clip: Clip, signals: Mapping[str, Any]) -> Clip:
    """The clip with its streams replaced by those the caller passed."""
    others = {name: value for name, value in signals.items() if name != "audio"}
    clip = clip.beside(others)
    if "audio" not in signals:
        return clip
    if signals["audio"] is None:
        report = replace(clip.report, audio="left out by the caller")
        return replace(clip, audio=None, rate=None, audio_start=0.0, report=report)
    sound, rate = signals["audio"]
    own = Clip.from_frames(audio=sound, rate=rate)
    report = replace(clip.report, audio=own.report.audio)
    return replace(clip, audio=own.audio, rate=own.rate, audio_start=0.0, report=report)


def _signals(inputs: Inputs, clip: ClipFeatures, row: int) -> dict[str, str]:
    """For every sense of a row's patches: what was read, or why nothing was."""
    signals = {}
    for use in inputs.uses:
        for sense, facts in use.attached.config.senses.items() if use.rows[row] else ():
            side = clip.sides[facts.preprocessing]
            if side is not None and side.present:
                signals[sense] = f"present: {len(side.x)} steps from {side.times[0]:.2f} s"
            else:
                signals[sense] = clip.absent.get(facts.preprocessing, "absent: nothing in it can be read")
    return signals
