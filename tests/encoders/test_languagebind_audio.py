"""The LanguageBind audio encoder: equal to the original, on the clip's clock, without tokens of repetitions.

The golden tensors were made by LanguageBind's own code with seeded weights. The tower and its releases are tested in
tests/senses/test_languagebind.py, the clock in tests/senses/test_fbank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from safetensors.torch import save_file

from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.senses.fbank import SAMPLE_RATE, fbank
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.languagebind_audio")
WINDOW = 10.36  # seconds
GOLDEN, WEIGHTS = listening.golden("languagebind_audio")
noise = partial(listening.noise, SAMPLE_RATE)


@pytest.fixture(scope="module")
def small() -> Any:
    return listening.languagebind_audio(Path())


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


# tokens


@pytest.mark.parametrize("rows", (8, 4, 2, 1))
def test_the_tokens_of_an_image_equal_those_of_the_original(small: Any, rows: int) -> None:
    """The patch in row r and column c is token 1 + 74 r + c of the original's."""
    encoder: Any = load_encoder("languagebind-audio", rows=rows)
    encoder.network = small.network
    known = GOLDEN["hidden_minus2"][0, 0, 1:].view(rows, 8 // rows, 74, 1, 64).mean(1).transpose(0, 1)
    assert torch.allclose(encoder.encode_image(GOLDEN["input"]), known, atol=5e-5, rtol=0)


def test_the_image_is_the_spectrum_from_low_to_high_normalised_as_in_the_original() -> None:
    """(x - mean) / (2 deviation), a short one repeated frame by frame: AudioTransform of PKU-YuanGroup/LanguageBind."""
    mel = fbank(noise(4)[0], 112)
    image = module.as_image(mel)
    assert image.shape == (1, 3, 112, 1036) and torch.equal(image[:, 0], image[:, 2]) and len(mel) == 398
    for frame in (0, 397, 398, 1035):
        assert torch.allclose(image[0, 1, :, frame], (mel[frame % 398] + 4.2677393) / 9.1379948, atol=1e-5)
    tone = torch.sin(2 * torch.pi * 300 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert module.as_image(fbank(tone, 112))[0, 0, :, 50].argmax() < 112 // 4


def test_a_click_changes_its_window_and_mostly_its_own_token(encode: Callable[..., SideTokens]) -> None:
    sound = noise(WINDOW + 3)
    clicked = sound.clone()
    clicked[:, int(4.5 * SAMPLE_RATE) : int(4.5 * SAMPLE_RATE) + 400] = 1.0
    here, there = encode(sound), encode(clicked)
    change = (here.x - there.x).abs().mean((1, 2, 3))
    near = (here.times - 4.5125).abs() < 0.07
    assert near.any() and change[near].min() > 3 * change[~near].max()
    spanned = (here.spans[:, 0] < 4.5) & (here.spans[:, 1] > 4.5)
    assert torch.equal(change > 0, spanned) and spanned.tolist() == [True] * 74 + [False] * 21


def test_a_window_does_not_depend_on_what_follows(encode: Callable[..., SideTokens]) -> None:
    sound = noise(2 * WINDOW + 1)
    whole, first = encode(sound), encode(sound[:, : round(WINDOW * SAMPLE_RATE) + 240])
    second = encode(sound[:, round(WINDOW * SAMPLE_RATE) : 2 * round(WINDOW * SAMPLE_RATE) + 240], start=WINDOW)
    assert torch.equal(whole.x[:74], first.x) and torch.equal(whole.x[74:148], second.x) and len(whole.x) == 155
    assert torch.allclose(whole.times[74:148], second.times)


# spec and weights


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAVE_LANGUAGEBIND_AUDIO", "/nowhere")
    spec = load_encoder("languagebind-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.grid, spec.licence) == ("audio", 1024, (8, 1), "MIT")
    assert spec.rate == pytest.approx(1 / 0.14)
    assert spec == load_encoder("languagebind-audio", **spec.options).spec
    assert spec.preprocessing != load_encoder("languagebind-audio", rows=4).spec.preprocessing
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("languagebind-audio").encode(Clip(audio=noise(1), rate=SAMPLE_RATE))


@pytest.mark.parametrize("options", [{"rows": 3}, {"rows": 0}, {"rows": 2.0}, {"dtype": "int8"}, {"release": ""}])
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        EncoderError, match=r"has 8, 4, 2 or 1 rows .*rows=|languagebind-audio (runs in float32|needs a text)"
    ):
        load_encoder("languagebind-audio", **options)


def test_a_release_of_another_size_or_sense_is_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    encoder = load_encoder("languagebind-audio", weights=str(tmp_path))
    with pytest.raises(EncoderError, match=r"of its weights are missing \(encoder.layers.10"):
        encoder.encode(Clip(audio=noise(1), rate=SAMPLE_RATE))
