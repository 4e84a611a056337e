"""Questions in the forms that users pass -> prepared ones: each clip is read, encoded and laid out once.

In: rows of clip, question, patches, signals and tracks; a clip is a path, a `Clip`, frames, a picture, or features.
Out: a `Prepared`, with the signals read in each row. The sound of a file is decoded only if a patch of a row hears it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pave.ambient import neutral
from pave.data import TRACKS
from pave.encoder import Encoder, missing
from pave.errors import MediaError, SignalError, UsageError, nearest
from pave.media.clip import Clip, limit_of, sound
from pave.media.decoding import Timeout
from pave.media.warned import told, warn
from pave.model.answer import Prepared
from pave.model.call import Calls, senses_of
from pave.model.inputs import ClipFeatures, Use
from pave.model.layout import History, lay_out, perceived, refuse_history, refuse_questions
from pave.model.options import WHY, settings
from pave.patch.attached import Attached

UNASKED = "not read: the question is not about the clip, so the base answers alone"
UNTRAINED = "not read: the patch was not trained for clips without pictures"
TOY = (
    "not a clip of the Playroom: the embedded base knows toys in its room and nothing else; for real films take "
    "llava-hf/llava-onevision-qwen2-7b-ov-hf, or another video LLM, as the base"
)
PARTS = ("clip", "question", "patches", "history")  # of a row
Rows = Sequence[Sequence[Any] | Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One question."""

    clip: Any
    question: str
    patches: Sequence[str] | None  # None: all that are enabled
    history: History  # earlier turns of the same dialogue
    signals: Mapping[str, Any]  # streams passed by the caller
    tracks: Mapping[str, Any]  # of the file, as options of `Clip.read`

    @property
    def file(self) -> tuple[Any, ...]:
        """What is read: equal for rows that share it."""
        return (self.clip if isinstance(self.clip, str | Path) else id(self.clip), *self.tracks.items())


@neutral()
def prepared(calls: Calls, asked: Rows, timeout: Timeout, options: Mapping[str, Any]) -> Prepared:
    """Read, encode and lay out. A clip of several rows is read once, and encoded once unless signals are passed with
    it. Warns of what is wrong with their files. options: of generate(), checked."""
    if not isinstance(asked, Collection):
        raise UsageError(f"the rows are a {type(asked).__name__}; pass a list of rows, each (clip, question)")
    timeout = limit_of(timeout)
    rows = [row_of(row) for row in asked]
    refuse_questions(calls.host, [row.question for row in rows])  # before any clip is read
    for row in rows:
        refuse_history(calls.host, row.history)
    requested = calls.applied.uses([row.patches for row in rows], len(rows))
    uses = calls.open(requested, [row.question for row in rows])
    clips, features, seconds = perceive(calls, rows, requested, uses, timeout)
    begin = time.perf_counter()
    layout = lay_out(calls.host, features, perceived(uses, features))
    for i, (clip, own) in enumerate(zip(clips, features, strict=True)):
        if own.blind:
            refuse_unread(clip, layout.uses, i, _signals(layout.uses, own, i))
    inputs = calls.around(layout, [row.question for row in rows], [row.history for row in rows])
    signals = [{**unasked(requested, uses, i), **_signals(inputs.uses, clip, i)} for i, clip in enumerate(features)]
    seconds = {**seconds, "prepare": time.perf_counter() - begin}
    warnings = [clip.warnings for clip in features]
    return Prepared(inputs, signals, warnings, seconds, options, clips=clips, features=features)


def perceive(
    calls: Calls, rows: Sequence[Row], requested: Sequence[Use], uses: Sequence[Use], timeout: Timeout
) -> tuple[list[Clip | ClipFeatures], list[ClipFeatures], dict[str, float]]:
    """The clip of each row, its features, and the seconds of reading and encoding."""
    begin = time.perf_counter()
    clips = clips_of(calls, rows, uses, timeout)
    for i, clip in enumerate(clips):
        refuse_blind(clip, [use.attached for use in requested if use.rows[i] and use.weight])
    read = time.perf_counter()
    files = {clip.report.source: clip.report.warnings for clip in clips if isinstance(clip, Clip) and clip.again}
    warn(told(files))
    features = calls.perception.features(clips, senses_of(uses))
    if strange := [i for i, clip in enumerate(clips) if beyond_playroom(calls, clip)]:
        warn([TOY])
        for i in strange:
            features[i] = replace(features[i], warnings=(*features[i].warnings, TOY))
    pairs = [(clip, own) for clip, own in zip(clips, features, strict=True) if isinstance(clip, Clip)]
    later = [text for clip, own in pairs for text in own.warnings[len(clip.report.warnings) :]]
    warn(list(dict.fromkeys(text for text in later if text != TOY)))  # of files that were opened for an encoder
    return clips, features, {"read": read - begin, "encode": time.perf_counter() - read}


def beyond_playroom(calls: Calls, clip: Clip | ClipFeatures) -> bool:
    """Whether the embedded base is asked about pictures that are not of its world, which have its own size."""
    size = clip.report.size if isinstance(clip, Clip) else None
    return calls.host.repo == "playroom" and size not in (None, calls.host.size)


def parted(calls: Calls, others: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Signals, and options of generate(), among keyword arguments. A name that an applied patch reads is a signal."""
    senses = [each for attached in calls.applied.modules for each in attached.config.senses.values()]
    read = [value for facts in senses for value in facts.options.values()]  # which name its signal, without building it
    options = {name: value for name, value in others.items() if name in settings() and name not in read}
    return {name: value for name, value in others.items() if name not in options}, options


def row_of(row: Sequence[Any] | Mapping[str, Any]) -> Row:
    """One row, from either form."""
    if not isinstance(row, Mapping):
        if not isinstance(row, tuple | list) or not 2 <= len(row) <= 3:
            got = f"{len(row)} values" if isinstance(row, tuple | list) else f"{row!r}; pass a list of rows"
            raise UsageError(f"a row is (clip, question) or (clip, question, patches), got {got}")
        row = dict(zip(("clip", "question", "patches"), row, strict=False))
    signals = {key: value for key, value in row.items() if key not in (*PARTS, *TRACKS)}
    tracks = {name: number for name in TRACKS if (number := row.get(name)) is not None}
    nothing = row.get("clip") is None and row.get("audio") is None
    if nothing or not isinstance(row.get("question"), str):
        got = {key: type(value).__name__ for key, value in row.items()}
        raise UsageError(f"a row needs a clip and a question (str), got {got}")
    patches = row.get("patches")
    patches = (patches,) if isinstance(patches, str) else patches
    return Row(row.get("clip"), row["question"], patches, row.get("history", ()), signals, tracks)


def clips_of(calls: Calls, rows: Sequence[Row], uses: Sequence[Use], timeout: Timeout) -> list[Clip | ClipFeatures]:
    """The clip of each row, with the streams passed by the caller."""
    options = {i: reading(calls, rows, uses, i) for i, row in enumerate(rows) if isinstance(row.clip, str | Path)}
    heard = {rows[i].file for i, each in options.items() if each["audio"]}
    known: dict[Any, Clip | ClipFeatures] = {}
    clips: list[Clip | ClipFeatures] = []
    for i, row in enumerate(rows):
        given, signals = row.clip, _checked(calls, row)
        if signals and isinstance(given, ClipFeatures):
            raise UsageError(
                f"{', '.join(signals)}: features are encoded already; give signals to the clip, and encode it"
            )
        if signals and not isinstance(given, str | Path | Clip):
            clips.append(_from_frames(given, signals, timeout))
            continue
        if row.file not in known:
            known[row.file] = _read(row, calls, {**options.get(i, {}), "audio": row.file in heard}, timeout)
        clip = known[row.file]
        clips.append(clip.beside(signals, timeout=timeout) if signals and isinstance(clip, Clip) else clip)
    return clips


def reading(calls: Calls, rows: Sequence[Row], uses: Sequence[Use], place: int) -> dict[str, Any]:
    """Options of `Clip.read` for the file of a row; its sound is decoded if one of its patches hears it."""
    senses = senses_of([use for use in uses if use.rows[place]])
    audio = "audio" not in rows[place].signals and calls.perception.hears(senses)
    return {**calls.perception.reading(_encoders(calls)), "audio": audio}


def _read(row: Row, calls: Calls, options: Mapping[str, Any], timeout: Timeout) -> Clip | ClipFeatures:
    if isinstance(row.clip, ClipFeatures):
        _refuse_foreign(calls, row.clip)
    if isinstance(row.clip, Clip | ClipFeatures):
        return row.clip
    if isinstance(row.clip, str | Path):
        return Clip.read(row.clip, **options, timeout=timeout, **row.tracks)
    return Clip.from_frames(row.clip)


def _refuse_foreign(calls: Calls, features: ClipFeatures) -> None:
    """UsageError for features of another base."""
    (_, count, channels), host = features.tokens.shape, calls.host
    if not features.blind and (count, channels) != (host.tokens_per_frame, host.dim):
        cause = f"these features have {count} tokens of {channels} channels per key frame"
        cause += f", this base has {host.tokens_per_frame} of {host.dim}"
        raise UsageError(f"{cause}; encode the clip with this model: model.encode_clip(clip)")


def _checked(calls: Calls, row: Row) -> Mapping[str, Any]:
    """Streams passed by the caller; SignalError for one that no applied patch reads, or that contradicts another."""
    if row.tracks and not isinstance(row.clip, str | Path):
        name, number = next(iter(row.tracks.items()))
        raise UsageError(f"{name}={number} chooses a track of a file, and the clip is not a path; pass it to Clip.read")
    if "audio" in row.signals and "audio_track" in row.tracks:
        raise UsageError("audio_track= chooses a sound of the file, and audio= replaces it; pass one of them")
    named = ["audio"] * ("audio_track" in row.tracks) + [*row.signals]
    read = {encoder.spec.sense for encoder in _encoders(calls)} if named else set()
    for name in named:
        if name == "signals" and isinstance(row.signals[name], Mapping):
            raise SignalError("signals= is no signal; pass each by its own name: ask(clip, question, imu=...)")
        if name not in read:
            if name in settings():
                raise UsageError(f"{name} is an option of all rows: ask_batch(rows, {name}=...)")
            options = settings() - WHY.keys()
            known = read | options if get_close_matches(name, options) else read
            raise SignalError(f"no applied patch reads the signal {name!r}; {nearest(name, known)}")
    return row.signals


def _encoders(calls: Calls) -> Iterable[Encoder]:
    """The encoders of all applied patches that are installed."""
    senses = (sense for attached in calls.applied.modules for sense in attached.config.senses.values())
    return calls.perception.encoders(sense for sense in senses if not missing(sense.encoder)).values()


def _from_frames(frames: Any, signals: Mapping[str, Any], timeout: Timeout) -> Clip:
    """Frames without times, spread evenly over the sound passed with them."""
    others = {name: value for name, value in signals.items() if name != "audio"}
    own = Clip() if signals.get("audio") is None else sound(signals["audio"], timeout)
    return Clip.from_frames(frames, audio=own.audio, rate=own.rate, **others)


def unasked(requested: Sequence[Use], uses: Sequence[Use], row: int) -> dict[str, str]:
    """For every sense of a row's patches whose gate left the question to the base: that it did."""
    opened = {use.name for use in uses if use.rows[row]}
    left = [use.attached for use in requested if use.rows[row] and use.name not in opened]
    return {sense: UNASKED for attached in left for sense in attached.config.senses}


def refuse_blind(clip: Clip | ClipFeatures, patches: Sequence[Attached]) -> None:
    """MediaError for a clip without pictures that none of the patches of its row was trained for."""
    if not (clip.frames is None if isinstance(clip, Clip) else clip.blind):
        return
    if any(patch.config.sound_alone for patch in patches):
        return
    what = clip.report.source if isinstance(clip, Clip) else "the clip"
    named = ", ".join(patch.config.name for patch in patches)
    cause = f"{named}: trained with pictures only" if named else "no patch is used, and the base needs them"
    remedy = "give a film or a picture, too, or apply a patch that was trained with train.modalities"
    raise MediaError(f"{what}: has no pictures ({cause}); {remedy}")


def refuse_unread(clip: Clip | ClipFeatures, uses: Sequence[Use], row: int, signals: Mapping[str, str]) -> None:
    """MediaError for a clip without pictures of which those of its patches that were trained for it read nothing."""
    reads = [use.sensing[row] for use in uses if use.rows[row] and use.attached.config.sound_alone]
    if reads and not any(reads):
        what = clip.report.source if isinstance(clip, Clip) else "the clip"
        why = "; ".join(f"{sense} {lack}" for sense, lack in signals.items())
        raise MediaError(f"{what}: has no pictures, and nothing else of it can be read ({why}); give another file")


def _signals(uses: Sequence[Use], clip: ClipFeatures, row: int) -> dict[str, str]:
    """For every sense of a row's patches: what was read, or why nothing was."""
    signals = {}
    for use in uses:
        for sense, facts in use.attached.config.senses.items() if use.rows[row] else ():
            if clip.blind and not use.attached.config.sound_alone:
                signals[sense] = UNTRAINED
                continue
            side, outside = clip.side(facts.preprocessing, facts.align)
            if side is not None and side.present:
                signals[sense] = f"present: {len(side.x)} steps from {side.times[0]:.2f} s"
                signals[sense] += f"; {outside} more are before or after the clip and not read" if outside else ""
            elif outside:
                signals[sense] = f"absent: its {outside} steps are all before or after the clip"
            else:
                signals[sense] = clip.absent.get(facts.preprocessing, "absent: nothing in it can be read")
    return signals
