"""The spectrum equals Kaldi's, and the tokens of a network that reads it are on the clip's clock."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from safetensors.torch import load_file
from torch import Tensor

from pave.media.clip import Clip
from pave.senses.fbank import FLOOR, FRAME, HOP, POVEY, SAMPLE_RATE, encode_patches, fbank, filters

GOLDEN = load_file(GOLDEN_FOLDER / "imagebind_audio_tiny.safetensors")
SILENCE = math.log(FLOOR)
FRAMES, PATCH = 60, 20  # of a window, of a step


def noise(samples: int) -> Tensor:
    return torch.rand(1, samples, generator=torch.Generator().manual_seed(0)) - 0.5


def loudness(sound: Tensor) -> Tensor:
    """A minimal network: the mean of a patch (τ 1 1 1)."""
    mel = fbank(sound, 32).mean(-1)
    return mel[: len(mel) // PATCH * PATCH].view(-1, 1, 1, 1, PATCH).mean(-1)


def test_the_spectrum_is_that_of_torchaudio() -> None:
    """The golden one is from torchaudio, with ImageBind's options: (log power + 4.268) / 9.138."""
    window = GOLDEN["wave"][0, : 2 * SAMPLE_RATE]
    theirs = GOLDEN["mel_clean"][0, 0, :, :198].T * 9.138 - 4.268
    assert (fbank(window, 128) - theirs).abs().max() <= 5e-4


def test_the_window_of_povey_is_hann_to_the_power_of_85_hundredths() -> None:
    """Kaldi's formula in float64, frame by frame and bin by bin."""
    sound = noise(FRAME + 3 * HOP)[0]
    samples = torch.arange(FRAME, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * samples / (FRAME - 1))
    bins = torch.arange(257, dtype=torch.float64)[:, None]
    turns = torch.exp(-2j * math.pi * bins * samples / 512)
    mels = [1127 * math.log(1 + hertz / 700) for hertz in (20, 8000)]
    step = (mels[1] - mels[0]) / 129
    for i in range(4):
        part = sound[i * HOP : i * HOP + FRAME].double()
        part = part - part.mean()
        part = part - 0.97 * torch.cat([part[:1], part[:-1]])
        power = (turns @ (part * hann**0.85).to(torch.complex128)).abs() ** 2
        for band in (0, 40, 127):
            height = 1 - ((1127 * torch.log(1 + bins[:, 0] * 31.25 / 700) - mels[0]) / step - band - 1).abs()
            expected = float((height.clamp(min=0) * power)[:256].sum())
            assert fbank(sound, 128, POVEY)[i, band].item() == pytest.approx(math.log(max(expected, FLOOR)), abs=1e-3)


@pytest.mark.parametrize("bands", [1, 2, 23, 32, 64, 80, 127, 128, 256])
def test_filters_are_triangles_that_are_even_on_the_mel_scale_of_kaldi(bands: int) -> None:
    """feat/mel-computations.cc, to the last bit; without a warning about empty low bands."""
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (20, 8000))
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    bins = 1127 * torch.log1p(torch.arange(257, dtype=torch.float64) * 31.25 / 700)[:, None]
    rise, fall = (bins - edges[:-2]) / edges.diff()[:-1], (edges[2:] - bins) / edges.diff()[1:]
    filters.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank = filters(bands)
    assert torch.equal(bank, torch.minimum(rise, fall).clamp(min=0).float())


def test_silence_is_the_floor_and_a_constant_is_silence() -> None:
    for level in (0.0, 0.5):
        assert torch.equal(fbank(torch.full((FRAME,), level), 32), torch.full((1, 32), SILENCE))


@pytest.mark.parametrize(
    ("samples", "steps", "windows"),
    [
        (1, 1, [3440]),  # less than a patch is padded with silence
        (3440, 1, [3440]),
        (6639, 1, [6639]),
        (6640, 2, [6640]),
        (9840, 3, [9840]),  # exactly a window
        (13039, 3, [9840]),  # an incomplete patch after it is dropped
        (13040, 4, [9840, 3440]),
        (22640, 7, [9840, 9840, 3440]),
    ],
)
def test_windows_are_consecutive_and_end_with_the_sound(samples: int, steps: int, windows: list[int]) -> None:
    lengths = []

    def tokens(sound: Tensor) -> Tensor:
        lengths.append(len(sound))
        return loudness(sound)

    clip = Clip(audio=noise(samples), rate=SAMPLE_RATE, audio_start=1.5)
    side = encode_patches(clip, FRAMES, PATCH, tokens)
    assert side is not None and len(side.x) == steps and side.valid.all() and lengths == windows
    starts = [0.6 * (i // 3) for i in range(steps)]
    ends = [min(start + lengths[i // 3] / SAMPLE_RATE, samples / SAMPLE_RATE) for i, start in enumerate(starts)]
    assert side.spans.flatten().tolist() == pytest.approx([1.5 + s for i in range(steps) for s in (starts[i], ends[i])])
    middles = [0.2 * i + 0.1075 if samples >= 3440 else samples / SAMPLE_RATE / 2 for i in range(steps)]
    assert side.times.tolist() == pytest.approx([1.5 + middle for middle in middles])


def test_the_time_of_a_step_is_the_middle_of_its_samples() -> None:
    """Also at the borders of windows: the values of a step do not depend on where its window starts."""
    sound, reach = noise(22640), 3440
    whole = encode_patches(Clip(audio=sound, rate=SAMPLE_RATE), FRAMES, PATCH, loudness)
    assert whole is not None
    for step, middle in enumerate((whole.times * SAMPLE_RATE).round().long().tolist()):
        alone = loudness(sound[0, middle - reach // 2 : middle + reach // 2])
        assert torch.allclose(whole.x[step], alone[0], atol=1e-5) and len(alone) == 1
