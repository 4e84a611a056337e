"""Real media files for tests: arrays in, an mp4 (mkv, ts, m4a, avi ...) out, written by PyAV.

    write_clip(tmp_path / "a.mp4", frames, fps=25, audio=wave, rate=48000)

Legend: t frames, y x pixels. Frames are uint8 (t y x 3); sound is float (samples,) or (channels, samples) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS = 60000  # ticks per second of every video track: whole for 24, 25, 30, 29.97, 50, 60 fps, and MPEG-4 allows 65535


def counting_frames(count: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Frames (t y x 3) that say their own number in eight grey blocks, readable after lossy coding by `number`."""
    height, width = size
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1  # (t 8)
    row = np.repeat(bits, -(-width // 8), axis=1)[:, :width] * 200 + 28
    return np.broadcast_to(row[:, None, :, None], (count, height, width, 3)).astype(np.uint8).copy()


def number(frame: np.ndarray) -> int:
    """The number that a frame (3 y x) of `counting_frames` shows."""
    blocks = np.array_split(np.asarray(frame).mean((0, 1)), 8)
    return sum(1 << k for k, block in enumerate(blocks) if block.mean() > 128)


def click(seconds: float, at: float, rate: int = 48000, length: float = 0.02) -> np.ndarray:
    """Silence with one short 1 kHz tone: sound whose place on the clock can be measured."""
    time = np.arange(round(seconds * rate)) / rate
    return np.where((time >= at) & (time < at + length), 0.8 * np.sin(2 * np.pi * 1000 * time), 0.0).astype(np.float32)


def write_clip(
    path: str | Path,
    frames: np.ndarray | None,
    fps: float = 25,
    audio: np.ndarray | None = None,
    rate: int = 48000,
    *,
    times: Sequence[float] | None = None,
    start: float = 0.0,
    audio_start: float | None = None,
    more_audio: Sequence[np.ndarray] = (),
    rotation: int = 0,
    codec: str = "h264",
    audio_codec: str = "aac",
    format: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write one media file. `times` (seconds) makes its frame rate variable; `start` shifts video and sound."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        video = None
        if frames is not None:
            video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
            video.width, video.height = frames.shape[2], frames.shape[1]
            video.pix_fmt = "yuv420p" if codec not in ("png", "mjpeg") else {"png": "rgb24", "mjpeg": "yuvj420p"}[codec]
            video.codec_context.time_base = video.time_base = Fraction(1, TICKS)
            if rotation:
                video.set_display_rotation(rotation)
        tracks = [*([] if audio is None else [audio]), *more_audio]
        streams = [container.add_stream(audio_codec, rate=rate) for _ in tracks]
        for stream, track in zip(streams, tracks, strict=True):
            stream.layout = "mono" if track.ndim == 1 else {1: "mono", 2: "stereo", 6: "5.1"}[len(track)]
        if video is not None and frames is not None:
            seconds = np.arange(len(frames)) / fps if times is None else np.asarray(times)
            for picture, moment in zip(frames, seconds, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = round((moment + start) * TICKS), Fraction(1, TICKS)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        for stream, track in zip(streams, tracks, strict=True):
            write_track(container, stream, track, rate, start if audio_start is None else audio_start)
    return Path(path)


def write_track(container, stream, track: np.ndarray, rate: int, start: float) -> None:
    """Encode one sound track in blocks that the codec accepts."""
    block = stream.codec_context.frame_size or 1024
    waves = np.atleast_2d(track).astype(np.float32)
    for offset in range(0, waves.shape[1], block):
        piece = np.ascontiguousarray(waves[:, offset : offset + block])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = offset + round(start * rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
