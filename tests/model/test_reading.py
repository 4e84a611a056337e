"""Claims about the files of a question: which tracks, within which limit, what is decoded, what is told about them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import click, counting_frames, write_clip
from patched import hears
from small import make_clip, make_config

from pave.config import SenseFacts
from pave.encoder import load_encoder
from pave.errors import MediaError, MediaWarning, SignalError, UsageError
from pave.media.clip import Clip
from pave.media.warned import told
from pave.model.answer import Answer
from pave.model.patched import PatchedModel
from pave.model.rows import clips_of, row_of

WHAT = "What do you hear?"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two.mkv` with two sounds, `half.mp4`, which is cut short, and a stereo `noise.wav`."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    write_clip(folder / "two.mkv", counting_frames(20), 10, click(2, 0.5), more_audio=[click(2, 1.5)])
    whole = write_clip(
        folder / "whole.mp4",
        draw.integers(0, 255, (20, 64, 64, 3), np.uint8),
        10,
        draw.uniform(-0.5, 0.5, 96_000),
        container_options={"movflags": "faststart"},
    )
    (folder / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    noise = draw.uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32)
    write_clip(folder / "noise.wav", None, audio=noise, rate=16_000, audio_codec="pcm_f32le")
    return folder


def read(model: PatchedModel, *rows: dict[str, Any]) -> list[Clip]:
    """The clips of questions as `ask_batch` reads them."""
    asked = [row_of({"question": WHAT, **row}) for row in rows]
    uses = model.applied.uses([row.patches for row in asked], len(asked))
    clips = clips_of(model.calls, asked, uses, "auto")
    assert all(isinstance(clip, Clip) for clip in clips)
    return clips  # type: ignore[return-value]


def loudest(clip: Clip) -> float:
    assert clip.audio is not None and clip.rate
    return clip.audio_start + clip.audio.abs().mean(0).argmax().item() / clip.rate


def test_sound_is_decoded_only_for_patches_that_hear(one: PatchedModel, files: Path) -> None:
    film = {"clip": files / "two.mkv"}
    assert read(one, film)[0].report.audio == "not requested"
    hears(one)
    assert [clip.audio is None for clip in read(one, film, film | {"patches": ()})] == [False, False], "read once"
    assert read(one, film | {"patches": ()})[0].audio is None
    assert read(one, film | {"audio": None})[0].report.audio == "left out by the caller"
    one.disable("ears")
    assert read(one, film)[0].audio is None and one.ask(files / "two.mkv", WHAT, max_new_tokens=1).signals == {}


def test_tracks_are_chosen_by_number(one: PatchedModel, files: Path) -> None:
    hears(one)
    film = {"clip": str(files / "two.mkv")}
    sounds = read(one, film | {"audio_track": 0}, film | {"audio_track": 1}, film | {"audio_track": 0})
    assert [round(loudest(sound), 1) for sound in sounds] == [0.5, 1.5, 0.5] and sounds[0] is sounds[2]
    for more, cause in (
        ({"audio_track": 2}, "two.mkv: has 2 audio tracks, and audio_track=2 was requested"),
        ({"video_track": 1}, "two.mkv: has 1 video track, and video_track=1 was requested"),
    ):
        with pytest.raises(MediaError, match=cause):
            one.ask(files / "two.mkv", WHAT, **more)  # pyright: ignore[reportArgumentType]


def test_a_choice_that_would_be_ignored_is_refused(one: PatchedModel, files: Path) -> None:
    with pytest.raises(SignalError, match="no applied patch reads the signal 'audio'"):
        one.ask(files / "two.mkv", WHAT, audio_track=0)
    hears(one)
    with pytest.raises(UsageError, match="video_track=0 chooses a track of a file, and the clip is not a path"):
        one.ask(make_clip(), WHAT, video_track=0)
    with pytest.raises(UsageError, match="and audio= replaces it"):
        one.ask(files / "two.mkv", WHAT, audio_track=1, audio=None)
    with pytest.raises(UsageError, match=r"timeout=-1 is not a limit"):
        one.ask(files / "two.mkv", WHAT, timeout=-1)
    with pytest.raises(
        MediaError, match=r"two\.mkv: decoding took longer .*raise timeout= \(--timeout .*data\.timeout"
    ):
        one.ask(files / "two.mkv", WHAT, timeout=1e-6)


def test_warnings_of_a_file_reach_the_answer(one: PatchedModel, files: Path) -> None:
    half, whole = str(files / "half.mp4"), str(files / "whole.mp4")
    with pytest.warns(MediaWarning, match=r"half\.mp4: cut short: .* of the announced 2\.0") as told:
        answers = one.ask_batch([(half, WHAT), (whole, WHAT), (half, WHAT)], max_new_tokens=1)
    assert len(told) == 1 and told[0].filename == __file__
    assert answers[0].warnings[0].startswith("cut short") and answers[0].warnings == answers[2].warnings
    assert answers[1].warnings == ()
    copied = pickle.loads(pickle.dumps(answers[0]))
    assert isinstance(copied, Answer) and copied.warnings == answers[0].warnings
    assert one.encode_clip(Clip.read(half, audio=False), []).warnings == answers[0].warnings


def test_a_sound_is_a_pair_in_either_layout_or_a_file(one: PatchedModel, files: Path) -> None:
    hears(one)
    noise = Clip.read(files / "noise.wav", mono=False)
    assert noise.audio is not None and noise.audio.shape == (2, 16_000)
    clip, samples = make_clip(), noise.audio.numpy()
    forms = [(samples, 16_000), (samples.T, 16_000), files / "noise.wav", str(files / "noise.wav"), noise]
    for given in (clip, files / "two.mkv", clip.frames):
        heard = [read(one, {"clip": given, "audio": form})[0] for form in forms]
        sounds = [each.audio.mean(0) for each in heard if each.audio is not None]
        assert len(sounds) == len(forms) and all(torch.allclose(sound, sounds[0], atol=1e-6) for sound in sounds)
    for audio, cause in (
        ((samples[:, :2], 16_000), r"shape \(2, 2\), of which either side may be its channels"),
        ("gone.wav", "no such file"),
        (files / "half.mp4", None),
        ([1.0, 2.0], "must be a pair"),
    ):
        if cause:
            with pytest.raises((MediaError, SignalError), match=cause):
                one.ask(clip, WHAT, audio=audio)
        else:
            assert any(
                "half.mp4: cut short" in text for text in read(one, {"clip": clip, "audio": audio})[0].report.warnings
            )


def test_a_sensor_that_outlasts_the_clip_is_read_as_far_as_the_clip_goes(one: PatchedModel) -> None:
    options: dict[str, Any] = {"signal": "imu", "dim": 3, "rate": 10}
    spec = load_encoder("array", **options).spec
    moves = SenseFacts(encoder="array", options=options, dim=3, preprocessing=spec.preprocessing)
    hears(one, senses={"imu": moves})
    clip, rows = make_clip(frames=4), np.random.default_rng(0).standard_normal((6000, 3)).astype(np.float32)
    long = one.ask(clip, WHAT, imu=rows)
    # Key frames at 0 to 3 s, 1 s apart: the clip ends at 4 s, with row 39 at 3.95 s.
    assert long.signals["imu"] == "present: 40 steps from 0.05 s; 5960 more are before or after the clip and not read"
    short = one.prepare([clip.beside({"imu": rows[:40]})], [WHAT])
    whole = one.prepare([clip.beside({"imu": rows})], [WHAT])
    assert torch.equal(one.forward(whole).logits, one.forward(short).logits)
    changed = one.prepare([clip.beside({"imu": rows[:39]})], [WHAT])
    assert not torch.equal(one.forward(whole).logits, one.forward(changed).logits), "the comparison can fail"
    later = one.ask(clip, WHAT, imu=(rows, 1e9 + np.arange(6000) / 10))
    assert later.signals["imu"] == "absent: its 6000 steps are all before or after the clip"
    assert later == one.ask(clip, WHAT, patches=())
    still = one.ask(clip.frames[0], WHAT, imu=rows) if clip.frames is not None else ""
    assert isinstance(still, Answer) and still.signals["imu"] == "present: 6000 steps from 0.05 s", "a picture lasts"


def test_the_command_prints_warnings(command: Callable[..., tuple[int, str, str]], files: Path) -> None:
    code, out, err = command("ask", files / "half.mp4", WHAT, "--max-new-tokens", 2)
    told, *_ = (line for line in err.splitlines() if line.startswith("warning: "))
    assert code == 0 and out and told.startswith("warning: half.mp4: cut short")
    assert "MediaWarning" not in err
    words = ("ask", files / "two.mkv", WHAT, "--patch", "audio-playroom", "--max-new-tokens", 2)
    code, _, err = command(*words, "--audio-track", 1, "--timeout", 600)
    assert code == 0 and "audio: present" in err
    code, _, err = command(*words, "--audio-track", 5)
    assert code == 2 and "has 2 audio tracks" in err
    code, _, err = command(*words, "--video-track", 1)
    assert code == 2 and "has 1 video track" in err


def test_files_of_further_pictures_keep_the_limit_and_their_warnings(one: PatchedModel, files: Path) -> None:
    for sense in ("fast", "views"):
        spec = load_encoder("base-tower", sense=sense, grid=[1, 1]).on(one.host).spec
        facts = {sense: spec.facts("time")}
        one.attach(f"eyes-{sense}", make_config(one.host, senses=facts), trainable=False)
    each: tuple[dict[str, Any], ...] = ({"fast": files / "half.mp4"}, {"views": [str(files / "half.mp4")]})
    for signals in each:
        with pytest.warns(MediaWarning, match=r"half\.mp4: cut short"):
            answer = one.ask(files / "two.mkv", WHAT, max_new_tokens=1, **signals)
        assert any(text.startswith("half.mp4: cut short") for text in answer.warnings)
        with pytest.raises(MediaError, match=r"two\.mkv.*1e-06 s"):
            one.ask(make_clip(), WHAT, timeout=1e-6, **{name: _other(value, files) for name, value in signals.items()})


def _other(value: Any, files: Path) -> Any:
    path = files / "two.mkv"
    return [path] if isinstance(value, list) else path


@pytest.mark.parametrize(("count", "last"), [(1, "1: cut"), (2, "and 1 more clip with"), (3, "and 2 more clips with")])
def test_clips_beyond_the_first_are_counted(count: int, last: str) -> None:
    assert told({str(i + 1): ["cut"] for i in range(count)}, most=1)[-1].startswith(last)
