"""Does a patch that was trained with and without pictures answer about sound files as it does about films?

    python benchmarks/sound_alone.py            # mat-playroom, 400 held-out clips; writes results/sound_alone.json
    python benchmarks/sound_alone.py --small    # 12 clips; writes nothing

The same questions about the same clips, once of the film and once of its sound as a .wav file, answered freely; and all
questions of the film with the sound of another clip, and without sound, as the base answers.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from study import Study

import pave
from pave.media.clip import Clip
from pave.playroom.writer import write_clips

CHANNELS = ("video", "audio", "order", "audio+video")
HEARD = ("audio", "order")  # of which no picture tells anything
SEED, CLIPS = 4, 400


def write_sounds(data: Path, target: Path) -> int:
    """The lines about sounds, with the sound of each film as a file beside it in its place; returns how many."""
    lines = []
    for line in map(json.loads, data.read_text("utf-8").splitlines()):
        if line["channel"] in HEARD:
            film = data.parent / line.pop("video")
            sound = film.with_suffix(".wav")
            if not sound.exists():
                _write_wave(film, sound)
            lines.append(json.dumps({**line, "audio": str(sound.relative_to(data.parent))}) + "\n")
    target.write_text("".join(lines), "utf-8")
    return len(lines)


def _write_wave(film: Path, sound: Path) -> None:
    clip = Clip.read(film, frames=1)
    assert clip.audio is not None and clip.rate
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(len(clip.audio))
        file.setsampwidth(2)
        file.setframerate(clip.rate)
        file.writeframes(clip.audio.T.mul(32767).round().short().numpy().tobytes())


def measure(patch: str, clips: int, folder: Path) -> dict[str, Any]:
    """Accuracy by channel and by what is given."""
    data = write_clips(folder, clips, SEED, "test", CHANNELS)
    heard = folder / "sounds.jsonl"
    write_sounds(data, heard)
    model = pave.load("playroom")
    name = model.apply_patch(patch).name

    def right(file: Path, **how: Any) -> dict[str, Any]:
        found = pave.evaluate(model, file, batch=16, **how)
        return {channel: round(score.accuracy, 4) for channel, score in found.by().items()}

    return {
        "patch": name,
        "clips": clips,
        "film": right(data),
        "sound file": right(heard),
        "film, sound of another": right(data, side="shuffled"),
        "film without sound": right(data, side="off"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", default="mat-playroom")
    parser.add_argument("--small", action="store_true", help="12 clips; writes nothing")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        found = measure(options.patch, 12 if options.small else CLIPS, Path(name))
    print(json.dumps(found, indent=1))
    if not options.small:
        Study("sound_alone").add(found["patch"], found)


if __name__ == "__main__":
    main()
