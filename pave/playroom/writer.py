"""Real media files of the Playroom: mp4 with H.264 and AAC, and questions in the training JSONL format.

In: a folder, a number of clips, a seed and a split. Out: `<split>.jsonl`, `clips/*.mp4`, and beside a clip the files of
further senses where questions are about them. Every file has the same length, rates and codec settings, so that no
stream parameter reveals an answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np

from pave.errors import DataError
from pave.files.atomic import creating, write_text
from pave.playroom import distances, draw, events, matches, mixed, sound
from pave.playroom.questions import CHANNELS, Question, draw_questions, optimum_without_sound
from pave.playroom.senses import INSTEAD, SOUNDING, draw_more, draw_states
from pave.playroom.world import FPS, Scene, Script, Split, draw_scene, draw_script

# x264's constant rate factor: a clip of 64 x 64 pixels takes about 60 kB. One thread and no macroblock tree make the
# bytes reproducible; with the tree, 5 of 60 runs wrote different bytes.
CODEC = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
QUIET = Script("quiet", ())
WORLD = (
    2  # raise with every change of pixels, samples or encoding: file names depend on it, so old files are not reused
)


def write_clip(
    path: Path, scene: Scene, script: Script, seed: int, audio: bool = True, extra: Mapping[str, Any] | None = None
) -> None:
    """One clip as mp4. `audio=False` leaves out the sound track; `extra`: the states of further senses, some of which
    are visible or audible in the film."""
    frames, extra = draw.frames(scene, draw.pictures()), extra or {}
    if "fast" in extra:
        events.flash(frames, scene, extra["fast"])
    if mixed.BOTH in extra:
        events.flash(frames, scene, extra[mixed.BOTH].seen)
        script = extra[mixed.BOTH].heard
    if "depth" in extra:
        distances.show(frames, scene, draw.pictures())
    for state in (extra[name] for name in ("match", "conflict") if name in extra):
        matches.show(frames, scene, state)
        script = state.heard
    write_film(path, frames, sound.samples(scene, script, seed, extra.get("speech")) if audio else None)


def write_film(path: Path, frames: np.ndarray, samples: np.ndarray | None = None) -> None:
    """Frames (t y x 3) and sound (n,) as mp4."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FPS, options=CODEC)
        video.codec_context.thread_count = 1
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        if samples is not None:
            track = container.add_stream("aac", sound.RATE, layout="mono")
            track.bit_rate = 64_000
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode())
        if samples is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate = sound.RATE
            frame.pts, frame.time_base = 0, Fraction(1, sound.RATE)  # without them the sound is 64 ms late
            container.mux(track.encode(frame))
            container.mux(track.encode())


def clip_seeds(clips: int, seed: int, split: Split) -> Iterator[int]:
    """One seed per clip, disjoint for different splits and seeds."""
    start = (crc32(f"{split} {seed}".encode()) & 0xFFFF) * 1_000_000
    yield from range(start, start + clips)


def write_clips(
    folder: str | Path,
    clips: int,
    seed: int = 0,
    split: Split = "train",
    channels: Collection[str] = CHANNELS,
    replace: bool = True,
) -> Path:
    """Write clips and their questions; returns the JSONL file. Complete clips in the folder are reused. `replace`:
    whether a JSONL file with other lines is overwritten or an error."""
    if clips < 1 or not set(channels):
        raise DataError(f"clips={clips}, channels={sorted(channels)}: request one or more of each")
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    seeds = list(clip_seeds(clips, seed, split))
    with ThreadPoolExecutor(2) as pool:  # the codecs release the interpreter
        lines = [line for found in pool.map(lambda s: _write(folder, s, split, channels), seeds) for line in found]
    if not lines:
        asked = ", ".join(channels)
        raise DataError(f"{folder}: none of its {clips} clips has a question about {asked}; request more clips")
    target = folder / f"{split}.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if not replace and target.exists() and target.read_bytes() != text.encode():
        raise DataError(f"{target}: exists with other content; choose another folder, or delete it")
    write_text(target, text)
    return target


def _write(folder: Path, seed: int, split: Split, channels: Collection[str]) -> list[dict]:
    scene = draw_scene(seed, split)
    states = draw_states(scene, channels, seed)
    instead = [states[sense] for sense in INSTEAD if sense in states]
    script = QUIET if instead else draw_script(seed)
    shown = [states["fast"]] if "fast" in states else []
    shown += ["with cards"] if "depth" in states else []
    shown += instead
    content = " ".join(map(str, (WORLD, scene, script, *shown)))
    name = f"clips/{split}-{seed}-{crc32(content.encode()):08x}.mp4"
    for part in _new(folder / name):
        write_clip(part, scene, script, seed, extra=states)
    signals = {sense: WRITERS[sense](folder, scene, state, seed) for sense, state in states.items() if sense in WRITERS}
    # no questions or captions about sounds if they are replaced, or if only further senses are asked about
    silent = bool(instead) or (bool(states) and SOUNDING.isdisjoint(channels))
    asked = draw_questions(scene, script, {"video"} & set(channels) if silent else channels, seed)
    drawn = [(question, {"optimum": optimum_without_sound(scene, question.text)}) for question in asked]
    drawn += draw_more(scene, states, channels, seed)
    return [_line(f"{split}-{seed}-{i}", name, signals, *each) for i, each in enumerate(drawn)]


def _new(target: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, once, if `target` does not exist; renamed to `target` when complete."""
    if not target.exists():
        with creating(target) as part:
            yield part


def _views(folder: Path, scene: Scene, state: Script, seed: int) -> list[str]:
    """The videos of the further cameras, without sound."""
    name = f"views/{seed}-{crc32(f'{WORLD} {scene} {state}'.encode()):08x}"
    for part in _new(folder / name):
        part.mkdir()
        for camera, film in enumerate(events.further_views(scene, state, seed)):
            write_film(part / f"{camera}.mp4", film)
    return [f"{name}/{camera}.mp4" for camera in range(events.CAMERAS)]


def _scan(folder: Path, scene: Scene, state: distances.Distances, seed: int) -> str:
    name = f"scans/{seed}-{crc32(f'{WORLD} {scene} {state}'.encode()):08x}"
    for part in _new(folder / name):
        distances.write(part, scene, state, seed)
    return name


def _sensor(folder: Path, scene: Scene, state: Script, seed: int) -> str:
    name = f"imu/{seed}-{crc32(f'{WORLD} {scene} {state}'.encode()):08x}.npy"
    for part in _new(folder / name):
        np.save(part, events.sensor_rows(scene, state, seed))
    return name


WRITERS = {"views": _views, "depth": _scan, "imu": _sensor}


def _line(
    identity: str, video: str, signals: dict[str, Any], question: Question, scores: Mapping[str, Fraction]
) -> dict:
    return {
        "id": identity,
        "video": video,
        **({"signals": signals} if signals else {}),
        "conversations": [
            {"from": "human", "value": f"<video>\n{question.text}"},
            {"from": "gpt", "value": question.answer},
        ],
        "channel": question.channel,
        "kind": question.kind,
        **{name: round(float(score), 4) for name, score in scores.items()},
    }
