"""Sound as Kaldi's `fbank` draws it: log-mel power in frames of 25 ms, one every 10 ms.

In: the sound of a clip. Out: its spectrum, and what a network makes of it as side tokens. ImageBind, LanguageBind and
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
FLOOR = torch.finfo(torch.float32).eps  # power below which nothing is heard
HANN, POVEY = 1.0, 0.85  # exponents of Hann's window


def fbank(sound: Tensor, bands: int, window: float = HANN) -> Tensor:
    """Samples (... n) to log power (... t m) of whole frames. A mean of the samples changes nothing: each frame loses
    its own. Loudness does, near the floor: Kaldi's own samples are of 16 bits, those of a clip reach from -1 to 1."""
    frames = sound.unfold(-1, FRAME, HOP)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    shape = torch.hann_window(FRAME, periodic=False, device=sound.device) ** window
    power = torch.fft.rfft((frames - PRE_EMPHASIS * before) * shape, n=FFT).abs().square()
    return (power @ filters(bands).to(sound.device)).clamp(min=FLOOR).log()


@cache
def filters(bands: int) -> Tensor:
    """Triangles (bin m) of height 1, straight and even on the mel scale 1127·ln(1 + f / 700); the last bin is deaf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a low one of 127 bands or more hears no bin: all were trained so
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


def listen(clip: Clip, frames: int, patch: int, tokens: Callable[[Tensor], Tensor]) -> SideTokens | None:
    """Side tokens of a network that reads the spectrum in patches of `patch` frames.

    It hears windows of `frames` frames, whole patches, one after the other and each for itself: a token spans its
    window, and its time is the middle of its patch. `tokens` makes of the samples of a window (n,) its time steps
    (τ h w c), one for every patch. The last window may be shorter; what fills no patch at its end is left out, but a
    sound of less than a patch is followed by silence.
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
    """How a network that `listen` serves can hear piece by piece: a window at a time, and behind it a sample less
    than what would begin the next."""
    reach = FRAME + (patch - 1) * HOP
    return Pieces(frames * HOP / SAMPLE_RATE, SAMPLE_RATE, after=(reach - 1) / SAMPLE_RATE)
