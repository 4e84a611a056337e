"""A frozen video LLM with patches: one call for users; pave/model/steps.py has the four named steps behind it.

    model = pave.load("playroom")
    model.apply_patch("audio-playroom")
    model.ask("clip.mp4", "What do you hear?")

In: media and questions. Out: answers that say which patches gave them, and what was perceived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from pave.errors import SignalError, nearest
from pave.loading.base import Place, load_base
from pave.media.clip import Clip
from pave.model.answer import Answer, answers
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.patching import Patching
from pave.model.watch import MEMORY, Show
from pave.patch.report import PatchReport

__all__ = ["Answer", "ClipFeatures", "Inputs", "PatchReport", "PatchedModel", "load"]


def load(
    base: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: Place | Mapping[str, Place] = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> PatchedModel:
    """Open a base: "playroom" (embedded, offline), a folder, or a Hub id.

    device: of all, or of each part by its path, as Hugging Face's device maps say it: "disk" is a place, too.
    quantize: "int8" or "nf4", for the linear layers of the language model. frames: key frames per clip."""
    return PatchedModel(load_base(base, dtype=dtype, device=device, quantize=quantize, frames=frames))


class PatchedModel(Patching):
    """A base, its patches, and answers."""

    def ask(
        self,
        clip: Any,
        question: str,
        *,
        patches: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        **signals: Any,
    ) -> Answer:
        """Ask one question about a clip: a path, a Clip, frames, or a picture.

        patches: names; None means all that are enabled. signals: further streams by name, as in `Clip.from_frames`;
        `audio=(samples, rate)` takes the place of the clip's own sound, `audio=None` drops it.
        """
        row = {"clip": clip, "question": question, "patches": patches, **signals}
        return self.ask_batch([row], max_new_tokens=max_new_tokens)[0]

    def ask_batch(self, rows: Sequence[Sequence[Any] | Mapping[str, Any]], *, max_new_tokens: int = 32) -> list[Answer]:
        """Ask many questions at once: (clip, question), (clip, question, patches), or a mapping of clip, question,
        patches and signals. Rows may name different patches."""
        if not len(rows):
            return []
        inputs, signals, timings = self._prepare_rows(rows)
        return answers(self, inputs, signals, timings, max_new_tokens)

    def stream(
        self,
        clip: Any,
        question: str,
        *,
        patches: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        **signals: Any,
    ) -> Iterator[str]:
        """Ask one question; pieces of the answer come as they are made. Closing the iterator ends the generation."""
        row = {"clip": clip, "question": question, "patches": patches, **signals}
        inputs, _, _ = self._prepare_rows([row])
        return self._pieces(inputs, max_new_tokens)

    def watch(
        self,
        source: Any,
        *,
        rate: int | None = None,
        patches: Sequence[str] | None = None,
        last: float | None = None,
        memory: int = MEMORY,
    ) -> Show:
        """Watch pictures and sound as they come, and ask at any moment:

            with model.watch("kitchen.mp4") as show:
                for second in show:
                    ...
                    print(show.ask("What do you hear?"))

        source: a video file, which is read progressively; or an iterable of (frames, times, samples): pictures as in
            `Clip.from_frames`, their seconds, and the samples that follow on those before, the first of them at second
            0, at `rate` Hz. None stands for no pictures or no sound.
        patches: names of those that watch; None means all that are enabled, also when it is asked.
        last: seconds before a question that it is about; None: all that has come.
        memory: bytes that pictures may take, and each sense. What is more is thinned out, evenly over the past.

        After the whole of a file, `show.ask` answers as `ask(file)` does. What it reads is equal bit by bit for sound
        of the encoder's own rate until the first piece of it is finished, after 8 to 30 seconds, as the encoder says;
        then it is equal but for rounding, since an encoder is given other lengths. It is another thing once pictures
        or senses had to be thinned out, or a resampler did not wait any longer for one of its senses.
        Patches that read sound or dense frames can watch. For LanguageBind, `ask` spreads dense frames over the whole
        clip, as PAVE's authors do; here they come twice a second from the first picture on, so that what its patches
        see is nearly the same, not equal. Feed zeros for a time without sound: None leaves the sound's clock alone."""
        return Show(self, source, rate=rate, patches=patches, last=last, memory=memory)

    def _pieces(self, inputs: Inputs, max_new_tokens: int) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.host.tokenizer, skip_prompt=True, skip_special_tokens=True)
        closed, failures = threading.Event(), []

        def work() -> None:
            try:
                halt = StoppingCriteriaList([_Closed(closed)])
                options = {"max_new_tokens": max_new_tokens, "do_sample": False, "stopping_criteria": halt}
                self.generate(inputs, streamer=streamer, **options)
            except BaseException as error:
                failures.append(error)
                streamer.end()  # wakes the reader up

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            closed.set()
            thread.join()
        if failures:
            raise failures[0]

    def _prepare_rows(
        self, rows: Sequence[Sequence[Any] | Mapping[str, Any]]
    ) -> tuple[Inputs, list[dict[str, str]], dict[str, float]]:
        """Read, encode and lay out; a clip that stands in several rows is read once, and seen once where its signals
        are its own."""
        asked = [_row(row) for row in rows]
        with self._lock:
            wanted = self._wanted([row["patches"] for row in asked], len(asked))
            senses = [s for n in dict.fromkeys(sum(wanted, ())) for s in self._found(n)[0].config.senses.values()]
        begin = time.perf_counter()
        clips: dict[Any, Clip] = {}
        for row in asked:
            given, signals = row["clip"], self._checked(row["signals"])
            if signals and not isinstance(given, str | Path | Clip):
                row["clip"] = _from_frames(given, signals)
                continue
            key = given if isinstance(given, str | Path) else id(given)
            if key not in clips:
                clips[key] = self._clip(given)
            row["clip"] = _with_signals(clips[key], signals) if signals else clips[key]
        read = time.perf_counter()
        features = self._features([row["clip"] for row in asked], senses)
        encoded = time.perf_counter()
        inputs = self.prepare(features, [row["question"] for row in asked], patches=wanted)
        signals = [_signals(inputs, clip, i) for i, clip in enumerate(features)]
        seconds = {"read": read - begin, "encode": encoded - read, "prepare": time.perf_counter() - encoded}
        return inputs, signals, seconds

    def _clip(self, clip: Any) -> Clip:
        if isinstance(clip, Clip):
            return clip
        if isinstance(clip, str | Path):
            return Clip.read(clip, frames=self.host.frames)
        return Clip.from_frames(clip)

    def _checked(self, signals: Mapping[str, Any]) -> Mapping[str, Any]:
        """Streams that were handed over; one that no applied patch reads is an error."""
        read = {encoder.spec.sense for encoder in self.encoders()} if signals else set()
        for name in signals:
            if name not in read:
                raise SignalError(f"no applied patch reads the signal {name!r}; {nearest(name, read)}")
        heard = signals.get("audio")
        pair = isinstance(heard, tuple | list) and len(heard) == 2 and isinstance(heard[1], Integral)
        if heard is not None and not pair:
            raise SignalError("audio= is a pair, (samples, rate in Hz), or None to leave the clip's own sound out")
        return signals


class _Closed(StoppingCriteria):
    """Stops a generation that nobody reads any more."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.closed.is_set(), device=input_ids.device, dtype=torch.bool)


def _row(row: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """One row of a batch as clip, question, patches and signals."""
    if not isinstance(row, Mapping):
        if not isinstance(row, tuple | list) or not 2 <= len(row) <= 3:
            got = f"{len(row)} values" if isinstance(row, tuple | list) else f"{row!r}; give a list of rows"
            raise ValueError(f"a row is (clip, question) or (clip, question, patches), got {got}")
        row = dict(zip(("clip", "question", "patches"), row, strict=False))
    signals = {key: value for key, value in row.items() if key not in ("clip", "question", "patches")}
    if "clip" not in row or not isinstance(row.get("question"), str):
        got = {key: type(value).__name__ for key, value in row.items()}
        raise ValueError(f"a row needs clip and question, a text; got {got}")
    patches = row.get("patches")
    patches = (patches,) if isinstance(patches, str) else patches
    return {"clip": row["clip"], "question": row["question"], "patches": patches, "signals": signals}


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
