"""Claims about headers: what a file announces is known without decoding it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clips import click, counting_frames, write_clip
from PIL import Image

from pave.media.headers import announced_by, announced_by_each


def test_headers_tell_pictures_sound_and_length(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mp4", counting_frames(16), 8, click(2.0, 0.5))
    mute = write_clip(tmp_path / "mute.mp4", counting_frames(8), 8)
    wave = write_clip(tmp_path / "wave.wav", None, audio=click(1.0, 0.5), audio_codec="pcm_s16le")
    (tmp_path / "half.mp4").write_bytes(film.read_bytes()[:1000])
    (tmp_path / "scan").mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "scan" / f"{number}.png")
    names = [film, mute, wave, tmp_path / "scan", tmp_path / "half.mp4", tmp_path / "gone.mp4"]
    found = list(announced_by_each(map(str, names), workers=2))
    assert [(each.pictures, each.sound) for each in found[:4]] == [
        (True, True),
        (True, False),
        (False, True),
        (True, False),
    ]
    assert [round(each.seconds) for each in found[:4]] == [2, 1, 1, 3] and not any(each.flaw for each in found[:4])
    assert found[4].flaw.startswith("is an MP4 whose index is missing") and found[5].flaw.startswith("no such file")
    assert announced_by(str(film)) == found[0]
