"""A short film of a clip for a page that stands alone: small pictures and its sound, as every browser plays them.

In: the files of a clip. Out: the bytes of a WebM file (VP8, Opus), or None: it has no pictures. Knows nothing of pages.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from einops import rearrange

from pave.data import Source
from pave.errors import MediaError, SignalError
from pave.media.clip import Clip

SECONDS, RATE, HEIGHT = 20.0, 8, 240  # of the film, at most; pictures per second; pixels, at most
SOUND = 48_000  # Hz, that of Opus
CODEC = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "300k"}


def film(source: Source) -> bytes | None:
    """The first seconds of a clip as a film."""
    try:
        size = Clip.read(source.video, frames=1, audio=False, video_track=source.video_track).report.size
        if size is None:
            return None
        scale = min(1.0, HEIGHT / size[0])
        small = (max(2, round(size[0] * scale / 2) * 2), max(2, round(size[1] * scale / 2) * 2))
        last = (source.start or 0.0) + SECONDS
        options = {"fps": RATE, "audio_rate": SOUND, "size": small, **source.options(True)}
        options["end"] = min(last, source.end or last)
        clip = Clip.read(source.video, **options)
        own = dict(source.signals)
        clip = clip.beside({"audio": own["audio"]}) if "audio" in own else clip
    except (MediaError, SignalError):
        return None
    if clip.frames is None:
        return None
    frames = rearrange(clip.frames, "t c y x -> t y x c").numpy()
    samples = None if clip.audio is None or clip.rate is None else clip.audio.mean(0).numpy()
    return _written(frames, samples, clip.rate or SOUND)


def _written(frames: np.ndarray, samples: np.ndarray | None, rate: int) -> bytes:
    """Frames uint8 (t y x 3) and sound (n,) at `rate` Hz as WebM."""
    out = BytesIO()
    with av.open(out, "w", format="webm") as container:
        video = container.add_stream("libvpx", RATE, options=CODEC)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.thread_count = 1
        track = None
        if samples is not None:
            track = container.add_stream("libopus", SOUND, layout="mono")
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")))
        container.mux(video.encode())
        if samples is not None and track is not None:
            whole = np.clip(samples[: int(SECONDS * rate)] * 32767, -32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for part in av.AudioResampler("s16", "mono", SOUND).resample(frame):
                container.mux(track.encode(part))
            container.mux(track.encode())
    return out.getvalue()
