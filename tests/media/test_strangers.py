"""Files of strangers: clocks that jump or drift, odd tracks, rates, layouts, formats. t frames, n samples."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from clips import click, counting_frames, number, write_clip
from PIL import Image
from places import ROOT

from pave.errors import MediaError, UsageError
from pave.media import decoding
from pave.media.clip import Clip
from pave.media.container import walk
from pave.media.decode import decode
from pave.media.key_frames import Request
from pave.media.pixels import scaled
from pave.media.sound import mixing, waveform

sys.path.append(str(ROOT / "benchmarks"))
from media_files import restamp_fragments, restamp_mkv, shifted, write

RATE = 16000


def read(path: Path, **options) -> Clip:
    return Clip.read(path, **{"frames": None, "timeout": None, **options})


def numbers(clip: Clip) -> list[int]:
    return [] if clip.frames is None else [number(frame.numpy()) for frame in clip.frames]


def flashes(clip: Clip) -> list[float]:
    """Seconds at which pictures turn white."""
    assert clip.frames is not None and clip.times is not None
    white = (clip.frames.float().mean((1, 2, 3)) > 225).tolist()
    return [clip.times[n].item() for n in range(len(white)) if white[n] and not (n and white[n - 1])]


def tones(clip: Clip) -> list[float]:
    """Seconds at which the sound sets in."""
    assert clip.audio is not None and clip.rate is not None
    loud = (clip.audio[0].abs().unfold(0, clip.rate // 200, clip.rate // 200).amax(1) > 0.2).tolist()
    begins = [n for n in range(len(loud)) if loud[n] and not any(loud[max(n - 4, 0) : n])]
    return [n / 200 + clip.audio_start for n in begins]


def film(seconds: float, at: tuple[float, ...], fps: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (t 48 64 3), white for 0.2 s at some seconds, and a tone (n) with each flash."""
    times, clock = np.arange(round(seconds * fps)) / fps, np.arange(round(seconds * 48000)) / 48000
    on = [[((t >= a - 1e-6) & (t < a + 0.2 - 1e-6)) for a in at] for t in (times, clock)]
    white, loud = (np.any(each, axis=0) for each in on)
    pictures = np.where(white[:, None, None, None], 255, 60).astype(np.uint8)
    wave = np.where(loud, 0.8 * np.sin(2 * np.pi * 1000 * clock), 0).astype(np.float32)
    return np.broadcast_to(pictures, (len(times), 48, 64, 3)).copy(), wave


def write_film(path: Path, seconds: float = 4, at: tuple[float, ...] = (1.0, 3.0), **options) -> Path:
    pictures, wave = film(seconds, at)
    return write_clip(path, pictures, 25, wave, options={"g": "25", "bf": "2"}, **options)


def restamped(path: Path, source: Path, move: Callable[[str, float], float]) -> Path:
    """A Matroska file of two tracks with each packet stamped `move(kind of its track, seconds)`."""
    path.write_bytes(source.read_bytes())
    return restamp_mkv(path, lambda track, second: move({1: "video", 2: "audio"}[track], second))


@pytest.mark.parametrize("start", [0.0, 3.92, 3600.0])
def test_joined_streams_are_played_one_after_another(tmp_path: Path, start: float) -> None:
    parts = [write_film(tmp_path / "1.ts"), write_film(tmp_path / "2.ts", start=start)]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read(tmp_path / "both.ts")
    assert clip.frames is not None and len(clip.frames) == 200 and clip.report.pictures == 200
    assert flashes(clip) == pytest.approx([1, 3, 5, 7], abs=0.02) and tones(clip) == pytest.approx(
        flashes(clip), abs=0.03
    )
    assert any("time stamps jump (" in text and " s at 4.0" in text for text in clip.report.warnings)
    assert read(parts[0]).report.warnings == ()
    some = read(tmp_path / "both.ts", frames=5)
    assert some.times is not None and some.times.tolist() == pytest.approx([0, 1.99, 3.98, 5.97, 7.96])


def test_parts_of_other_sizes_and_without_sound_are_joined(tmp_path: Path) -> None:
    write_clip(tmp_path / "1.ts", counting_frames(50, (48, 64)), 25)
    write_clip(tmp_path / "2.ts", counting_frames(50), 25, click(2, 1.0), start=1.92)
    (tmp_path / "both.ts").write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    clip = read(tmp_path / "both.ts")
    assert numbers(clip) == [*range(50), *range(50)] and tones(clip) == pytest.approx([3.0], abs=0.03)


@pytest.mark.parametrize("track", ["video", "audio", "both"])
@pytest.mark.parametrize("jump", [-2.0, 3600.0])
def test_tracks_that_jump_together_or_alone_stay_in_sync(tmp_path: Path, track: str, jump: float) -> None:
    def move(kind: str, second: float) -> float:
        return second + jump * (second >= 2 and track in (kind, "both"))

    clip = read(restamped(tmp_path / "odd.mkv", write_film(tmp_path / "whole.mkv"), move))
    if track == "video" and jump > 0:  # a picture may be shown for an hour
        assert flashes(clip) == pytest.approx([1, 3603], abs=0.05) and "no picture for" in " ".join(
            clip.report.warnings
        )
    else:
        assert flashes(clip) == pytest.approx([1, 3], abs=0.05)
        assert any("time stamps jump" in text for text in clip.report.warnings)
    assert tones(clip) == pytest.approx([1, 3], abs=0.05)
    assert clip.report.pictures == 100


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("away", [1000.0, -1.5])
def test_a_packet_that_leaves_the_clock_moves_nothing_else(tmp_path: Path, kind: str, away: float) -> None:
    def move(track: str, second: float) -> float:
        return second + away * (track == kind and 2.0 <= second < 2.02)

    clip = read(restamped(tmp_path / "odd.mkv", write_film(tmp_path / "whole.mkv"), move))
    assert flashes(clip) == pytest.approx([1, 3], abs=0.05) and tones(clip) == pytest.approx([1, 3], abs=0.05)
    assert clip.report.pictures == 100 and clip.report.seconds == pytest.approx(4, abs=0.1)


def test_pictures_that_share_stamps_are_all_read(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "whole.mkv", counting_frames(50), 25, codec="mjpeg")
    pairs = read(
        restamped(tmp_path / "pairs.mkv", source, lambda kind, second: math.floor(second * 12.5 + 1e-6) / 12.5)
    )
    assert numbers(pairs) == list(range(50)) and pairs.times is not None
    assert pairs.times.tolist() == pytest.approx([n / 25 for n in range(50)], abs=0.003)
    none = read(restamped(tmp_path / "none.mkv", source, lambda kind, second: 0.0))
    assert numbers(none) == list(range(50)) and none.times is not None
    assert none.times[-1].item() == pytest.approx(49 / 25, abs=0.1)
    assert "share few time stamps" in none.report.warnings[0]


def test_a_fragment_that_goes_back_loses_no_picture(tmp_path: Path) -> None:
    moved = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}
    path = write_film(tmp_path / "a.mp4", container_options=moved)
    assert read(path).report.warnings == ()
    restamp_fragments(path, lambda track, number: -1.0 * (number >= 2))
    clip = read(path)
    assert clip.report.pictures == 100 and flashes(clip) == pytest.approx([1, 3], abs=0.02) == tones(clip)
    assert clip.report.warnings[0].startswith("its time stamps jump (-1.00 s at ")


def test_a_part_ends_where_its_last_picture_does_although_that_ones_stamp_is_lost(tmp_path: Path) -> None:
    """In an MPEG program stream, FFmpeg stamps the last picture before a join as if it had none behind it."""
    parts = [
        write(tmp_path / f"{start}.mpg", codec="mpeg2video", sound="mp2", clock=shifted(start))
        for start in (0.0, 300.0)
    ]
    (tmp_path / "both.mpg").write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read(tmp_path / "both.mpg")
    assert clip.report.pictures == 200 and flashes(clip) == pytest.approx([1, 3, 5, 7], abs=0.01)
    assert tones(clip) == pytest.approx([1, 3, 5, 7], abs=0.02)


# ---------------------------------------------------------------- the sound's clock


def write_sound(path: Path, stamp: Callable[[int, float], float | None], seconds: float = 20, at: float = 15) -> Path:
    """Pictures that flash and sound that sets in at one second; sound in pieces of 50 ms, stamped `stamp(number, second
    of the samples)`; the tone is where the stamps say."""
    with av.open(str(path), "w") as container:
        pictures, track = container.add_stream("mjpeg", rate=5), container.add_stream("pcm_s16le", rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuvj420p"
        track.layout = "mono"
        packets = []
        for n in range(round(seconds * 5)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * (at <= n / 5 < at + 0.4), np.uint8), "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 5)
            packets += pictures.encode(frame)
        for n in range(2 * round(seconds * 20)):
            second = stamp(n, n / 20)
            if second is None or second >= seconds:
                continue
            clock = second + np.arange(RATE // 20) / RATE
            wave = 0.8 * np.sin(2000 * np.pi * clock) * ((clock >= at) & (clock < at + 0.4))
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(second * RATE), Fraction(1, RATE)
            packets += track.encode(frame)
        for packet in sorted([*packets, *pictures.encode(None)], key=lambda p: p.pts * p.time_base):
            container.mux(packet)
    return path


@pytest.mark.parametrize("pace", [0.9, 0.98, 0.995, 1.005, 1.02, 1.1])
def test_a_clock_that_runs_slower_or_faster_than_the_samples_is_followed(tmp_path: Path, pace: float) -> None:
    clip = read(write_sound(tmp_path / "a.mkv", lambda number, second: second * pace))
    assert flashes(clip) == [15] and tones(clip) == pytest.approx([15], abs=0.02)
    assert any("the sound was resampled to its clock" in text for text in clip.report.warnings)


def test_following_a_clock_does_not_bend_the_pitch(tmp_path: Path) -> None:
    """When the drift is found it is 15 ms; at 1 s here, in the middle of the tone."""
    clip = read(write_sound(tmp_path / "a.mkv", lambda number, second: second * 0.985, seconds=6, at=0.9))
    assert clip.audio is not None
    first = round((0.93 - clip.audio_start) * RATE)
    tone = clip.audio[0, first : first + RATE // 3].numpy()
    crossings = np.flatnonzero((tone[:-1] < 0) & (tone[1:] >= 0)) / RATE
    pitch = 25 / (crossings[25:] - crossings[:-25])  # Hz, over 25 periods
    assert np.abs(pitch / 1000 - 1).max() < 0.08, pitch


def test_sound_on_its_clock_is_not_touched(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    jitter = random.uniform(-0.025, 0.025, 2000)
    plain = read(write_sound(tmp_path / "plain.mkv", lambda number, second: second))
    shaky = read(write_sound(tmp_path / "shaky.mkv", lambda number, second: max(second + jitter[number], 0)))
    assert plain.audio is not None and plain.report.warnings == () == shaky.report.warnings
    assert tones(plain) == pytest.approx([15], abs=0.01) and tones(shaky) == pytest.approx([15], abs=0.04)
    assert plain.audio.shape == (1, 20 * RATE)


@pytest.mark.parametrize(("slip", "told"), [(0.4, "0.40 s of sound are missing"), (-0.4, "0.40 s of sound overlap")])
def test_holes_become_silence_and_overlaps_are_cut(tmp_path: Path, slip: float, told: str) -> None:
    plain = write_sound(tmp_path / "plain.mkv", lambda number, second: second)
    clip = read(restamped(tmp_path / "a.mkv", plain, lambda kind, s: s + slip * (kind == "audio" and s > 4.99)))
    assert tones(clip) == pytest.approx([15 + slip], abs=0.02)
    assert clip.report.warnings == (f"{told}{' and are cut' if slip < 0 else ''} at 5.00 s",)


def test_lost_pieces_of_sound_become_silence_of_their_length(tmp_path: Path) -> None:
    """A hole of one piece is not followed by resampling, which bends the pitch."""
    path = write_film(tmp_path / "a.mkv")
    lost = (1.5, 1.82, 2.2, 2.5)
    restamp_mkv(path, lambda track, s: s, lambda track, s: track == 2 and any(a <= s < a + 0.021 for a in lost))
    clip = read(path)
    assert tones(clip) == pytest.approx([1, 3], abs=0.01)
    told = clip.report.warnings
    assert told and all("0.02 s of sound are missing" in text for text in told), told


@pytest.mark.parametrize("since", [0.0, 2.0])
def test_sound_without_stamps_is_counted(tmp_path: Path, since: float) -> None:
    def move(kind: str, second: float) -> float:
        return 0.0 if kind == "audio" and second >= since else second

    clip = read(restamped(tmp_path / "a.mkv", write_film(tmp_path / "whole.mkv"), move))
    assert flashes(clip) == pytest.approx([1, 3], abs=0.01) and tones(clip) == pytest.approx([1, 3], abs=0.01)
    assert any("pieces of sound share few time stamps" in text for text in clip.report.warnings)


def test_sound_after_damaged_pieces_is_where_it_belongs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 3 * 48000).astype(np.float32)
    noise[-24000:] = click(0.5, 0.0)
    path = write_clip(tmp_path / "a.flac", None, audio=noise, audio_codec="flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30000] = bytes(30000)
    path.write_bytes(data)
    clip = read(path)
    assert tones(clip)[-1] == pytest.approx(2.5, abs=0.01)
    assert any("of sound are missing" in text for text in clip.report.warnings)


# ---------------------------------------------------------------- tracks, layouts, formats


def write_tracks(path: Path, flags: list[str]) -> Path:
    """Sound tracks with these dispositions; a click in track k at second k + 0.5."""
    source = write_clip(
        path.with_name("source.mkv"),
        counting_frames(75),
        25,
        click(3, 0.5),
        more_audio=[click(3, k + 0.5) for k in range(1, len(flags))],
    )
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        tracks = {}
        for stream in old.streams:
            tracks[stream.index] = new.add_stream_from_template(stream)
            wanted = flags[stream.index - 1] if stream.type == "audio" else "default"
            tracks[stream.index].disposition = Disposition[wanted] if wanted else 0
        for packet in old.demux():
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                new.mux(packet)
    return path


@pytest.mark.parametrize(
    ("flags", "heard"),
    [(["", "default"], 1), (["visual_impaired", ""], 1), (["default", "default"], 0), (["comment", "", "default"], 2)],
)
def test_the_default_track_is_heard(tmp_path: Path, flags: list[str], heard: int) -> None:
    clip = read(write_tracks(tmp_path / "a.mkv", flags))
    assert tones(clip) == pytest.approx([heard + 0.5], abs=0.01)
    assert f"{len(flags)} sound tracks: audio_track={heard} is used" in clip.report.warnings


def test_a_track_can_be_chosen(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "a.mkv", ["default", "", ""])
    for track in range(3):
        clip = Clip.read(path, frames=2, audio_track=track)
        assert tones(clip) == pytest.approx([track + 0.5], abs=0.01) and clip.report.warnings == ()
    for options, cause in (({"audio_track": 3}, "has 3 audio tracks"), ({"video_track": -1}, "has 1 video track")):
        with pytest.raises(MediaError, match=rf"a\.mkv: {cause}, and .*; tracks are counted from 0"):
            read(path, **options)


def test_surround_sound_is_mixed_as_ffmpeg_does() -> None:
    half, root = 0.5, math.sqrt(0.5)
    for layout, weights in {
        "5.1": [root, root, 1, 0, half, half],
        "5.1(side)": [root, root, 1, 0, half, half],
        "quad": [1, 1, root, root],
        "2.1": [1, 1, 0],
    }.items():
        mixed = mixing(layout, len(weights))
        assert mixed is not None and np.allclose(mixed[0], np.array(weights) / sum(weights), atol=1e-6)
    assert mixing("stereo", 2) is None and mixing("mono", 1) is None


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac", "ac3"])
def test_speech_in_the_centre_is_as_loud_as_in_ffmpegs_mix(tmp_path: Path, codec: str) -> None:
    wave = np.zeros((6, 96000), np.float32)
    wave[2] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(96000) / 48000)
    clip = read(write_clip(tmp_path / "a.mkv", None, audio=wave, audio_codec=codec))
    assert clip.audio is not None and clip.audio.abs().max().item() == pytest.approx(0.8 * 0.2929, rel=0.05)


@pytest.mark.parametrize("layout", ["7.1", "hexadecagonal"])
def test_planar_sound_of_many_channels_is_read(tmp_path: Path, layout: str) -> None:
    count = av.AudioLayout(layout).nb_channels
    wave = (8000 * np.sin(np.arange(count * RATE))).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(wave, "s16", layout)
    frame.sample_rate = RATE
    planar = av.AudioResampler("fltp", layout, RATE).resample(frame)[0]
    assert waveform(planar).shape == (count, RATE) and waveform(planar, mono=True).shape == (1, RATE)
    assert np.allclose(waveform(planar)[3], wave.reshape(-1, count)[:, 3] / 32768, atol=1e-4)


@pytest.mark.parametrize("rate", [22254, 11127, 44099])
def test_sound_at_an_odd_rate_is_heard_by_an_encoder(tmp_path: Path, rate: int) -> None:
    path = write_clip(tmp_path / "a.mov", counting_frames(50), 25, click(2, 1.0, rate), rate, audio_codec="pcm_s16le")
    for target in (RATE, 48000):
        assert tones(read(path, audio_rate=target)) == pytest.approx([1.0], abs=0.01)


def test_an_animated_webp_is_read_by_its_own_clock(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in counting_frames(6)]
    first, *rest = pictures
    first.save(tmp_path / "a.webp", append_images=rest, duration=[100, 300, 100, 100, 100, 100], lossless=True)
    clip = read(tmp_path / "a.webp")
    assert numbers(clip) == list(range(6)) and clip.times is not None and clip.audio is None
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.4, 0.5, 0.6, 0.7]) and clip.report.seconds == pytest.approx(
        0.8
    )
    assert numbers(Clip.read(tmp_path / "a.webp", frames=3)) == [0, 1, 5]
    data = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.webp: nothing in it decodes"):
        read(tmp_path / "cut.webp")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    secret = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "7" * 32, "encryption_kid": "a" * 32}
    write_clip(tmp_path / "secret.mp4", counting_frames(50), 25, click(2, 1), container_options=secret)
    with pytest.raises(MediaError, match=r"secret\.mp4: is encrypted; decrypt it first"):
        read(tmp_path / "secret.mp4")
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    with pytest.raises(MediaError, match=r"empty\.wav: has a header, but holds no picture and no sample"):
        read(tmp_path / "empty.wav")


ENDS = ["wav", "avi", "mp3", "mkv", "flv", "mp4", "asf", "aiff"]


@pytest.mark.parametrize("ending", ENDS)
def test_a_file_without_its_last_bytes_says_so(tmp_path: Path, ending: str) -> None:
    """Also where too little is missing to show in its seconds, or FFmpeg estimates these from the bytes."""
    alone = {"wav": "pcm_s16le", "mp3": "mp3", "aiff": "pcm_s16be"}
    codecs = {"avi": ("mpeg4", "pcm_s16le"), "flv": ("flv", "aac"), "asf": ("wmv2", "mp3")}
    name, wave = tmp_path / f"a.{ending}", click(2, 1.0)
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    if ending in alone:
        path = write_clip(name, None, audio=wave, audio_codec=alone[ending])
    else:
        codec, sound = codecs.get(ending, ("h264", "aac"))
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
        path = write_clip(name, pictures, 25, wave, codec=codec, audio_codec=sound, container_options=options)
    assert read(path).report.warnings == ()
    data = path.read_bytes()
    lost = max(len(data) // 14, 1100)
    path.write_bytes(data[:-lost])
    told = f"cut short: {len(data) - lost} of the announced {len(data)} bytes"
    assert any(text.startswith(told) for text in read(path).report.warnings), read(path).report.warnings


def test_an_error_behind_the_last_picture_is_no_loss(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mpjpeg", counting_frames(10), 25, codec="mjpeg", format="mpjpeg")
    clip = read(tmp_path / "a.mpjpeg")
    assert numbers(clip) == list(range(10)) and clip.report.warnings == ()


def test_an_absurd_rate_of_sound_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, (1 << 30) - 1, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    with pytest.raises(MediaError, match=r"a\.wav: nothing in it decodes"):
        read(tmp_path / "a.wav")


# ---------------------------------------------------------------- limits


def test_the_limit_grows_with_the_length_and_counts_processor_time(tmp_path: Path) -> None:
    short, long = (write_clip(tmp_path / f"{n}.mkv", counting_frames(n), 1, codec="mjpeg") for n in (2, 200))
    works = [next(decode(Request(str(path))))[0]["work"] for path in (short, long)]
    assert works[0] < 3 and 200 < works[1] < 210
    script = "from pave.media.decoding import allow; allow(1)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", script], timeout=300)
    assert done.returncode == -24  # SIGXCPU


def test_a_limit_may_be_infinite_and_nonsense_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", counting_frames(5))
    for limit in (math.inf, 600, "auto", None):
        assert numbers(Clip.read(path, frames=1, timeout=limit)) == [0]
    for limit in (0, -1, math.nan, "soon", "5", True, [1], 10**400):
        with pytest.raises(UsageError, match=r"is not a limit; pass seconds above 0, math\.inf, 'auto' or None"):
            Clip.read(path, timeout=limit)  # pyright: ignore[reportArgumentType]


def test_the_worker_holds_one_picture_and_has_a_limit_of_memory(tmp_path: Path) -> None:
    frames = np.broadcast_to(np.zeros((1, 1080, 1920, 3), np.uint8), (40, 1080, 1920, 3))
    path = write_clip(tmp_path / "a.mp4", frames, 25, options={"preset": "ultrafast", "tune": "zerolatency"})
    clip = Clip.read(path, frames=None)
    worker = decoding.WORKERS.lend()
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
    worker.kill()
    assert clip.frames is not None and clip.frames.nbytes > 240e6
    assert peak < 240, f"{peak:.0f} MB: all pictures were held"
    assert f"{decoding.MEMORY}" in limits.split("Max data size")[1].split()[0]
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != decoding.MEMORY  # the caller's own limit is not touched


def test_pictures_of_a_large_gif_do_not_pile_up(tmp_path: Path) -> None:
    """A frame of PyAV whose side data was read is freed by the garbage collector alone."""
    first, *rest = (Image.new("P", (2048, 2048), n) for n in range(40))
    first.save(tmp_path / "a.gif", append_images=rest, save_all=True, duration=40)
    decoding.WORKERS.clear()
    assert sum(1 for _ in Clip.read(tmp_path / "a.gif", frames=2).passing([n / 25 for n in range(40)])) == 40
    worker = decoding.WORKERS.lend()
    peak = int(Path(f"/proc/{worker.process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    worker.kill()
    assert peak < 450, f"{peak:.0f} MB: frames were held"  # 40 frames take 640


def test_pictures_resized_as_they_come_are_those_that_a_tower_resizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write_clip(tmp_path / "a.mp4", rng.integers(0, 256, (5, 96, 128, 3), dtype=np.uint8), 25)
    whole, small = Clip.read(path), Clip.read(path, size=(42, 30))
    assert whole.frames is not None and small.frames is not None
    assert torch.equal(small.frames, scaled(whole.frames, (42, 30))) and small.report == whole.report


def test_dense_pictures_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", counting_frames(100), 25)
    clip, passes = Clip.read(path, frames=2, timeout=None), []
    monkeypatch.setattr("pave.media.decode.walk", lambda *a: passes.append(a) or walk(*a))
    pictures: Iterator = clip.passing([n / 25 for n in range(100)])
    assert [number(picture.numpy()) for picture in pictures] == list(range(100)) and len(passes) == 1
