"""Films with sound as mp4: frames at a few pictures a second, AAC.

In: frames, samples. Out: a file. All have the same rates and codec settings, so that no stream parameter tells an
answer.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 16_000  # Hz
FPS = 5
CODEC = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
LOUD = 0.6  # peak of a sound in a film


def write_film(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """Frames (t y x 3), shown one after the other as long as the sound (n,) lasts."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FPS, options=CODEC)
        video.codec_context.thread_count = 1
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        track = container.add_stream("aac", RATE, layout="mono")
        track.bit_rate = 64_000
        shown = -(-len(sound) * FPS // RATE)
        for number in range(shown):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frames[number * len(frames) // shown], "rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(track.encode(frame))
        container.mux(track.encode())


def placed(
    sound: np.ndarray, seconds: float, rng: np.random.Generator, quietest: float = -3, loudest: float = -2
) -> np.ndarray:
    """A sound at a random place of so many seconds, cut if it is longer, over noise of a random power of ten."""
    length = int(seconds * RATE)
    sound = sound[:length] / max(1e-6, np.abs(sound[:length]).max()) * LOUD
    begin = int(rng.integers(length - len(sound) + 1))
    out = rng.normal(0, 10 ** rng.uniform(quietest, loudest), length)
    out[begin : begin + len(sound)] += sound
    return out.clip(-1, 1).astype(np.float32)


def varied(sound: np.ndarray, rng: np.random.Generator, tone: float = 0.12) -> np.ndarray:
    """The sound a little higher or lower, brighter or duller."""
    speed = 2 ** rng.uniform(-tone, tone)
    at = np.arange(0, len(sound) - 1, speed)
    sound = np.interp(at, np.arange(len(sound)), sound)
    tilt = rng.uniform(-0.4, 0.4)
    return sound - tilt * np.concatenate([[0.0], sound[:-1]])
