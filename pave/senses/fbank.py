"""Log-mel spectra as in Kaldi's `fbank`: frames of 25 ms, one every 10 ms.

In: the sound of a clip. Out: its spectrum, and the side tokens of a network that reads it. ImageBind, LanguageBind and
BEATs were all trained on it, with different bands and windows. The numbers are Kaldi's defaults (feat/feature-window.h
and feat/mel-computations.h of kaldi-asr/kaldi), without dither. Knows nothing of weights.

n samples, t frames, m mel bands, τ time steps
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from pave.encoder import Pieces
from pave.media.clip import Clip
from pave.senses.sound import mono
from pave.sidechannel import SideTokens

SAMPLE_RATE = 16_000  # Hz
FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the next power of two
LOWEST = 20.0  # Hz
PRE_EMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # minimum power
HANN, POVEY = 1.0, 0.85  # exponents of Hann's window


def fbank(sound: Tensor, bands: int, window: float = HANN) -> Tensor:
    """Samples (... n) to log power (... t m) of whole frames. A constant offset does not matter: each frame's mean is
    subtracted. The scale does, near the floor: Kaldi's samples are 16-bit integers, those of a clip are in [-1, 1]."""
    frames = sound.unfold(-1, FRAME, HOP)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    shape = torch.hann_window(FRAME, periodic=False, device=sound.device) ** window
    power = torch.fft.rfft((frames - PRE_EMPHASIS * before) * shape, n=FFT).abs().square()
    return (power @ filters(bands).to(sound.device)).clamp(min=FLOOR).log()


@cache
def filters(bands: int) -> Tensor:
    """Triangles (bin m) of height 1, linear and evenly spaced on the mel scale 1127·ln(1 + f / 700); the last bin has
    weight 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # with 127 bands or more, a low one is empty: trained like this
        bank = mel_filter_bank(
            FFT // 2 + 1,
            bands,
            LOWEST,
            SAMPLE_RATE / 2,
            SAMPLE_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return torch.from_numpy(bank).float()


def encode_patches(clip: Clip, frames: int, patch: int, tokens: Callable[[Tensor], Tensor]) -> SideTokens | None:
    """Side tokens of a network that reads the spectrum in patches of `patch` frames.

    Windows of `frames` frames, whole patches, are encoded independently: a token spans its window, and its time is the
    middle of its patch. `tokens` maps the samples of a window (n,) to its time steps (τ h w c), one per patch. The last
    window may be shorter; an incomplete patch at its end is dropped, but a sound shorter than a patch is padded with
    silence.
    """
    sound = mono(clip, SAMPLE_RATE)
    if sound is None:
        return None
    length, step = len(sound), frames * HOP
    window, reach = (FRAME + (count - 1) * HOP for count in (frames, patch))  # samples
    sound = F.pad(sound, (0, max(0, reach - length)))
    starts = range(0, len(sound) - reach + 1, step)
    x = torch.cat([tokens(sound[start : start + window]) for start in starts])
    first = torch.arange(len(x), dtype=torch.float64) * patch * HOP
    times = (first + (first + reach).clamp(max=length)) / 2
    begin = first // step * step
    spans = torch.stack([begin, (begin + window).clamp(max=length)], dim=-1)
    valid = torch.ones(x.shape[:3], dtype=torch.bool)
    return SideTokens(x, clip.audio_start + times / SAMPLE_RATE, clip.audio_start + spans / SAMPLE_RATE, valid)


def pieces_of(frames: int, patch: int) -> Pieces:
    """Pieces for a network that uses `encode_patches`: a window at a time, followed by one sample less than the first
    patch of the next window needs."""
    reach = FRAME + (patch - 1) * HOP
    return Pieces(frames * HOP / SAMPLE_RATE, SAMPLE_RATE, after=(reach - 1) / SAMPLE_RATE)
