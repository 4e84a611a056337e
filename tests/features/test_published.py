"""Claims about published features: their values on the clip's clock, or a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from clips import click, counting_frames, write_clip
from torch import Tensor

from pave.encoder import CONSENT, load_encoder
from pave.errors import EncoderError, SignalError
from pave.features import extract, published
from pave.features.extract import listed
from pave.features.files import FeatureFolder, identity
from pave.features.published import laid
from pave.features.worker import Job
from pave.media.clip import Clip, Report
from pave.senses.pictures import spread

EARS = load_encoder("imagebind-audio").spec


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def sounding(seconds: float) -> Clip:
    return Clip(audio=torch.zeros(1, round(16_000 * seconds)), rate=16_000, audio_start=0.25)


def moving(seconds: float, fps: float = 8) -> Clip:
    return Clip(report=Report(seconds=seconds, first=0.0, last=seconds - 1 / fps, gap=1 / fps))


def test_sound_tokens_have_the_windows_of_imagebind() -> None:
    x = numbers(4, 1024, dtype=torch.bfloat16)
    found = laid("imagebind-audio", x, sounding(5.5))
    assert torch.equal(found.x[:, 0, 0], x)
    assert found.times.tolist() == [1.25, 2.25, 3.25, 4.25] and found.spans[0].tolist() == [0.25, 2.25]


def test_frames_have_the_times_of_languagebind_without_the_class_token() -> None:
    x = numbers(16, 5, 1024, dtype=torch.float16)
    found = laid("languagebind-video", x, moving(9.0))
    assert found.x.shape == (16, 2, 2, 1024)
    assert torch.equal(found.x[3, 0, 1], x[3, 2]) and torch.equal(found.x[3, 1, 0], x[3, 3])
    assert torch.equal(found.times, spread(moving(9.0), 2, 8))
    assert found.spans[9].tolist() == [found.times[8], found.times[15]]


def test_scans_are_sets_of_views() -> None:
    x = numbers(1, 18432, 1024)
    found = laid("rgbd-geometry", x, Clip())
    assert found.kind == "set" and found.x.shape == (32, 24, 24, 1024)
    assert torch.equal(found.x[2, 3, 5], x[0, 2 * 576 + 3 * 24 + 5])


@pytest.mark.parametrize(
    ("encoder", "clip", "shape", "cause"),
    [
        (
            "imagebind-audio",
            sounding(5.5),
            (9, 1024),
            "9 tokens, one a second, for 5.5 s of sound; it is of another clip",
        ),
        ("imagebind-audio", sounding(5.5), (4, 768), r"has \(4, 768\) of torch.float32; .* are \(τ, 1024\)"),
        ("imagebind-audio", Clip(), (4, 1024), "for 0.0 s of sound"),
        ("languagebind-video", moving(9.0), (32, 5, 1024), "32 frames for a clip of 16"),
        ("languagebind-video", moving(9.0), (15, 5, 1024), "15 frames .* groups of 8"),
        ("languagebind-video", moving(2.0), (0, 5, 1024), "0 frames"),
        ("languagebind-video", moving(9.0), (16, 1024), r"are \(τ, 5, 1024\)"),
        ("rgbd-geometry", Clip(), (1, 18431, 1024), r"are \(1, 18432, 1024\)"),
    ],
)
def test_features_of_another_clip_or_encoder_are_refused(
    encoder: str, clip: Clip, shape: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(SignalError, match=cause):
        laid(encoder, torch.zeros(shape), clip)


class Harm:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (Harm(), "would call .*system.* may do harm"),
        ({"x": torch.zeros(1), "y": torch.zeros(1)}, "contains 2 tensors"),
        ([torch.zeros(4, 1024)], "holds a list"),
        (torch.full((4, 1024), float("nan")), "4 of 4 side tokens are not finite"),
    ],
)
def test_a_file_that_is_not_a_tensor_or_runs_code_is_refused(tmp_path: Path, value: object, cause: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(SignalError, match=rf"a\.pt: .*{cause}"):
        published.tokens(EARS, sounding(5.5), tmp_path, Path("clips/a.mp4"))
    assert not (tmp_path / "harmed").exists() and not Path("harmed").exists()


def test_a_clip_without_a_file_and_an_encoder_without_files_have_errors(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"no published features; neither .*a\.pt nor .*video_features\.pt"):
        published.tokens(EARS, sounding(5.5), tmp_path, Path("a.mp4"))
    assert published.tokens(EARS, Clip(), tmp_path, Path("a.mp4")) is None, "a clip without sound could have none"
    with pytest.raises(EncoderError, match="no published features of logmel, only of imagebind-audio"):
        published.tokens(load_encoder("logmel").spec, Clip(), tmp_path, Path("a.mp4"))


def test_published_features_become_feature_files_of_their_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONSENT, "1")
    write_clip(tmp_path / "a.mp4", counting_frames(8), fps=2, audio=click(4.0, 1.0))
    write_clip(tmp_path / "b.mp4", counting_frames(8), fps=2, audio=click(4.0, 2.0))
    x = numbers(3, 1024, dtype=torch.bfloat16)
    torch.save(x, tmp_path / "a.pt")
    job = Job("imagebind-audio", dtype="bfloat16", published=str(tmp_path))
    tally = extract.encode(job, listed(tmp_path), tmp_path / "out")
    assert list(tally.refused) == ["b.mp4"] and "b.mp4: has no published features" in tally.refused["b.mp4"]
    features = FeatureFolder(tmp_path / "out")
    found, _ = features.find(*identity(listed(tmp_path)[0][1], "audio"))
    assert found is not None and torch.equal(found.x[:, 0, 0], x.float())
    assert features.key.published and not features.key.commercial and features.key.preprocessing == EARS.preprocessing
