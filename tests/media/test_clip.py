"""Real files in, clips out. Legend: t frames, y x pixels, c channels, n samples."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clips import click, counting_frames, number, write_clip
from einops import rearrange
from golden.make_pixels import CASES, digest, noise
from PIL import Image, ImageOps
from places import GOLDEN as GOLDEN_FOLDER
from places import PARTS, ROOT
from safetensors import safe_open
from torch import Tensor

from pave.errors import MediaError, SignalError
from pave.files.process import Stopped, Worker
from pave.media.arrays import pictures_of, sound_of, tensor_of, times_of
from pave.media.clip import Clip, Signal, decode_many
from pave.media.decoding import WORKERS, parts_within
from pave.media.key_frames import Request
from pave.media.pixels import preprocess
from pave.media.resampling import bank_of, lowest, resample
from pave.media.sound import waveform

GOLDEN = GOLDEN_FOLDER / "pixels_llava_onevision.safetensors"


def read(path: str | Path, **options) -> Clip:
    """Read without a worker: most tests are about decoding, not about processes."""
    return Clip.read(path, **{"timeout": None, **options})


def numbers(clip: Clip) -> list[int]:
    assert clip.frames is not None and clip.frames.dtype == torch.uint8 and clip.frames.is_contiguous()
    return [number(frame) for frame in clip.frames.numpy()]


def click_second(clip: Clip, channel: int = 0) -> float:
    """The second at which the click begins, on the clip's clock."""
    assert clip.audio is not None and clip.rate
    return int((clip.audio[channel].abs() > 0.3).float().argmax()) / clip.rate + clip.audio_start


def on_screen(times: list[float], instants: list[float]) -> list[int]:
    """The rule by definition: the greatest time stamp that is not after the instant."""
    return [max(k for k, stamp in enumerate(times) if stamp <= instant + 1e-9) for instant in instants]


def patchwork(count: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Frames of large random blocks, all different, so that a frame of a wrong instant is detected."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm", "a.h264"])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_key_frames_are_those_on_screen_at_equally_spaced_instants(tmp_path, name, count):
    codec = "libvpx-vp9" if name.endswith("webm") else "h264"
    clip = read(write_clip(tmp_path / name, counting_frames(50), 25, codec=codec), frames=count)
    instants = np.linspace(0, 49 / 25, count).tolist()
    assert numbers(clip) == on_screen([k / 25 for k in range(50)], instants)
    assert clip.times is not None and clip.times.dtype == torch.float64
    assert clip.times.tolist() == pytest.approx(instants, abs=1e-3)
    assert clip.report.pictures == clip.report.expected == 50 and clip.report.seconds == pytest.approx(2, abs=0.01)


def test_time_decides_where_the_frame_rate_varies(tmp_path):
    times = [0.04 * k if k < 10 else 1.6 + 0.1 * k for k in range(20)]
    clip = read(write_clip(tmp_path / "a.mp4", counting_frames(20), times=times), frames=9)
    instants = np.linspace(0, times[-1], 9).tolist()
    assert numbers(clip) == on_screen(times, instants)
    assert numbers(clip) != np.linspace(0, 19, 9).astype(int).tolist()  # what counting frames would give


def test_a_late_start_does_not_move_the_clock(tmp_path):
    late = read(write_clip(tmp_path / "late.mp4", counting_frames(30), 25, click(1.2, 0.6), start=5.0), frames=4)
    soon = read(write_clip(tmp_path / "soon.mp4", counting_frames(30), 25, click(1.2, 0.6)), frames=4)
    assert numbers(late) == numbers(soon) and late.times is not None and soon.times is not None
    assert torch.allclose(late.times, soon.times)
    assert click_second(late) == pytest.approx(0.6, abs=0.003) and click_second(soon) == pytest.approx(0.6, abs=0.003)


@pytest.mark.parametrize(
    ("codec", "options"), [("h264", {"x264-params": "bframes=3:b-adapt=0"}), ("mpeg4", {"bf": "2"})]
)
def test_avi_pictures_are_in_display_order_and_in_sync_with_the_sound(tmp_path, codec, options):
    path = write_clip(tmp_path / "a.avi", counting_frames(50), 25, click(2, 1.3), codec=codec, options=options)
    every, some = read(path, frames=None), read(path, frames=8)
    assert numbers(every) == list(range(50)) and every.times is not None
    assert every.times.tolist() == pytest.approx([k / 25 for k in range(50)], abs=0.03)  # FFmpeg's AVI writer jitters
    assert numbers(some) == list(range(0, 50, 7)) and click_second(some) == pytest.approx(1.3, abs=0.045)


def test_frames_repeat_when_there_are_fewer_and_one_picture_is_one_frame(tmp_path):
    few = read(write_clip(tmp_path / "few.mp4", counting_frames(3), 25), frames=7)
    assert numbers(few) == [0, 0, 0, 1, 1, 1, 2]
    for name, codec in [("one.mp4", "h264"), ("one.png", "png"), ("one.jpg", "mjpeg")]:
        one = read(write_clip(tmp_path / name, counting_frames(6)[5:], 1, codec=codec), frames=7)
        assert numbers(one) == [5] and one.times is not None and one.times.tolist() == [0.0]


def test_frames_at_a_rate_all_frames_and_none(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(50), 25, click(2, 1))
    assert numbers(read(path, fps=5)) == list(range(0, 50, 5))
    assert numbers(read(path, fps=12.5, start=1, end=1.5)) == [25, 27, 29, 31, 33, 35, 37]
    assert numbers(read(path, frames=None)) == list(range(50))
    none = read(path, frames=0)
    assert none.frames is None and none.times is None and click_second(none) == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_file_can_be_read_again_at_any_instants(timeout, tmp_path):
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 1.7]
    path = write_clip(tmp_path / "a.mp4", counting_frames(6), times=times, start=2.0, rotation=180)
    clip = Clip.read(path, frames=2, start=0.1, end=1.5, timeout=timeout)
    assert (clip.report.first, clip.report.last) == pytest.approx((0.1, 1.0))
    instants = [0.0, 0.12, 0.9, 0.89, 1.69, 1.7, 99.0, 1 / 3]
    turned = [number(frame[:, ::-1, ::-1]) for frame in clip.at(instants).numpy()]
    assert turned == on_screen(times, instants)
    with pytest.raises(MediaError, match=r"the picture at -1.0 s .*; request finite times"):
        clip.at([0.5, -1])


def test_arrays_can_be_sampled_again_by_the_same_rule():
    times = [k / 3 for k in range(7)]
    clip = Clip.from_frames(counting_frames(7), times)
    instants = [-1.0, 0.0, 1 / 3, 0.3, 1.9, 99.0, *torch.linspace(0, 2, 7).tolist()]
    assert [number(frame) for frame in clip.at(instants).numpy()] == [0, 0, 1, 0, 5, 6, *range(7)]
    assert (clip.report.first, clip.report.last, clip.report.gap) == pytest.approx((0, 2, 1 / 3))
    with pytest.raises(MediaError, match="arrays: has no frames to sample"):
        Clip.from_frames(audio=np.zeros(8), rate=8).at([0.0])


def test_a_span_keeps_the_clock_of_the_whole_file(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(50), 25, click(2, 1.3))
    clip = read(path, frames=3, start=1.0, end=1.6)
    assert numbers(clip) == [25, 32, 39] and clip.times is not None
    assert clip.times.tolist() == pytest.approx([1.0, 1.28, 1.56]) and clip.audio is not None
    assert clip.audio_start == pytest.approx(1.0, abs=1e-3) and clip.audio.shape[1] == pytest.approx(28800, abs=60)
    assert click_second(clip) == pytest.approx(1.3, abs=0.003)
    assert numbers(read(path, start=1.01, end=1.02)) == [25]  # between two pictures: the one on screen
    with pytest.raises(MediaError, match=r"start=9 s is after .*2\.00 s"):
        read(path, start=9)
    for span in ({"start": 1, "end": 0.5}, {"end": math.inf}, {"start": -1}):
        with pytest.raises(MediaError, match="is empty"):
            read(path, **span)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "h264", {"g": "10", "bf": "2"}),
        ("open.ts", "h264", {"x264-params": "keyint=12:open-gop=1:bframes=3"}),
        ("refresh.ts", "h264", {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}),
        ("vp9.webm", "libvpx-vp9", {"g": "15", "lag-in-frames": "10", "auto-alt-ref": "1"}),
    ],
)
def test_skipping_groups_of_pictures_changes_no_pixel(tmp_path, name, codec, options):
    drift = np.stack(
        [np.roll(patchwork(1)[0], 3 * k, 1) for k in range(100)]
    )  # every picture is predicted from its neighbours
    path = write_clip(tmp_path / name, drift, 25, codec=codec, options=options)
    every = read(path, frames=None).frames
    assert every is not None and len(every) == 100
    for count in (3, 8, 13):
        some = read(path, frames=count).frames
        assert some is not None and torch.equal(some, every[[99 * i // (count - 1) for i in range(count)]])
    for place in range(1, 100, 7):  # also a leading picture: coded after the key picture that is shown after it
        one = read(path, frames=1, start=place / 25).frames
        assert one is not None and torch.equal(one[0], every[place])


def test_pictures_that_an_edit_list_cuts_off_are_not_shown(tmp_path):
    clip = read(write_clip(tmp_path / "a.mp4", counting_frames(30), 25, start=-0.4), frames=3)
    assert numbers(clip) == [10, 19, 29] and clip.times is not None
    assert clip.times.tolist() == pytest.approx([0, 0.38, 0.76])
    assert clip.report.pictures == clip.report.expected == 20 and clip.report.warnings == ()


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_rotation_in_the_file_is_applied(tmp_path, angle):
    frames = patchwork(3, (48, 64))
    turned = read(write_clip(tmp_path / "turned.mp4", frames, rotation=angle), frames=1).frames
    plain = read(write_clip(tmp_path / "plain.mp4", frames), frames=1).frames
    assert turned is not None and plain is not None
    assert torch.equal(turned, torch.rot90(plain, angle // 90, (2, 3)))  # display matrices turn counter-clockwise
    assert torch.equal(turned, plain) == (angle == 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_rotated_upright_as_pillow_does(tmp_path, orientation):
    photo = Image.fromarray(patchwork(1, (48, 64))[0])
    photo.getexif()[0x112] = orientation
    photo.save(tmp_path / "a.jpg", exif=photo.getexif(), quality=95, subsampling=0)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")).convert("RGB")).astype(int)
    frames = read(tmp_path / "a.jpg").frames
    assert frames is not None and frames.shape[2:] == upright.shape[:2]
    assert np.abs(rearrange(frames[0].numpy().astype(int), "c y x -> y x c") - upright).mean() < 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_in_a_file_that_pillow_cannot_open_is_rotated_too(tmp_path, orientation):
    photo = Image.fromarray(patchwork(1, (48, 64))[0])
    photo.getexif()[0x112] = orientation
    photo.save(tmp_path / "a.jpg", exif=photo.getexif())
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        track = container.add_stream("mjpeg", rate=1, options={}, width=64, height=48, pix_fmt="yuvj420p")
        packet = av.Packet((tmp_path / "a.jpg").read_bytes())
        packet.stream, packet.time_base, packet.pts, packet.dts = track, Fraction(1), 0, 0
        packet.is_keyframe = True
        container.mux(packet)
    turned, alone = (read(tmp_path / name).frames for name in ("a.mkv", "a.jpg"))
    assert turned is not None and alone is not None and torch.equal(turned, alone)
    assert turned.shape[2:] == ((64, 48) if orientation in (6, 8) else (48, 64))


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.m4a"])
def test_a_click_keeps_its_time(tmp_path, name):
    frames = None if name.endswith("m4a") else counting_frames(50)
    clip = read(write_clip(tmp_path / name, frames, 25, click(2, 1.25)), frames=4, audio_rate=16000)
    assert click_second(clip) == pytest.approx(1.25, abs=0.003)
    assert clip.rate == 16000 and clip.audio is not None and clip.audio.dtype == torch.float32
    assert clip.audio.abs().max() <= 1 and "48000 Hz" in clip.report.audio


def test_sound_that_starts_later_or_lasts_longer_keeps_its_time(tmp_path):
    later = read(write_clip(tmp_path / "a.mkv", counting_frames(50), 25, click(1, 0.5), audio_start=0.8))
    assert click_second(later) == pytest.approx(1.3, abs=0.003) and later.audio_start == pytest.approx(0.8, abs=0.03)
    longer = read(write_clip(tmp_path / "b.mp4", counting_frames(25), 25, click(4, 3.5)))
    assert click_second(longer) == pytest.approx(3.5, abs=0.003) and longer.report.seconds == pytest.approx(1)
    assert longer.report.warnings == ()


def test_the_first_of_several_tracks_is_read_and_reported(tmp_path):
    clip = read(write_clip(tmp_path / "a.mkv", counting_frames(50), 25, click(2, 0.5), more_audio=[click(2, 1.5)]))
    assert click_second(clip) == pytest.approx(0.5, abs=0.003)
    assert "2 sound tracks: audio_track=0 is used" in clip.report.warnings


def test_no_track_is_absent_and_silence_is_present(tmp_path):
    mute = read(write_clip(tmp_path / "mute.mp4", counting_frames(5)))
    assert mute.audio is None and mute.rate is None and mute.report.audio == "no audio track"
    silent = read(write_clip(tmp_path / "silent.mp4", counting_frames(5), audio=np.zeros(9600, np.float32)))
    assert silent.audio is not None and silent.audio.abs().max() == 0
    unread = read(tmp_path / "silent.mp4", audio=False)
    assert unread.audio is None and unread.report.audio == "not requested"


def test_channels_are_averaged_or_kept(tmp_path):
    stereo = np.stack([click(2, 0.5), click(2, 1.5)])
    path = write_clip(tmp_path / "a.wav", None, audio=stereo, audio_codec="pcm_s16le")
    both, mono = read(path, mono=False), read(path)
    assert both.audio is not None and mono.audio is not None and both.rate == mono.rate == 48000
    assert np.allclose(both.audio, stereo, atol=1e-4)
    assert torch.allclose(mono.audio, both.audio.mean(0, keepdim=True), atol=1e-6)


def test_a_track_that_changes_from_mono_to_stereo_is_read_to_its_end(tmp_path):
    parts = [
        write_clip(tmp_path / "1.ts", None, audio=click(2, 1.0), audio_codec="mp2"),
        write_clip(tmp_path / "2.ts", None, audio=np.stack([click(2, 1.0)] * 2), audio_codec="mp2", start=2.0),
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    mono = read(tmp_path / "both.ts")
    assert mono.audio is not None and mono.audio.shape[1] / 48000 == pytest.approx(4, abs=0.1)
    for at in (1.0, 3.0):
        here = mono.audio[0, round((at - 0.2) * 48000) : round((at + 0.3) * 48000)]
        assert here.abs().max() > 0.3
    separate = read(tmp_path / "both.ts", mono=False)
    assert separate.audio is not None and separate.audio.shape[1] / 48000 == pytest.approx(2, abs=0.1)
    assert any("changes its channels at 2" in warning for warning in separate.report.warnings)


def test_the_sound_after_a_span_is_not_decoded(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.m4a", None, audio=click(20, 0.5))
    pieces = []
    monkeypatch.setattr("pave.media.sound.waveform", lambda frame, mono: pieces.append(frame) or waveform(frame, mono))
    part = read(path, start=0.0, end=1.0)
    assert (
        part.audio is not None and part.audio.shape[1] == 48000 and click_second(part) == pytest.approx(0.5, abs=0.01)
    )
    assert sum(frame.samples for frame in pieces) < 2.2 * 48000  # a second ahead


def test_sound_can_be_read_from_a_span_without_pictures(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(25), audio=click(4, 3.0))
    late = read(path, frames=0, start=2, end=3.9)
    assert late.frames is None and click_second(late) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("rate", [11_289_601, 2**31 - 1, 2**32 - 1])
def test_sound_at_an_absurd_rate_takes_little_memory(rate: int) -> None:
    assert bank_of(*lowest(rate, 16_000)).numel() < 10 * 2**20
    assert resample(torch.zeros(1, 1000), rate, 16_000).shape == (1, math.ceil(16_000_000 / rate))
    with pytest.raises(MediaError, match="cannot be resampled at a ratio of 62,500,000,000,000:1; correct its rate"):
        resample(torch.zeros(1, 1000), 10**18, 16_000)


def slow_resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """The definition, one output sample at a time: a sinc at 0.99 of the lower Nyquist rate, six zero crossings."""
    cutoff = 0.99 * min(from_rate, to_rate)
    at = torch.arange(len(audio), dtype=torch.float64) / from_rate
    out = []
    for m in range(math.ceil(len(audio) * to_rate / from_rate)):
        x = (at - m / to_rate) * cutoff
        weight = torch.where(x.abs() < 6, torch.special.sinc(x) * torch.cos(math.pi * x / 12) ** 2, 0.0)
        out.append((audio * weight).sum() * cutoff / from_rate)
    return torch.stack(out)


@pytest.mark.parametrize(("source", "target"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 16000)])
def test_resampling_matches_its_definition_and_preserves_a_tone(source, target):
    wave = torch.randn(700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(
        resample(wave.float(), source, target).double(), slow_resample(wave, source, target), atol=5e-6
    )
    tone = torch.sin(2 * math.pi * 440 * torch.arange(source) / source)
    again = torch.sin(2 * math.pi * 440 * torch.arange(target) / target)
    assert (resample(tone, source, target) - again)[100:-100].abs().max() < 5e-3
    assert resample(wave, source, source) is wave


@pytest.mark.parametrize("source", [22254, 11127, 44099, 44101, 44118, 31469, 22051, 16001, 8001, 96001, 192001])
def test_rates_without_a_common_step_are_resampled(source):
    for target in (16000, 48000):
        ten = 10 * source
        tone = torch.sin(2 * math.pi * 440 * torch.arange(ten) / source)
        wave = resample(tone, source, target)
        again = torch.sin(2 * math.pi * 440 * torch.arange(len(wave)) / target)
        assert abs(len(wave) - 10 * target) <= 2
        assert (wave - again)[300:-300].abs().max() < 5e-3
        assert torch.equal(resample(torch.stack([tone, tone]), source, target)[1], wave)


# ---------------------------------------------------------------- files that are wrong


def test_files_that_are_not_media_are_refused_with_name_cause_and_remedy(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", counting_frames(50), 25, click(2, 1)).read_bytes()
    bad = {
        "empty.mp4": (b"", "is empty"),
        "index.mp4": (whole[: len(whole) // 2], "index is missing .* cut short"),
        "noise.mp4": (np.random.default_rng(0).bytes(9999), "not a media file"),
        "text.txt": (b"no film at all\n" * 99, "is not media"),
        "page.mp4": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "lfs.mp4": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "playlist"),
        "words.srt": (b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n", "neither pictures nor sound"),
    }
    for name, (data, cause) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError, match=rf"{name}: .*{cause}.*"):
            read(tmp_path / name)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    Image.new("RGB", (20000, 2)).save(tmp_path / "huge.png")
    for name, cause in [
        ("missing.mp4", "no such file"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "is a pipe"),
        ("huge.png", "20000x2 pixels"),
    ]:
        with pytest.raises(MediaError, match=rf"{name}: .*{cause}.*; "):
            read(tmp_path / name)
    with pytest.raises(MediaError, match="is an address"):
        read("http://example.org/a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_cut_short_returns_what_decodes_with_a_warning(tmp_path, name):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 96000)
    whole = write_clip(tmp_path / name, patchwork(50), 25, wave, container_options=options)
    assert read(whole).report.warnings == ()
    (tmp_path / f"cut_{name}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    clip = read(tmp_path / f"cut_{name}", frames=8)
    assert clip.frames is not None and len(clip.frames) == 8 and 0 < clip.report.pictures < 50
    assert "cut short" in clip.report.warnings[0] and "announced 2.0" in clip.report.warnings[0]
    every = read(whole, frames=None).frames
    assert every is not None and clip.times is not None  # pictures between may be missing, so look it up by time
    assert torch.equal(clip.frames[-1], every[round(float(clip.times[-1]) * 25)])


def test_a_transport_stream_that_begins_inside_a_group_is_read_from_where_it_decodes(tmp_path):
    options = {"x264-params": "keyint=10:bframes=0:scenecut=0:repeat-headers=1"}
    whole = write_clip(tmp_path / "a.ts", patchwork(50), 25, options=options)
    data = whole.read_bytes()
    (tmp_path / "b.ts").write_bytes(data[188 * (len(data) // 188 // 2) :])
    clip = read(tmp_path / "b.ts", frames=4)
    assert clip.frames is not None and clip.times is not None and clip.times[0] == 0
    assert 0 < clip.report.pictures < 40


def test_damaged_bytes_give_a_clip_or_a_media_error_and_nothing_else(tmp_path):
    random, paths = np.random.default_rng(0), []
    for name in ("a.mp4", "a.ts", "a.mkv"):
        whole = write_clip(tmp_path / name, patchwork(20), 25, click(0.8, 0.3)).read_bytes()
        for k in range(10):
            data = bytearray(whole[: random.integers(len(whole) // 2, len(whole))])
            for place in random.integers(0, len(data) if k % 2 else 2000, 12):
                data[place] = random.integers(256)
            paths.append(tmp_path / f"{k}_{name}")
            paths[-1].write_bytes(data)
    for path, clip in zip(paths, decode_many(paths, workers=2, frames=4), strict=True):
        if isinstance(clip, Clip):
            assert clip.frames is not None or clip.audio is not None
        else:
            assert path.name in str(clip) and "crashed" not in str(clip)


def test_a_file_with_sound_only_is_a_clip_without_frames(tmp_path):
    path = write_clip(tmp_path / "a.m4a", None, audio=click(1, 0.5))
    clip = read(path)
    assert (
        clip.frames is None
        and clip.times is None
        and clip.audio_start == 0
        and click_second(clip) == pytest.approx(0.5, abs=0.003)
    )
    with pytest.raises(MediaError, match="sound only"):
        read(path, audio=False)


def test_more_pictures_than_fit_in_memory_are_refused_before_decoding(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(50), 25)
    with pytest.raises(MediaError, match=r"pictures of 64x64 need .* GiB; request fewer"):
        read(path, fps=1e6)


def test_the_report_prints_as_one_line(tmp_path):
    clip = read(write_clip(tmp_path / "a.mp4", counting_frames(50), 25, click(2, 1)))
    assert str(clip.report) == "a.mp4: 2.00 s, 50 pictures of 64x64; sound: aac, 48000 Hz, mono, 2.01 s"
    assert clip.report.decoder.startswith("PyAV ")


# ---------------------------------------------------------------- workers


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """A clip that takes a good part of a second to decode."""
    frames = np.broadcast_to(
        np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8), (60, 480, 640, 3)
    )
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", frames, 25, options={"preset": "ultrafast"})


def test_a_worker_reads_the_same_clip_and_is_used_again(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(50), 25, click(2, 1))
    here, there = read(path, frames=5), Clip.read(path, frames=5)
    for name in ("frames", "times", "audio"):
        assert torch.equal(getattr(here, name), getattr(there, name))
    assert (here.rate, here.audio_start, here.report) == (there.rate, there.audio_start, there.report)
    first = WORKERS.lend()
    with pytest.raises(MediaError, match="no such file"):
        Clip.read(tmp_path / "missing.mp4")
    assert first.process.poll() is None
    first.kill()


def test_decoding_past_its_limit_is_killed_and_the_next_file_is_read(tmp_path, long_clip):
    with pytest.raises(MediaError, match=r"long\.mp4: decoding took longer than 1e-06 s"):
        Clip.read(long_clip, timeout=1e-6)
    worker, request = Worker("pave.media.decoding"), vars(Request(str(long_clip), frames=None))
    worker.call(request, 600)
    with pytest.raises(Stopped, match="killed"):
        worker.call(request, 1e-6)
    assert worker.process.returncode == -9
    assert numbers(Clip.read(write_clip(tmp_path / "a.mp4", counting_frames(5)), frames=1)) == [0]


def test_a_bug_in_pave_is_not_blamed_on_the_file(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(5))
    with pytest.raises(MediaError, match=r"a.mp4: TypeError: .* bug in PAVE, not in the file; please report it"):
        list(parts_within(Request(str(path), frames="5"), 30))  # pyright: ignore[reportArgumentType]
    assert numbers(Clip.read(path, frames=np.int64(1), start=np.float32(0))) == [0]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="integer"):
        Clip.read(path, frames=2.5)  # pyright: ignore[reportArgumentType]


def test_a_worker_that_died_is_replaced(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(5))
    worker = Worker("pave.media.decoding")
    worker.process.kill()
    with pytest.raises(Stopped, match="exit status -9"):
        worker.call(vars(Request(str(path))), 30)
    assert numbers(Clip.read(path, frames=1)) == [0]


def test_many_files_come_in_order_with_errors_in_their_places(tmp_path):
    paths = [write_clip(tmp_path / f"{k}.mp4", counting_frames(k + 1)[k:], 25) for k in range(9)]
    paths.insert(4, tmp_path / "missing.mp4")
    got = [numbers(c)[0] if isinstance(c, Clip) else str(c) for c in decode_many(paths, workers=2, frames=1)]
    assert got[:4] + got[5:] == list(range(9)) and "missing.mp4: no such file" in str(got[4])


def test_leaving_decode_many_early_stops_its_threads(tmp_path):
    path = write_clip(tmp_path / "a.mp4", counting_frames(5))
    clips = decode_many([path] * 100, workers=2)
    assert isinstance(next(clips), Clip)
    clips.close()  # pyright: ignore[reportAttributeAccessIssue]
    deadline = time.monotonic() + 300
    while any(t.name.startswith("decode") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name.startswith("decode") for t in threading.enumerate())


def test_a_script_without_main_guard_reads_clips_and_a_fork_gets_its_own_worker(tmp_path):
    for k in range(2):
        write_clip(tmp_path / f"{k}.mp4", counting_frames(k + 1)[k:])
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path[:0] = {[str(PARTS), str(ROOT)]!r}\n"
        "from clips import number\n"
        "from pave.media import Clip\n"
        "def show(k): return number(Clip.read(f'{k}.mp4', frames=1).frames[0].numpy())\n"
        "assert show(0) == 0\n"
        "child = os.fork()\n"
        "seen = [show(int(child == 0)) for _ in range(12)]\n"
        "assert seen == [int(child == 0)] * 12, seen\n"
        "if child == 0: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print('read')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout == "read\n", done.stderr


def test_decoding_imports_no_torch():
    code = "import sys, pave.media.decoding, pave.media.decode; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---------------------------------------------------------------- pixels and arrays


@pytest.mark.parametrize("name", CASES)
def test_pixels_equal_those_of_the_processor_bit_for_bit(name):
    _, size, mean, std = CASES[name]
    frames = torch.from_numpy(noise(name))
    pixels = preprocess(frames, size, mean, std)
    with safe_open(GOLDEN, "pt") as golden:
        assert torch.equal(pixels[0, :, :12, :12], golden.get_tensor(f"{name}.corner"))
        assert torch.equal(pixels[-1, :, ::16, ::16], golden.get_tensor(f"{name}.grid"))
        assert digest(pixels) == json.loads(golden.metadata()["sha256"])[name]
    # The opposite: the same resize in float gives other pixels.
    floats = torch.nn.functional.interpolate(frames.float(), size, mode="bicubic", antialias=True)
    shift, scale = (rearrange(torch.tensor(v), "c -> c 1 1") * 255 for v in (mean, std))
    assert digest((floats - shift) / scale) != digest(pixels)


def test_arrays_and_images_become_clips():
    frames = torch.from_numpy(counting_frames(5, (24, 32)))
    planes = rearrange(frames, "t y x c -> t c y x")
    for form in (frames, frames.numpy(), planes, list(frames), [Image.fromarray(f) for f in frames.numpy()]):
        clip = Clip.from_frames(form, times=[0, 1, 2, 3, 4.5])
        assert clip.frames is not None and torch.equal(clip.frames, planes) and clip.times is not None
        assert clip.times.tolist() == [0, 1, 2, 3, 4.5]
    image = Clip.from_frames(Image.fromarray(frames[3].numpy()))
    assert numbers(image) == [3] and image.times is not None and image.times.tolist() == [0]
    sound = Clip.from_frames(planes, audio=np.zeros(32000, np.int16), rate=16000)
    assert sound.times is not None and sound.times.tolist() == [0, 0.5, 1, 1.5, 2]
    assert sound.audio is not None and sound.audio.shape == (1, 32000) and sound.audio.dtype == torch.float32
    assert "1 s apart" in Clip.from_frames(planes).report.warnings[0]
    heart = Clip.from_frames(heart=(np.ones((7, 2)), np.arange(7))).signals["heart"]
    assert isinstance(heart, Signal) and heart.values.shape == (7, 2) and heart.times.dtype == torch.float64


def test_arrays_that_cannot_be_a_clip_are_refused_with_the_numbers():
    planes = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    wrong = [
        ({"frames": planes.float()}, MediaError, "float32"),
        ({"frames": planes[:, :2]}, MediaError, r"\(4, 2, 8, 8\)"),
        ({"frames": []}, MediaError, "empty list"),
        ({"frames": [planes[0], planes[0, :, :4]]}, MediaError, "2 different sizes"),
        ({"frames": planes, "times": [0, 1]}, MediaError, r"\(2,\) but there are 4"),
        ({"frames": planes, "times": [0, 2, 1, 3]}, MediaError, "backwards"),
        ({"frames": "kitchen.mp4"}, MediaError, "'kitchen.mp4' is a path"),
        ({"audio": torch.zeros(9)}, MediaError, "rate=None"),
        ({"audio": torch.zeros(9), "rate": 16000.5}, MediaError, "rate=16000.5"),
        ({"audio": torch.zeros(0, 9), "rate": 16000}, MediaError, r"\(0, 9\)"),
        ({"audio": torch.full((9,), 2e4), "rate": 16000}, MediaError, "2e\\+04"),
        ({"audio": torch.full((9,), math.nan), "rate": 16000}, SignalError, "not finite"),
        ({"heart": (torch.zeros(3, 2), torch.zeros(4))}, SignalError, r"\(3, 2\) and times \(4,\)"),
        ({"heart": (torch.full((3, 2), math.inf), torch.zeros(3))}, SignalError, "not finite"),
    ]
    for arguments, error, cause in wrong:
        with pytest.raises(error, match=cause):
            Clip.from_frames(**arguments)


MASKED = np.ma.masked_equal([[1.0, -9999.0]], -9999.0)
FIELDS = np.zeros(2, [("x", "<f4"), ("y", ">f4")])
ROW = torch.ones(2)


def quantised() -> Tensor:
    return torch.quantize_per_tensor(ROW, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about kinds of tensors that may change
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: MASKED, r"1 of 2 values are masked; fill them \(array\.filled\(0\)\), or drop those steps"),
        (lambda: [MASKED[0], MASKED[0]], "1 of 2 values are masked"),
        (lambda: [1.0, np.ma.masked], "1 of 1 values are masked"),
        (lambda: FIELDS, r"the array has 2 named fields \(x, y\); pass one field"),
        (lambda: np.ma.array(FIELDS, mask=[(True, False)] * 2), "has 2 named fields"),
        (lambda: torch.eye(2).to_sparse(), r"the tensor is sparse; pass tensor\.to_dense\(\)"),
        (lambda: torch.eye(2).to_sparse_csr(), "the tensor is sparse"),
        (lambda: [ROW.to_sparse(), ROW.to_sparse()], "the tensor is sparse"),
        (lambda: ROW.to("meta"), "the tensor is on the device meta, which holds no values; pass a tensor with values"),
        (quantised, r"the tensor is quantised; pass tensor\.dequantize\(\)"),
        (lambda: torch.nested.nested_tensor([ROW, ROW[:1]]), "the tensor is nested; pass one tensor"),
        (lambda: torch.nested.nested_tensor([ROW, ROW[:1]], layout=torch.jagged), "the tensor is nested"),
        (lambda: [ROW.clone().requires_grad_()], "is no array of numbers"),
    ],
)
def test_values_that_are_not_plain_numbers_are_refused_wherever_arrays_are_read(made: Any, message: str) -> None:
    pictures = [] if isinstance(made(), list) else [pictures_of]  # which reads a list entry by entry
    for read in (tensor_of, lambda x: times_of(x, 2), lambda x: sound_of(x, 8000), _as_signal, *pictures):
        with pytest.raises(SignalError, match=message):
            read(made())


def _as_signal(values: Any) -> Clip:
    return Clip.from_frames(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), imu=(values, [0.0, 1.0]))


def test_arrays_without_a_masked_value_and_of_either_byte_order_are_read() -> None:
    assert tensor_of(np.ma.masked_equal([[1.0, 2.0]], -9999.0)).tolist() == [[1.0, 2.0]]
    for order in ("<", ">"):
        assert tensor_of(np.array([1, -2], f"{order}f4")).tolist() == [1.0, -2.0]
        assert sound_of(np.array([256, -512] * 9, f"{order}i2"), 8000)[0, :2].tolist() == [1 / 128, -1 / 64]
        assert times_of(np.array([0.0, 1.5], f"{order}f8")[::-1][::-1], 2).tolist() == [0.0, 1.5]
