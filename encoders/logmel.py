"""Log-mel spectrum of the sound: an encoder without weights.

In: the sound of a clip at any rate. Out: `rate` tokens per second, each the mean log-mel spectrum of its period (with
`stack` > 1: the spectra of its consecutive parts, concatenated). All constants are fixed, without statistics of the
clip: loudness is preserved, and a token depends on nothing later than half a window after it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Number, Pieces, Whole, builder
from pave.errors import EncoderError
from pave.media import Clip
from pave.senses.sound import mono
from pave.sidechannel import SideTokens

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples: 25 ms, as usual in speech recognition
FFT = 1024  # zero padded: with 512, bins of 31 Hz would leave the lowest of 64 bands empty
PART = 4096  # windows per batch
MAX_HOP = 200  # samples: half a window, so that windows cover all samples


Many = Annotated[Whole, Field(description="needs an integer {key} ≥ 1")]
Bands = Annotated[Many, Field(le=FFT // 2)]  # a bin of the spectrum each
# A float, so that 50 and 50.0 share a cache.
Hertz = Annotated[
    Number,
    Field(ge=0, le=SAMPLE_RATE / 2, description=f"covers 0 to {SAMPLE_RATE // 2} Hz"),
    AfterValidator(float),
]


class Options(EncoderOptions):
    """What a recipe may say; frequencies in Hz."""

    bands: Bands = 64
    rate: Many = 20  # tokens per second
    fmin: Hertz = 50.0
    fmax: Hertz = 8000.0
    # Added to the power before the logarithm; a full-scale sine has power 1, so this is -80 dB.
    floor: Annotated[
        Number, Field(gt=0, lt=math.inf, description="needs a finite number {key} > 0"), AfterValidator(float)
    ] = 1e-8
    stack: Many = 1  # consecutive spectra inside one token

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.fmin >= self.fmax:
            raise ValueError(f"needs fmin below fmax, got fmin={self.fmin} and fmax={self.fmax}")
        if SAMPLE_RATE % self.rate or (SAMPLE_RATE // self.rate) % self.stack:
            raise ValueError(
                f"at rate={self.rate} with stack={self.stack} does not divide {SAMPLE_RATE} samples per second; use "
                "for example rate=20 and stack=1, 2 or 4"
            )
        return self


class LogMel(Encoder):
    """Deterministic, without weights; 4 s of sound take about a millisecond."""

    pieces = Pieces(8, SAMPLE_RATE, before=1, after=1)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.period = SAMPLE_RATE // options.rate  # samples of one token
        self.hop = _hop(self.period, options.stack)
        self.spec = EncoderSpec(
            name="logmel",
            sense="audio",
            dim=options.bands * options.stack,
            rate=options.rate,
            revision="1",
            licence="Apache-2.0",
            options=options.resolved,
        )
        if empty := int((self.filters.sum(0) == 0).sum()):
            raise EncoderError(
                f"{empty} of {options.bands} bands are narrower than a bin of the spectrum; use fewer bands"
            )

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 1 c) from the clip's first sample on; a last piece shorter than half a token is dropped."""
        sound = mono(clip, SAMPLE_RATE)
        if sound is None:
            return None
        return SideTokens.regular(self.spectra(sound), rate=self.options.rate, start=clip.audio_start)

    def spectra(self, sound: Tensor) -> Tensor:
        """Samples (n,) at 16 kHz to tokens (τ c) of about unit scale; silence is -1.5, a full-scale sine about 2.6."""
        steps = max(1, (len(sound) + self.period // 2) // self.period)
        length = steps * self.period + WINDOW - self.hop
        before = (WINDOW - self.hop) // 2  # centres the windows of a token on its period
        sound = F.pad(sound, (before, length - before - len(sound)))  # negative padding crops
        parts = sound.unfold(0, WINDOW, self.hop).split(PART)  # an hour in one batch would take gigabytes
        log = torch.cat([torch.log10(self._power(part) + self.options.floor) for part in parts])
        log = reduce(log, "(τ stack part) band -> τ stack band", "mean", τ=steps, stack=self.options.stack)
        # Fixed: with the default floor, log10 power is in -8 … 0, and everyday sound is around -5.
        return rearrange((log + 5) / 2, "τ stack band -> τ (stack band)")

    def _power(self, frames: Tensor) -> Tensor:
        """Samples (τ window) to power in every band (τ band)."""
        spectrum = torch.fft.rfft(frames * self.window, n=FFT)
        return torch.view_as_real(spectrum).square().sum(-1) @ self.filters

    @cached_property
    def window(self) -> Tensor:
        """Hann, scaled so that a full-scale sine has power 1 in its bin."""
        window = torch.hann_window(WINDOW)
        return window * 2 / window.sum()

    @cached_property
    def filters(self) -> Tensor:
        """Triangles (bin band) of height 1, evenly spaced on the mel scale 2595·log10(1 + f / 700) of O'Shaughnessy
        (1987)."""
        # Not transformers' mel_filter_bank: for some fmin and fmax, when a bin is on an edge, its last bit differs.
        low, high = (2595 * math.log10(1 + f / 700) for f in (self.options.fmin, self.options.fmax))
        mels = torch.linspace(low, high, self.options.bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        bins = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)[:, None]
        rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        return torch.minimum(rise, fall).clamp(min=0).to(torch.float32)


def _hop(period: int, stack: int) -> int:
    """The longest hop up to MAX_HOP that divides each of a token's `stack` parts."""
    part = period // stack
    return next(hop for hop in range(min(MAX_HOP, part), 0, -1) if part % hop == 0)


build = builder(Options, LogMel)
