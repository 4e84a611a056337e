"""Claims about all sound encoders: silence, invalid samples, channels, rates, clocks and streaming."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from listening import EARS, hear_in_pieces, listener, noise
from torch import Tensor

from pave.encoder import CONSENT, Encoder, known_encoders, load_encoder, module_of
from pave.errors import SignalError
from pave.media.clip import Clip
from pave.sidechannel import SideTokens

WITHOUT_SOUND = {"array", "base-tower", "instructblip-video", "languagebind-video", "rgbd-geometry", "vjepa2-video"}
# Time of the first step, seconds from step to step, and numbers of steps by numbers of samples, of one window at most.
# Steps of logmel and ImageBind are not parts of windows: tested in their own files.
CLOCKS: dict[str, tuple[float, float, dict[int, int]]] = {
    "whisper-speech": (0, 0.02, {1: 1, 320: 1, 321: 2, 16_000: 50, 480_000: 1500}),
    "clap-audio": (0.15625, 0.3125, {1: 1, 15_000: 1, 15_001: 2, 48_000: 4, 480_000: 32}),
    "pe-audio": (0.02, 0.04, {1: 1, 1920: 1, 1921: 2, 48_000: 25}),
    "languagebind-audio": (0.0775, 0.14, {1: 1, 4719: 1, 4720: 2, 16_000: 7, 166_000: 74}),
    "beats-audio": (0.0875, 0.16, {1: 1, 5359: 1, 5360: 2, 16_000: 6, 158_960: 62}),
}
PIECES = {  # seconds of a sound, and steps that are finished before its end
    "whisper-speech": (61.3, 2 * 30 * 50),
    "clap-audio": (21.3, 2 * 32),
    "pe-audio": (61.3, 2 * 30 * 25),
    "languagebind-audio": (21.5, 2 * 74),
    "beats-audio": (20.7, 2 * 62),
    "imagebind-audio": (34.2, 31),
    "logmel": (21.33, 2 * 8 * 20),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    return cache(lambda name: EARS[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(params=EARS)
def encoder(
    request: pytest.FixtureRequest, small: Callable[[str], Encoder], monkeypatch: pytest.MonkeyPatch
) -> Encoder:
    monkeypatch.setenv(CONSENT, "1")
    return small(request.param)


@pytest.fixture
def rate(encoder: Encoder) -> int:
    return module_of(encoder.spec.name).SAMPLE_RATE


@pytest.fixture
def encode(encoder: Encoder) -> Callable[..., SideTokens]:
    return listener(encoder)


def test_no_encoder_of_sound_is_left_out() -> None:
    assert set(known_encoders()) == EARS.keys() | WITHOUT_SOUND


@pytest.mark.parametrize("name", EARS)
def test_a_clip_without_sound_is_none_and_loads_no_weights(name: str) -> None:
    encoder = load_encoder(name)
    assert encoder.encode(Clip()) is None and encoder.encode(Clip(audio=torch.zeros(2, 0), rate=8000)) is None
    assert "network" not in vars(encoder)


def test_silence_is_present_and_differs_from_other_sounds(encode: Callable[..., SideTokens], rate: int) -> None:
    silence, other = encode(torch.zeros(1, 4 * rate)), encode(noise(rate, 4))
    assert silence.valid.all() and silence.x.shape == other.x.shape and not torch.equal(silence.x, other.x)
    assert torch.equal(silence.times, other.times) and torch.equal(silence.spans, other.spans)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sound_that_is_not_finite_is_an_error(encode: Callable[..., SideTokens], rate: int, value: float) -> None:
    sound = noise(rate, 4, channels=2)
    sound[1, 100] = value
    with pytest.raises(SignalError, match="not finite"):
        encode(sound)


def test_channels_are_averaged(encode: Callable[..., SideTokens], rate: int) -> None:
    sound = noise(rate, 3, channels=8)
    assert torch.equal(encode(sound).x, encode(sound.mean(0, keepdim=True)).x)


def test_the_sampling_rate_hardly_changes_the_tokens(encode: Callable[..., SideTokens], rate: int) -> None:
    """Sound of many frequencies up to 7 kHz: in empty bands, log power would depend on rounding errors."""

    def chord(rate: int) -> Tensor:
        clock = torch.arange(2 * rate) / rate
        return torch.stack([torch.sin(2 * torch.pi * hertz * clock) for hertz in range(200, 7000, 200)]).mean(0)[None]

    there, here, other = encode(chord(44_100), 44_100).x, encode(chord(rate)).x, encode(noise(rate, 2)).x
    assert (there - here).norm() < 0.2 * (other - here).norm()


@pytest.mark.parametrize(
    ("encoder", "samples", "steps"),
    [(name, samples, steps) for name, (*_, counts) in CLOCKS.items() for samples, steps in counts.items()],
    indirect=["encoder"],
)
def test_the_steps_of_a_window_have_the_times_of_its_sound(
    encoder: Encoder, encode: Callable[..., SideTokens], rate: int, samples: int, steps: int
) -> None:
    first, period, _ = CLOCKS[encoder.spec.name]
    side = encode(noise(rate, 30)[:, :samples], start=0.25)
    assert side.x.shape[:3] == (steps, *encoder.spec.grid) and side.valid.all()
    assert side.spans.tolist() == [[0.25, 0.25 + samples / rate]] * steps
    want = [0.25 + min(first + k * period, samples / rate) for k in range(steps)]
    assert side.times.tolist() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("recorded", [None, 44_100, 11_025])
def test_tokens_of_a_stream_equal_those_of_the_whole_sound(encoder: Encoder, rate: int, recorded: int | None) -> None:
    seconds, finished = PIECES[encoder.spec.name]
    rate = recorded or rate
    assert hear_in_pieces(encoder, noise(rate, seconds), rate) == finished
