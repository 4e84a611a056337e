"""Log-mel tokens show when and how loud a sound is, and do not depend on the rest of the clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from clips import write_clip
from listening import hear_in_pieces, noise

from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip

RATE = 16_000


def clip(sound: torch.Tensor, rate: int = RATE) -> Clip:
    return Clip.from_frames(None, audio=sound, rate=rate)


def sine(hertz: float, seconds: float, rate: int = RATE) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)[None]


@pytest.mark.parametrize(
    "options", [{}, {"rate": 10, "stack": 2}, {"rate": 50, "bands": 40}, {"rate": 128, "stack": 5}]
)
def test_a_click_is_in_the_token_whose_span_contains_it(options):
    sound = torch.zeros(1, 2 * RATE)
    sound[0, 18_100] = 1.0
    encoder = load_encoder("logmel", **options)
    side = encoder.encode(clip(sound))
    assert side is not None
    assert side.x.shape == (2 * encoder.spec.rate, 1, 1, encoder.spec.dim)
    loudest = side.x.sum((1, 2, 3)).argmax()
    assert side.spans[loudest, 0] <= 18_100 / RATE < side.spans[loudest, 1]


def test_silence_is_present_and_has_one_fixed_value():
    side = load_encoder("logmel").encode(clip(torch.zeros(1, RATE)))
    assert side is not None
    assert side.x.unique().tolist() == [-1.5]


def test_batches_of_windows_do_not_change_the_tokens_of_a_long_sound():
    sound = torch.rand(1, 90 * RATE, generator=torch.Generator().manual_seed(0)) - 0.5
    encoder = load_encoder("logmel")
    whole, half = encoder.encode(clip(sound)), encoder.encode(clip(sound[:, : 45 * RATE]))
    assert whole is not None and half is not None
    assert torch.allclose(whole.x[: len(half.x) - 1], half.x[:-1], atol=1e-5)


def test_stacked_tokens_in_pieces_equal_those_of_the_whole():
    assert hear_in_pieces(load_encoder("logmel", rate=4, stack=2), noise(RATE, 21.33), RATE, start=-0.3) == 2 * 8 * 4


def test_loudness_is_preserved():
    encoder = load_encoder("logmel")
    loud, soft = (encoder.encode(clip(sine(1000, 0.5) * level)) for level in (1.0, 0.1))
    assert loud is not None and soft is not None
    # A tenth of the amplitude is two decades of power, and one unit is two decades.
    assert torch.allclose(loud.x.amax(-1) - soft.x.amax(-1), torch.ones(()), atol=0.02)
    assert loud.x[5].max() == pytest.approx(2.6, abs=0.15)  # full scale


@pytest.mark.parametrize("hertz", [120.0, 440.0, 3000.0, 7000.0])
def test_a_tone_is_loudest_in_its_band(hertz):
    side = load_encoder("logmel").encode(clip(sine(hertz, 0.5)))
    assert side is not None
    mel = 2595 * math.log10(1 + hertz / 700)
    low, high = (2595 * math.log10(1 + f / 700) for f in (50, 8000))
    assert side.x[5, 0, 0].argmax() == pytest.approx((mel - low) / (high - low) * 65 - 1, abs=1)


def test_a_token_does_not_depend_on_later_sound():
    encoder = load_encoder("logmel")
    sound = torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    whole, half = encoder.encode(clip(sound)), encoder.encode(clip(sound[:, :RATE]))
    assert whole is not None and half is not None
    assert torch.equal(whole.x[:19], half.x[:19])  # only the window over the cut differs
    assert not torch.equal(whole.x[19], half.x[19])


def test_sound_shorter_than_a_token_is_padded_and_a_short_remainder_dropped():
    encoder = load_encoder("logmel")
    for samples, steps in ((1, 1), (799, 1), (1199, 1), (1200, 2), (1600, 2)):
        side = encoder.encode(clip(torch.zeros(1, samples)))
        assert side is not None and len(side.x) == steps


def test_another_sampling_rate_gives_nearly_the_same_tokens():
    encoder = load_encoder("logmel", fmax=7000)
    at_16k, at_44k = encoder.encode(clip(sine(1000, 1.0))), encoder.encode(clip(sine(1000, 1.0, 44_100), 44_100))
    assert at_16k is not None and at_44k is not None
    peak = at_16k.x[3, 0, 0].argmax()
    assert torch.allclose(at_16k.x[2:-2, ..., peak], at_44k.x[2:-2, ..., peak], atol=0.01)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file_at_its_own_rate_equals_one_resampled_while_reading(tmp_path, rate):
    square = np.sign(np.sin(np.arange(2 * rate) * 440 * 2 * np.pi / rate))  # exceeds full scale when resampled
    path = write_clip(tmp_path / "a.wav", None, audio=square.astype(np.float32), rate=rate, audio_codec="pcm_s16le")
    own, read = (Clip.read(path, audio_rate=to, timeout=None) for to in (None, RATE))
    here, there = map(load_encoder("logmel").encode, (own, read))
    assert (own.rate, read.rate) == (rate, RATE) and here is not None and there is not None
    assert torch.equal(here.x, there.x) and torch.equal(here.spans, there.spans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 7}, "does not divide 16000"),
        ({"stack": 3}, "does not divide 16000"),
        ({"fmax": 9000}, "0 to 8000 Hz"),
        ({"bands": 0}, "bands ≥ 1"),
        ({"bands": 400}, "use fewer bands"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder("logmel", **options)
