"""Real media files of the Playroom: mp4 with H.264 and AAC, and questions in the training JSONL format.

In: a folder, a number of clips, a seed and a split. Out: `<split>.jsonl` and `clips/*.mp4`. Every file has the same
length, rates and codec settings, so that no stream parameter tells an answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import numpy as np

from pave.errors import DataError
from pave.playroom import draw, sound
from pave.playroom.questions import CHANNELS, Question, draw_questions, optimum_without_sound
from pave.playroom.world import FPS, SECONDS, Scene, Script, Split, draw_scene, draw_script

# x264's constant rate factor: at 64 x 64 pixels a clip takes about 60 kB. One thread and no macroblock tree, which was
# seen to write other bytes in 5 of 60 runs, are the way to the same bytes every time.
CODEC = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
WORLD = 1  # another number with every change of what is drawn, played or coded: old files are then not taken for new


def write_clip(path: Path, scene: Scene, script: Script, seed: int, audio: bool = True) -> None:
    """One clip as mp4. `audio=False` leaves out the sound track altogether."""
    frames = draw.frames(scene, np.arange(int(SECONDS * FPS)) / FPS)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FPS, options=CODEC)
        video.codec_context.thread_count = 1
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        if audio:
            track = container.add_stream("aac", sound.RATE, layout="mono")
            track.bit_rate = 64_000
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode())
        if audio:
            samples = sound.samples(scene, script, seed)
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate = sound.RATE
            frame.pts, frame.time_base = 0, Fraction(1, sound.RATE)  # without them the sound lies 64 ms late
            container.mux(track.encode(frame))
            container.mux(track.encode())


def clip_seeds(clips: int, seed: int, split: Split) -> Iterator[int]:
    """One seed a clip; no two splits or runs share one."""
    start = (crc32(f"{split} {seed}".encode()) & 0xFFFF) * 1_000_000
    yield from range(start, start + clips)


def write_clips(
    folder: str | Path, clips: int, seed: int = 0, split: Split = "train", channels: Collection[str] = CHANNELS
) -> Path:
    """Write clips and their questions; returns the JSONL file. What lies there complete is kept."""
    if clips < 1 or not set(channels):
        raise DataError(f"clips={clips}, channels={sorted(channels)}: ask for one or more")
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    seeds = list(clip_seeds(clips, seed, split))
    with ThreadPoolExecutor(2) as pool:  # the codecs release the interpreter
        lines = [line for found in pool.map(lambda s: _write(folder, s, split, channels), seeds) for line in found]
    if not lines:
        asked = ", ".join(channels)
        raise DataError(f"{folder}: not one of its {clips} clips has a question about {asked}; ask for more clips")
    target = folder / f"{split}.jsonl"
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def _write(folder: Path, seed: int, split: Split, channels: Collection[str]) -> list[dict]:
    scene, script = draw_scene(seed, split), draw_script(seed)
    name = f"clips/{split}-{seed}-{crc32(f'{WORLD} {scene} {script}'.encode()):08x}.mp4"
    if not (folder / name).is_file():
        part = folder / f"{name}.part.mp4"
        try:
            write_clip(part, scene, script, seed)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
    return [
        _line(f"{split}-{seed}-{i}", name, scene, question)
        for i, question in enumerate(draw_questions(scene, script, channels, seed))
    ]


def _line(identity: str, video: str, scene: Scene, question: Question) -> dict:
    return {
        "id": identity,
        "video": video,
        "conversations": [
            {"from": "human", "value": f"<video>\n{question.text}"},
            {"from": "gpt", "value": question.answer},
        ],
        "channel": question.channel,
        "kind": question.kind,
        "optimum": round(float(optimum_without_sound(scene, question.text)), 4),
    }
