"""LanguageBind's ear hears what the original's hears, says when, and forgets what it heard twice.

The golden tensors were made by LanguageBind's own code with seeded weights. The tower and its releases have their tests
in test_languagebind.py, the clock in test_kaldi.py.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from listening import hear_in_pieces
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig

from pave.encoder import load_encoder
from pave.errors import EncoderError, SignalError
from pave.kaldi import SAMPLE_RATE, fbank
from pave.languagebind import VIT_L, Tower, tower
from pave.media import Clip
from pave.sidechannel import SideTokens

ears: Any = import_module("pave.encoders.languagebind_audio")
WINDOW = 10.36  # seconds
with safe_open(Path(__file__).parent / "golden" / "languagebind_audio_tiny.safetensors", "pt") as golden:
    GOLDEN = {name: golden.get_tensor(name) for name in golden.keys()}  # noqa: SIM118
    TOLD = json.loads(golden.metadata()["cfg"])
WEIGHTS = {name[8:]: tensor for name, tensor in GOLDEN.items() if name.startswith("weights.")}


@pytest.fixture(scope="module")
def small() -> Tower:
    with torch.device("meta"):
        built = Tower(
            CLIPVisionConfig(**{key: TOLD[key] for key in TOLD if hasattr(VIT_L, key)}), (8, 74), temporal=False
        )
    return tower(WEIGHTS, "a release", built)


@pytest.fixture
def listen(small: Tower) -> Any:
    """What the small ear hears."""

    def tokens(sound: Tensor, rate: int = SAMPLE_RATE, rows: int = 8, start: float = 0.0) -> SideTokens:
        encoder = load_encoder("languagebind-audio", rows=rows)
        encoder.network = small  # type: ignore[misc]
        side = encoder.encode(Clip(audio=sound, rate=rate, audio_start=start))
        assert side is not None
        return side

    return tokens


def noise(seconds: float, channels: int = 1) -> Tensor:
    samples = round(seconds * SAMPLE_RATE)
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(0)) - 0.5


# what it hears


@pytest.mark.parametrize("rows", ears.ROWS)
def test_the_tokens_of_a_picture_are_those_of_the_original(small: Tower, rows: int) -> None:
    """The patch in row r and column c is token 1 + 74 r + c of the original's."""
    encoder: Any = load_encoder("languagebind-audio", rows=rows)
    encoder.network = small
    known = GOLDEN["hidden_minus2"][0, 0, 1:].view(rows, 8 // rows, 74, 1, 64).mean(1).transpose(0, 1)
    assert torch.allclose(encoder.look(GOLDEN["input"]), known, atol=5e-5, rtol=0)


def test_the_picture_is_the_spectrum_from_low_to_high_as_the_original_normalises_it() -> None:
    """(x - mean) / (2 deviation), a short one repeated frame by frame: AudioTransform of PKU-YuanGroup/LanguageBind."""
    mel = fbank(noise(4)[0], 112)
    image = ears.picture(mel)
    assert image.shape == (1, 3, 112, 1036) and torch.equal(image[:, 0], image[:, 2]) and len(mel) == 398
    for frame in (0, 397, 398, 1035):
        assert torch.allclose(image[0, 1, :, frame], (mel[frame % 398] + 4.2677393) / 9.1379948, atol=1e-5)
    tone = torch.sin(2 * torch.pi * 300 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert ears.picture(fbank(tone, 112))[0, 0, :, 50].argmax() < 112 // 4


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 1), (1, 7), (WINDOW + 0.015, 74), (12, 85), (25, 178)])
def test_there_are_tokens_for_what_was_heard_and_not_for_its_echo(listen: Any, seconds: float, steps: int) -> None:
    side = listen(noise(seconds), rows=1, start=0.5)
    assert side.x.shape == (steps, 1, 1, 64) and side.valid.all()
    centres = torch.arange(steps, dtype=torch.float64) * 0.14 + 0.0775
    assert torch.allclose(side.times, 0.5 + centres) or seconds < 0.155
    assert side.spans[-1, 1].item() == pytest.approx(0.5 + seconds)


def test_a_click_changes_its_window_and_mostly_the_token_in_its_place(listen: Any) -> None:
    sound = noise(WINDOW + 3)
    clicked = sound.clone()
    clicked[:, int(4.5 * SAMPLE_RATE) : int(4.5 * SAMPLE_RATE) + 400] = 1.0
    here, there = listen(sound), listen(clicked)
    change = (here.x - there.x).abs().mean((1, 2, 3))
    near = (here.times - 4.5125).abs() < 0.07
    assert near.any() and change[near].min() > 3 * change[~near].max()
    spanned = (here.spans[:, 0] < 4.5) & (here.spans[:, 1] > 4.5)
    assert torch.equal(change > 0, spanned) and spanned.tolist() == [True] * 74 + [False] * 21


def test_a_window_is_the_same_whatever_follows(listen: Any) -> None:
    sound = noise(2 * WINDOW + 1)
    whole, first = listen(sound), listen(sound[:, : round(WINDOW * SAMPLE_RATE) + 240])
    second = listen(sound[:, round(WINDOW * SAMPLE_RATE) : 2 * round(WINDOW * SAMPLE_RATE) + 240], start=WINDOW)
    assert torch.equal(whole.x[:74], first.x) and torch.equal(whole.x[74:148], second.x)
    assert torch.allclose(whole.times[74:148], second.times)


def test_silence_is_a_sound_and_no_track_is_none(listen: Any) -> None:
    side = listen(torch.zeros(1, 4 * SAMPLE_RATE))
    assert side.valid.all() and len(side.x) == 28
    assert load_encoder("languagebind-audio").encode(Clip()) is None
    assert load_encoder("languagebind-audio").encode(Clip(audio=torch.zeros(1, 0), rate=8000)) is None


def test_channels_are_mixed_and_other_rates_resampled(listen: Any) -> None:
    sound = noise(2, channels=8)
    assert torch.equal(listen(sound).x, listen(sound.mean(0, keepdim=True)).x)
    fine, coarse = (
        torch.sin(2 * torch.pi * 440 * torch.arange(2 * rate) / rate)[None] for rate in (44_100, SAMPLE_RATE)
    )
    at_44k, at_16k = listen(fine, 44_100).x, listen(coarse).x
    assert at_44k.shape == at_16k.shape == (14, 8, 1, 64)
    assert (at_44k - at_16k)[:, 0].abs().max() < 0.1 * at_16k.abs().max()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sound_that_is_not_finite_is_an_error(listen: Any, value: float) -> None:
    sound = noise(1)
    sound[0, 100] = value
    with pytest.raises(SignalError, match="not finite"):
        listen(sound)


# what it is, and its weights


def test_what_it_is_can_be_read_without_weights_and_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAVE_LANGUAGEBIND_AUDIO", "/nowhere")
    spec = load_encoder("languagebind-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.grid, spec.licence) == ("audio", 1024, (8, 1), "MIT")
    assert spec.rate == pytest.approx(1 / 0.14)
    assert spec == load_encoder("languagebind-audio", **spec.options).spec
    assert spec.preprocessing != load_encoder("languagebind-audio", rows=4).spec.preprocessing
    with pytest.raises(EncoderError, match="/nowhere: no such folder"):
        load_encoder("languagebind-audio").encode(Clip(audio=noise(1), rate=SAMPLE_RATE))


@pytest.mark.parametrize("options", [{"rows": 3}, {"rows": 0}, {"rows": 2.0}, {"dtype": "int8"}, {"release": ""}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        EncoderError, match=r"gives 8, 4, 2 or 1 rows .*rows=|LanguageBind (runs in float32|needs a text)"
    ):
        load_encoder("languagebind-audio", **options)


def test_a_release_of_another_size_or_sense_is_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    encoder = load_encoder("languagebind-audio", weights=str(tmp_path))
    with pytest.raises(EncoderError, match=r"of its weights are missing \(encoder.layers.10"):
        encoder.encode(Clip(audio=noise(1), rate=SAMPLE_RATE))


def test_it_hears_in_pieces_what_it_hears_in_the_whole(small: Tower) -> None:
    encoder = load_encoder("languagebind-audio")
    encoder.network = small  # type: ignore[misc]
    assert hear_in_pieces(encoder, noise(21.5), SAMPLE_RATE) == 2 * 74
