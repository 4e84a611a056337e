"""A folder of pictures is a clip: its key frames are its own pictures, and those of a scan are the scan's views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, number
from PIL import Image
from scans import room, write_scannet

from pave.errors import MediaError
from pave.media.clip import Clip
from pave.media.folder import evenly
from pave.media.rgbd import RGBD
from pave.media.rgbd import evenly as views_evenly


def write_pictures(folder: Path, count: int, ending: str = ".png") -> Path:
    folder.mkdir()
    for place, frame in enumerate(counting_frames(count)):
        Image.fromarray(frame).save(folder / f"frame{place}{ending}")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def numbers(clip: Clip) -> list[int]:
    assert clip.frames is not None
    return [number(frame.numpy()) for frame in clip.frames]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frames": 3}, [0, 6, 11]),
        ({"frames": 12}, list(range(12))),
        ({"frames": 32}, list(range(12))),
        ({"frames": None}, list(range(12))),
        ({"frames": 1}, [0]),
        ({"fps": 0.5}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 2, "end": 2}, [0, 0, 1]),
        ({"frames": None, "start": 2.5, "end": 5.5}, [3, 4, 5]),
        ({"at": [7.9, 0.0, 99.0]}, [7, 0, 11]),
    ],
)
def test_pictures_are_a_second_each_in_the_order_of_their_numbers(tmp_path: Path, options, expected) -> None:
    clip = Clip.read(write_pictures(tmp_path / "a", 12), **options)
    assert numbers(clip) == expected
    assert clip.times is not None and clip.audio is None
    if "at" not in options and "fps" not in options:
        assert clip.times.tolist() == expected
    assert (clip.report.pictures, clip.report.seconds, clip.report.size) == (12, 12.0, (64, 64))
    assert "no sound" in clip.report.audio and not clip.report.warnings


def test_no_frames_and_other_instants_are_read_again(tmp_path: Path) -> None:
    clip = Clip.read(write_pictures(tmp_path / "a", 5, ".webp"), frames=0)
    assert clip.frames is None
    assert [number(frame.numpy()) for frame in clip.passing([0.5, 3.0, 3.5])] == [0, 3, 3]


def test_photographs_are_upright(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a/1.jpg", exif=exif)
    assert Clip.read(tmp_path / "a").report.size == (16, 8)


@pytest.mark.parametrize("frames", [2, 3, 7, 32])
def test_key_frame_i_of_a_scan_is_its_view_i(tmp_path: Path, frames: int) -> None:
    """Also where a view has lost its pose, which neither has."""
    scan = write_scannet(tmp_path / "scene", room(7))
    lost = sorted((scan / "pose").iterdir())[2]
    lost.write_text("-inf " * 16)
    clip, views = Clip.read(scan, frames=frames), RGBD.read(scan, views_evenly(frames))
    assert clip.frames is not None and len(views) == min(frames, 6)
    assert torch.equal(clip.frames, views.rgb)


def test_both_choose_the_same_places_of_any_count() -> None:
    for frames in (1, 2, 3, 8, 31, 32, 63, 64):
        for count in (1, 2, 7, 40, 63, 64, 500, 508, 1000, 5578):
            places = list(views_evenly(frames)(count))
            assert places == evenly(count, frames) and len(places) == min(count, frames)
            assert places[0] == 0 and (places[-1] == count - 1 or frames == 1)
            steps = np.diff(places) if len(places) > 1 else np.ones(1)
            assert steps.max() - steps.min() <= 1


def test_colours_without_poses_are_pictures_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 3)
    (tmp_path / "scene").mkdir()
    (tmp_path / "a").rename(tmp_path / "scene/color")
    assert numbers(Clip.read(tmp_path / "scene")) == [0, 1, 2]


def test_folders_that_are_no_clip_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 3)
    given: list[tuple[dict[str, Any], str]] = [
        ({"audio_track": 0}, "which has no audio_track"),
        ({"start": 3}, "has 3 pictures, a second each, and none in the span"),
        ({"frames": -1}, "negative"),
    ]
    for options, cause in given:
        with pytest.raises(MediaError, match=rf"a: .*{cause}.*; "):
            Clip.read(folder, **options)
    (folder / "frame1.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"frame1\.png: cannot be read .*; give a PNG, JPEG or WebP"):
        Clip.read(folder)
    Image.new("RGB", (9, 9)).save(folder / "frame1.png")
    with pytest.raises(MediaError, match=r"a: its pictures are 64x64 and 9x9; make them one size"):
        Clip.read(folder)
    scan = write_scannet(tmp_path / "scene", replace(room(2)))
    for pose in (scan / "pose").iterdir():
        pose.write_text("inf " * 16)
    with pytest.raises(MediaError, match=r"scene: has no picture with a known pose"):
        Clip.read(scan)
    pose.write_text("one two")
    with pytest.raises(MediaError, match=r"\.txt: cannot be read .*16 numbers"):
        Clip.read(scan)
