"""Streams a media file: picture by picture, each with the sound up to it, and never more in memory.

In: the path of a video file. Out: pictures with their seconds, and sound, on the clock of `Clip.read`. Decodes in this
process, without a time limit: the caller can stop. Knows nothing of models.

t pictures, y x pixels, n samples
"""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pave.media.container import Survey, check_file, heard, opened, refuse
from pave.media.decode import shown, survey_of
from pave.media.key_frames import Mono, Request
from pave.media.sound import Sound


class Chunk(NamedTuple):
    """New pictures and sound of a stream."""

    frames: Tensor | None  # uint8 (t 3 y x)
    times: Tensor | None  # (t,) seconds
    sound: Tensor | None = None  # float32 (c n), continues the sound of earlier chunks
    rate: int = 0  # Hz
    start: float = 0.0  # second of the stream's first sample
    warnings: tuple[str, ...] = ()  # what was found wrong with the file since the previous chunk


def chunks_of(
    path: str,
    audio: bool = True,
    audio_track: int | None = None,
    video_track: int | None = None,
    mono: Mono = True,
) -> Generator[Chunk, None, None]:
    """The pictures of a file, one by one, each with the sound since the previous one; then the remaining sound, second
    by second: all of it, in a file without pictures. Without `audio`, no sound is decoded; tracks and `mono` as in
    `Clip.read`."""
    check_file(path)
    survey = survey_of(path, video_track, audio_track)
    told = [*survey.cut_short, *survey.warnings]
    if audio and len(survey.audio) > 1 and audio_track is None:
        told.append(f"{len(survey.audio)} sound tracks: audio_track={survey.heard[0]} is used")
    hears = audio and bool(survey.heard)
    if survey.video is None and not hears:
        raise refuse(path, "has no pictures, and no sound that a patch hears", "give a video, or apply a patch first")
    with opened(path) as noise:
        origin, reader, second = None, None, 0.0
        for each in shown(path, survey) if survey.video else ():
            assert survey.video is not None
            if origin is None:
                origin = each.stamp
                if hears:
                    reader = SoundReader(path, noise, survey, origin * survey.video.base, mono)
            second = float((each.stamp - origin) * survey.video.base)
            frames = rearrange(torch.from_numpy(np.ascontiguousarray(each.pixels())), "y x c -> 1 c y x")
            sound = (None, 0, 0.0) if reader is None else reader.until(second)
            yield Chunk(frames, torch.tensor([second], dtype=torch.float64), *sound, fresh(told, reader))
        if origin is None:
            if not hears:
                raise refuse(path, "no picture in it decodes", "the file is damaged: download or record it again")
            told += [f"damaged: 0 of {len(survey.packets)} coded pictures decode"] if survey.video else []
            reader = SoundReader(path, noise, survey, None, mono)
        while reader is not None and not reader.over:
            second = max(second, reader.second) + 1
            yield Chunk(None, None, *reader.until(second), fresh(told, reader))
        if origin is None and reader is not None and not reader.sound.rate:
            raise refuse(path, "nothing in it decodes", "the file is damaged: download or record it again")


def fresh(told: list[str], reader: SoundReader | None) -> tuple[str, ...]:
    """Warnings that no chunk has had yet; they are taken out of their lists."""
    lists = [told, *([] if reader is None else [reader.sound.warnings])]
    found = tuple(text for texts in lists for text in texts)
    for texts in lists:
        texts.clear()
    return found


class SoundReader:
    """Decodes the sound of a file incrementally."""

    def __init__(self, path: str, container: Any, survey: Survey, origin: Fraction | None, mono: Mono) -> None:
        self.frames = heard(container, survey.audio[survey.heard[0]], survey.shifts)
        self.sound = Sound(Request(path, mono=mono), origin, counted=survey.counted)
        self.returned = 0  # samples so far

    @property
    def over(self) -> bool:
        """Whether the file's sound has ended."""
        return self.sound.over

    @property
    def second(self) -> float:
        """End of the decoded sound."""
        return self.sound.begin + self.sound.seconds

    def until(self, second: float) -> tuple[Tensor | None, int, float]:
        """New sound (c n) up to about this second; its rate, and the second of the file's first sample."""
        sound: Sound = self.sound
        waves: list[np.ndarray] = []
        while not sound.over and self.second <= second:
            frame = next(self.frames, None)
            for place, wave in sound.finish() if frame is None else sound.add(frame):
                waves += [
                    np.zeros((len(wave), place - self.returned), np.float32),
                    wave,
                ]  # gaps are filled with silence
                self.returned = place + wave.shape[1]
        if not sound.rate:
            return None, 0, 0.0
        wave = np.concatenate(waves, 1) if waves else np.zeros((1, 0), np.float32)
        return torch.from_numpy(wave), sound.rate, sound.begin
