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
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from einops import rearrange
from torch import Tensor

from pave.media.container import Track, check_file, decoded, opened, refuse, stamped, track_of
from pave.media.decode import Sound, upright
from pave.media.key_frames import Request


class Chunk(NamedTuple):
    """New pictures and sound of a stream."""

    frames: Tensor | None  # uint8 (t 3 y x)
    times: Tensor | None  # (t,) seconds
    sound: Tensor | None = None  # float32 (c n), continues the sound of earlier chunks
    rate: int = 0  # Hz
    start: float = 0.0  # second of the stream's first sample


def chunks_of(path: str, mono: bool = True) -> Generator[Chunk, None, None]:
    """The pictures of a file, one by one, each with the sound since the previous one; then the remaining sound, second
    by second. mono: average the channels."""
    check_file(path)
    track, audio = tracks(path)
    with opened(path) as film, opened(path) as noise:  # twice: pictures and sound are decoded at different positions
        origin, size, reader, scaler, second = None, {}, None, VideoReformatter(), 0.0
        for stamp, frame in stamped(film, track):
            if origin is None:
                origin, size = stamp, {"width": frame.width, "height": frame.height}
                reader = None if audio is None else SoundReader(path, noise, audio, origin * track.base, mono)
            second = float((stamp - origin) * track.base)
            picture = upright(scaler.reformat(frame, format="rgb24", **size).to_ndarray(), frame, path)
            frames = rearrange(torch.from_numpy(np.ascontiguousarray(picture)), "y x c -> 1 c y x")
            sound = (None, 0, 0.0) if reader is None else reader.until(second)
            yield Chunk(frames, torch.tensor([second], dtype=torch.float64), *sound)
        if origin is None:
            raise refuse(path, "no picture in it decodes", "the file is damaged: download or record it again")
        while reader is not None and not reader.over:
            second = max(second, reader.second) + 1
            yield Chunk(None, None, *reader.until(second))


def tracks(path: str) -> tuple[Track, int | None]:
    """The video track, and the index of the first audio track."""
    with opened(path) as container:
        films = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not films:
            raise refuse(path, "has no pictures, and a base needs them", "give a video file")
        sounds = [each.index for each in container.streams.audio if each.codec_context is not None]
        return track_of(path, films[0], container.format.name), sounds[0] if sounds else None


class SoundReader:
    """Decodes the sound of a file incrementally."""

    def __init__(self, path: str, container: Any, index: int, origin: Fraction, mono: bool) -> None:
        self.frames = decoded(container, container.streams[index])
        self.sound = Sound(Request(path, mono=mono), origin)
        self.returned = 0  # samples so far
        self.over = False  # at the end of the file

    @property
    def second(self) -> float:
        """End of the decoded sound."""
        return self.sound.begin + self.sound.seconds

    def until(self, second: float) -> tuple[Tensor | None, int, float]:
        """New sound (c n) up to about this second; its rate, and the second of the file's first sample."""
        sound: Sound = self.sound
        waves: list[np.ndarray] = []
        while not self.over and self.second <= second:
            frame = next(self.frames, None)
            if frame is None or not sound.add(frame):
                self.over = True
                break
            for place, wave in sound.pieces:
                waves += [
                    np.zeros((len(wave), place - self.returned), np.float32),
                    wave,
                ]  # gaps are filled with silence
                self.returned = place + wave.shape[1]
            sound.pieces.clear()
        if sound.rate is None:
            return None, 0, 0.0
        wave = np.concatenate(waves, 1) if waves else np.zeros((1, 0), np.float32)
        wave = np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
        return torch.from_numpy(wave), sound.rate, sound.begin
