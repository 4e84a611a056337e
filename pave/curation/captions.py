"""Captions of what is seen and heard in a clip, from transformers models that are chosen by name.

In: a clip's files and the names of captioners. Out: a `Captioned`: a line per picture with its second, and per segment
of the sound. A captioner is whatever transformers has a pipeline for: models that describe pictures or answer about
them, that write down sounds or speech, or that classify. Knows nothing of who reads the captions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from pave.curation.config import Curation
from pave.data import Source
from pave.errors import EncoderError, MediaError
from pave.features.worker import size_of
from pave.media.clip import Clip
from pave.media.resampling import resample

SURE = 0.1  # probability of a class that is told; the likeliest is told in any case
SHORTEST = 0.1  # seconds of a segment
CLASSIFIED, WRITTEN = 10, 30  # seconds that classifiers (AST, HTS-AT) and Whisper read: they cut off the rest
ONE = Lock()  # tokenizers and models are not made for several threads


@dataclass(frozen=True)
class Captioned:
    """What captioners say of a clip. `why`: what is wrong with it; empty: nothing."""

    pictures: Sequence[tuple[float, str]] = ()  # seconds, caption
    sounds: Sequence[tuple[float, float, str]] = ()  # from, to, caption
    alone: bool = False  # it has no pictures
    why: str = ""

    @classmethod
    def kept(cls, value: Mapping[str, Any]) -> Captioned:
        """As it was written."""
        pictures, sounds = ([tuple(each) for each in value[name]] for name in ("pictures", "sounds"))
        return cls(pictures, sounds, bool(value["alone"]), str(value["why"]))  # pyright: ignore[reportArgumentType]


def key_of(options: Curation, name: str, source: Source) -> str:
    """Of a clip's captions: everything that they depend on."""
    facts = [options.pictures, options.sounds, options.frames, options.segments, options.asked, options.longest]
    clip = [name, size_of(source), source.tracks, source.signals if "audio" in dict(source.signals) else None]
    return sha256(json.dumps([facts, clip]).encode()).hexdigest()


def caption(options: Curation, clip: tuple[str, Source]) -> str:
    """The `Captioned` of a clip with a name, as JSON: the unit of work."""
    name, source = clip
    try:
        found = _captioned(options, _read(options, source))
    except MediaError as error:
        found = Captioned(why=str(error).replace(str(source), name))
    return json.dumps({"clip": name, **asdict(found)})


def _read(options: Curation, source: Source) -> Clip:
    hears = bool(options.sounds)
    clip = Clip.read(source.video, frames=options.frames if options.pictures else 1, **source.options(hears))
    return clip.beside({"audio": named}) if hears and (named := dict(source.signals).get("audio")) else clip


def _captioned(options: Curation, clip: Clip) -> Captioned:
    """One line for each picture and each segment, whatever the number of captioners."""
    pictures, sounds = [], []
    if clip.frames is not None and clip.times is not None and options.pictures:
        shown = [Image.fromarray(frame.numpy()) for frame in rearrange(clip.frames, "t c y x -> t y x c")]
        told = [
            _captioner(name, "pictures").of_pictures(shown, options.asked, options.longest) for name in options.pictures
        ]
        pictures = [(round(t, 2), "; ".join(each)) for t, *each in zip(clip.times.tolist(), *told, strict=True)]
    if clip.audio is not None and clip.rate and clip.audio.shape[1] >= SHORTEST * clip.rate:
        spans, parts = zip(*_segments(clip, options.segments), strict=True)
        told = [_captioner(name, "sounds").of_sounds(parts, clip.rate) for name in options.sounds]
        sounds = [(*span, "; ".join(each)) for span, *each in zip(spans, *told, strict=True)]
    return Captioned(pictures, sounds, alone=clip.frames is None)


def _segments(clip: Clip, count: int) -> Iterator[tuple[tuple[float, float], torch.Tensor]]:
    """Equal parts (n,) of the sound, each with its seconds; fewer of a short sound."""
    assert clip.audio is not None and clip.rate
    sound = clip.audio.mean(0)
    count = min(count, max(1, int(len(sound) / clip.rate / SHORTEST)))
    edges = torch.linspace(0, len(sound), count + 1, dtype=torch.float64).long().tolist()
    for first, last in pairwise(edges):
        seconds = [round(clip.audio_start + edge / clip.rate, 2) for edge in (first, last)]
        yield (seconds[0], seconds[1]), sound[first:last]


class Captioner:
    """A transformers pipeline that says what is in a picture or a sound."""

    def __init__(self, name: str, task: str) -> None:
        from transformers import pipeline

        model, _, revision = name.partition("@")
        options: dict[str, Any] = {"model_kwargs": {"use_safetensors": True}, "trust_remote_code": False}
        self.pipe: Any = pipeline(task, model=model, revision=revision or None, **options)  # pyright: ignore
        self.classifies = task.endswith("classification")

    def of_pictures(self, pictures: Sequence[Image.Image], asked: str, longest: int) -> list[str]:
        """What it says of each picture."""
        with ONE:
            if self.classifies:
                return [_likeliest(self.pipe(each)) for each in pictures]
            if not getattr(self.pipe.processor, "chat_template", None):
                return [self._told(self.pipe(images=each, text="", max_new_tokens=longest)) for each in pictures]
            content = {"type": "text", "text": asked}
            turns = [[{"role": "user", "content": [{"type": "image", "image": each}, content]}] for each in pictures]
            return [self._told(self.pipe(text=turn, return_full_text=False, max_new_tokens=longest)) for turn in turns]

    def of_sounds(self, parts: Sequence[torch.Tensor], rate: int) -> list[str]:
        """What it says of each part (n,) of a sound, at `rate` Hz."""
        own = self.pipe.feature_extractor.sampling_rate
        with ONE:
            return [self._heard(resample(part[None], rate, own)[0], own) for part in parts]

    def _heard(self, samples: torch.Tensor, rate: int) -> str:
        """What it says of all windows (n,) of a part, without repetitions."""
        window = (CLASSIFIED if self.classifies else WRITTEN) * rate
        windows = samples.chunk(math.ceil(len(samples) / window))
        return "; ".join(dict.fromkeys(self._heard_at_once(each.numpy(), rate) for each in windows))

    def _heard_at_once(self, samples: np.ndarray, rate: int) -> str:
        if not samples.any():
            return "silence"  # of which models that write down speech make something up
        told = self.pipe({"raw": samples, "sampling_rate": rate})
        return _likeliest(told) if self.classifies else _one_line(told["text"])

    @staticmethod
    def _told(found: Any) -> str:
        while isinstance(found, list):
            found = found[0]
        return _one_line(found["generated_text"])


def _likeliest(classes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(each["label"] for place, each in enumerate(classes) if not place or each["score"] >= SURE)


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "nothing"


def refuse_unknown(options: Curation) -> None:
    """EncoderError for a captioner that cannot be had."""
    for kind in ("pictures", "sounds"):
        for name in getattr(options, kind):
            _captioner(name, kind)


@cache
def _captioner(name: str, kind: str) -> Captioner:
    """A captioner, loaded once in a process."""
    from transformers import AutoConfig

    model, _, revision = name.partition("@")
    try:
        config = AutoConfig.from_pretrained(model, revision=revision or None, trust_remote_code=False)
        classifies = str((config.architectures or [""])[0]).endswith("Classification")
        tasks = {"pictures": ("image-text-to-text", "image-classification")}
        tasks |= {"sounds": ("automatic-speech-recognition", "audio-classification")}
        return Captioner(name, tasks[kind][classifies])
    except (OSError, ValueError, KeyError, ImportError) as error:
        cause = " ".join(str(error).split())
        remedy = "name a folder or a model of the Hub that transformers has a pipeline for"
        raise EncoderError(f"captioner of {kind} {name!r}: cannot be loaded ({cause}); {remedy}") from None
