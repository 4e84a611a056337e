"""The frozen networks: the vision tower of a base, and side-channel encoders, each built once.

In: clips; questions alone. Out: `ClipFeatures`; what the base makes of a question. Knows nothing of patches and files.

n questions, t key frames, d channels of a visual token in the language model
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, groupby
from typing import Any

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.base import Host, Visual
from pave.config import SenseConfig
from pave.encoder import Encoder, load_encoder, mixed
from pave.errors import SignalError
from pave.media.clip import Clip, Signal
from pave.model.inputs import ClipFeatures

QUESTIONS = 512  # remembered at once
TOGETHER = 64  # questions of one length that are read at once


class Perception:
    """A base's vision tower, and the encoders that have been used so far."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._built: dict[str, Encoder] = {}
        self._questions: dict[str, Tensor] = {}
        self._lock = threading.Lock()  # threads that need the same encoder build it once

    def encoder(self, sense: SenseConfig) -> Encoder:
        """The frozen encoder of a sense."""
        key = f"{sense.encoder} {sorted(sense.options.items())}"
        with self._lock:
            if key not in self._built:
                self._built[key] = load_encoder(sense.encoder, **sense.options).on(self.host)
            return self._built[key]

    def encoders(self, senses: Iterable[SenseConfig | Encoder]) -> dict[str, Encoder]:
        """The frozen encoders of senses, each once, by `spec.preprocessing`."""
        built = [sense if isinstance(sense, Encoder) else self.encoder(sense) for sense in senses]
        return {encoder.spec.preprocessing: encoder for encoder in built}

    def hears(self, senses: Iterable[SenseConfig | Encoder]) -> bool:
        """Whether one of the senses reads sound; otherwise the sound of files is not decoded."""
        return any(encoder.hears for encoder in self.encoders(senses).values())

    def reading(self, encoders: Iterable[Encoder]) -> dict[str, Any]:
        """Options of `Clip.read` for the key frames of the base, and for what these encoders read."""
        encoders = list(encoders)
        size = self.host.size if all(encoder.hears for encoder in encoders) else None  # others may look at the pictures
        return {"frames": self.host.frames, "size": size, "mono": mixed(encoders)}

    @neutral()
    @torch.no_grad()
    def encode(
        self, clips: Sequence[Clip], senses: Iterable[SenseConfig | Encoder], chunk: int | None = None
    ) -> list[ClipFeatures]:
        """Features of clips: one vision pass for all, one pass of each encoder per clip. `chunk` bounds the frames of
        one vision pass."""
        for clip in clips:
            if not isinstance(clip, Clip):
                raise SignalError(f"got {clip!r} as a clip; pass Clip.read(path), or Clip.from_frames(frames)")
        encoders = self.encoders(senses)
        clips = [_opened(clip, encoders) for clip in clips]
        pictured = [clip for clip in clips if not _blind(clip)]
        pixels = [self.host.pixels(clip) for clip in pictured]
        visual = self.host.encode(pixels, [self._times(clip) for clip in pictured], chunk) if pictured else None
        rows = count()
        sensed = [self.sense(clip, encoders.values()) for clip in clips]
        pairs = zip(clips, sensed, strict=True)
        return [each if visual is None or _blind(clip) else _seeing(each, visual, next(rows)) for clip, each in pairs]

    @neutral()
    @torch.no_grad()
    def sense(self, clip: Clip, senses: Iterable[SenseConfig | Encoder]) -> ClipFeatures:
        """Features of a clip without those of the vision tower, which have 0 channels; `see` adds them. A clip without
        pictures has no others, and key frames spread evenly over its sound."""
        encoders = self.encoders(senses)
        clip = _opened(clip, encoders)
        sides = {key: encoder.encode(clip) for key, encoder in encoders.items()}
        absent = {key: encoders[key].lacks(clip) for key, side in sides.items() if side is None}
        times = self.host.merged(self._times(clip))
        nothing = torch.zeros(len(times), self.host.tokens_per_frame, 0)
        sensors = frozenset(key for key, encoder in encoders.items() if not encoder.hears)
        return ClipFeatures(nothing, nothing, times, sides, absent, None, clip.report.warnings, sensors)

    @neutral()
    @torch.no_grad()
    def see(self, features: ClipFeatures, pictures: Tensor, times: Tensor) -> ClipFeatures:
        """The features of `sense` with those of the vision tower, of `Host.pictures` (t 3 y x) at these seconds (t,).
        Together they are the bits of `encode`."""
        return _seeing(features, self.host.encode([self.host.pixels(Clip(pictures))], [times]), 0)

    @neutral()
    @torch.no_grad()
    def reads(self, question: str) -> Tensor:
        """What the base alone makes of a question, before any clip: the mean of its last hidden states (d,), float32 on
        the CPU. The last questions are remembered."""
        found = self._questions.get(question)
        if found is None:
            found = self._read([self.host.encode_text(question)])[0]
            if len(self._questions) >= QUESTIONS:
                self._questions.clear()
            self._questions[question] = found
        return found

    @neutral()
    @torch.no_grad()
    def reads_many(self, questions: Sequence[str]) -> Tensor:
        """The same of many questions (n d), up to rounding: those of one length are read together."""
        texts = [self.host.encode_text(question) for question in questions]
        rows = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        alike = (list(group) for _, group in groupby(rows, lambda row: len(texts[row])))
        parts = [group[first : first + TOGETHER] for group in alike for first in range(0, len(group), TOGETHER)]
        found = torch.cat([self._read([texts[row] for row in part]) for part in parts])
        return found[torch.tensor([*chain(*parts)]).argsort()]

    def _read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor(texts, device=self.host.device)
        with self.host.running("language model"):
            hidden = self.host.language_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.float().mean(1).cpu()

    def features(
        self, clips: Sequence[ClipFeatures | Clip], senses: Iterable[SenseConfig | Encoder]
    ) -> list[ClipFeatures]:
        """Features of clips; those already encoded are returned as they are, and a repeated clip is encoded once."""
        fresh = {id(clip): clip for clip in clips if not isinstance(clip, ClipFeatures)}
        encoded = dict(zip(fresh, self.encode(list(fresh.values()), senses), strict=True)) if fresh else {}
        return [clip if isinstance(clip, ClipFeatures) else encoded[id(clip)] for clip in clips]

    def _times(self, clip: Clip) -> Tensor:
        """Seconds of the key frames (t,)."""
        if _blind(clip):
            return torch.linspace(*_span(clip), self.host.frames, dtype=torch.float64)
        if clip.times is None:
            raise SignalError("the clip's frames have no times; pass Clip.from_frames(frames, times=seconds)")
        return clip.times


def _blind(clip: Clip) -> bool:
    """Whether a clip has no pictures, but something else that is on a clock."""
    return clip.frames is None and _span(clip) != (0, 0)


def _span(clip: Clip) -> tuple[float, float]:
    """The seconds of a clip's sound, or of its sensors; zeros if it has neither. A stream, whose sound is not held, has
    them as times without pictures."""
    if clip.frames is None and clip.times is not None:
        return clip.times[0].item(), clip.times[-1].item()
    if clip.audio is not None and clip.rate:
        return clip.audio_start, clip.audio_start + clip.audio.shape[1] / clip.rate
    times = [each.times for each in clip.signals.values() if isinstance(each, Signal) and len(each.times)]
    return (min(each.min().item() for each in times), max(each.max().item() for each in times)) if times else (0, 0)


def _opened(clip: Clip, encoders: Mapping[str, Encoder]) -> Clip:
    return clip.opened({encoder.spec.sense for encoder in encoders.values()})


def _seeing(features: ClipFeatures, visual: Visual, row: int) -> ClipFeatures:
    """Features with those of the vision tower in a row of a batch."""
    count = int(visual.frames[row])
    parts = (visual.vision, visual.tokens, visual.times, visual.deep)
    vision, tokens, times, deep = (None if part is None else part[row, :count] for part in parts)
    return replace(features, vision=vision, tokens=tokens, times=times, deep=deep)
