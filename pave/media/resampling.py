"""Sound at another sampling rate: windowed sinc resampling of a whole signal or of a stream.

In: samples (... n) and two rates. Out: samples. Knows nothing of files and clips.

n samples, m of the result
"""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Integral

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pave.errors import MediaError

# The defaults of torchaudio: encoders trained on sound that it resampled get the same input here.
SINC_WIDTH = 6  # zero crossings on each side
SINC_ROLLOFF = 0.99

MAX_KERNEL = 1 << 25  # numbers of filters: two rates with a small common divisor would need gigabytes
PHASES = 1024  # filters for such rates
BANK = 1 << 22  # numbers of those filters: for rates further apart they are as smooth with fewer
MAX_TAPS = 1 << 22  # samples that one result may depend on: of rates 350,000 times apart


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Sound (... n) at another rate: band-limited interpolation with a Hann-windowed sinc.

    y(m) = Σ_n x(n) · h(n / from_rate - m / to_rate), h the ideal low-pass at SINC_ROLLOFF of the lower Nyquist rate
    under a Hann window of SINC_WIDTH zero crossings (J. O. Smith, Digital Audio Resampling). With the rates' ratio
    reduced to from/to, h has only `to` different phases: one strided convolution with `to` output channels.
    """
    if not all(isinstance(rate, Integral) and rate > 0 for rate in (from_rate, to_rate)):
        raise MediaError(f"sound cannot be resampled from {from_rate} to {to_rate} Hz; rates are positive integers")
    if from_rate == to_rate or not audio.numel():
        return audio
    step, phases = lowest(from_rate, to_rate)
    length = audio.shape[-1]
    count = math.ceil(length * phases / step)
    if phases * (2 * reach_of(step, phases) + step) > MAX_KERNEL:
        return between(audio.reshape(-1, length), step, phases, count).reshape(*audio.shape[:-1], -1)
    kernel, reach = sinc_kernel(step, phases)
    flat = F.pad(audio.reshape(-1, 1, length), (reach, reach + step))
    waves = F.conv1d(flat, kernel.to(audio), stride=step)
    waves = rearrange(waves, "b phase n -> b (n phase)")[:, :count]
    return waves.reshape(*audio.shape[:-1], -1)


def lowest(from_rate: int, to_rate: int) -> tuple[int, int]:
    """The ratio of two rates in lowest terms."""
    common = math.gcd(from_rate, to_rate)
    return from_rate // common, to_rate // common


class Resampling:
    """`resample` of a stream of sound (c n)."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self.rates, (self.step, self.phases) = (from_rate, to_rate), lowest(from_rate, to_rate)
        reach = 0 if from_rate == to_rate else reach_of(self.step, self.phases)
        self.around = (
            -(-(reach + self.step) // self.step) * self.step
        )  # samples on either side that a result depends on
        self.held: Tensor | None = None
        self.before = 0  # held samples whose results have been returned

    def feed(self, sound: Tensor, *, last: bool = False) -> Tensor:
        """The results that these samples complete; all remaining ones if they are the last."""
        held = sound if self.held is None else torch.cat([self.held, sound], dim=-1)
        length = held.shape[-1]
        due = length if last else max(self.before, (length - self.around) // self.step * self.step)
        first, end = (-(-count * self.phases // self.step) for count in (self.before, due))
        result = resample(held, *self.rates)[..., first:end] if due > self.before else held[..., :0]
        cut = max(0, due - self.around) // self.step * self.step
        self.held, self.before = held[..., cut:], due - cut
        return result


def reach_of(step: int, phases: int) -> int:
    """Samples on each side that a result depends on."""
    return math.ceil(SINC_WIDTH * step / (min(step, phases) * SINC_ROLLOFF))


def between(audio: Tensor, step: int, phases: int, count: int) -> Tensor:
    """`count` samples (b m) of sound (b n) at the places m · step / phases, for ratios with too many phases for filters
    of their own: weights are interpolated between those of PHASES filters, which is accurate to 1e-5."""
    reach = reach_of(step, phases)
    if 2 * reach + 1 > MAX_TAPS:
        raise MediaError(f"sound cannot be resampled at a ratio of {step:,}:{phases:,}; correct its rate")
    bank = bank_of(step, phases)
    fine = len(bank) - 1
    windows = F.pad(audio, (reach, reach + 1)).unfold(-1, 2 * reach + 1, 1)
    waves = []
    for places in torch.arange(count).split(max(1, MAX_KERNEL // 16 // (2 * reach + 1))):
        whole, rest = places * step // phases, places * step % phases
        filters = rest.double() * fine / phases
        low = filters.long()
        part = (filters - low).float()[:, None]
        weights = torch.lerp(bank[low], bank[low + 1], part).to(audio)
        waves.append(torch.einsum("bmk,mk->bm", windows[:, whole], weights))
    return torch.cat(waves, 1)


@lru_cache(maxsize=8)
def bank_of(step: int, phases: int) -> Tensor:
    """The filters (up to PHASES + 1, taps) for places at equal distances from one sample to the next."""
    reach = reach_of(step, phases)
    taps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    fine = max(1, min(PHASES, BANK // len(taps)))
    shifts = torch.arange(fine + 1, dtype=torch.float64) / fine
    cutoff = min(1.0, phases / step) * SINC_ROLLOFF
    x = ((taps - shifts[:, None]) * cutoff).clamp(-SINC_WIDTH, SINC_WIDTH)  # in zero crossings of the sinc
    window = torch.cos(x * math.pi / (2 * SINC_WIDTH)).square()
    return (torch.special.sinc(x) * window * cutoff).float()


@lru_cache(maxsize=8)
def sinc_kernel(step: int, phases: int) -> tuple[Tensor, int]:
    """The filters (phase, 1, taps) of a ratio step:phases, computed in float64, and their reach in samples."""
    cutoff = min(step, phases) * SINC_ROLLOFF  # in units of common rate / 2
    reach = reach_of(step, phases)
    taps = torch.arange(-reach, reach + step, dtype=torch.float64) / step
    shifts = torch.arange(phases, dtype=torch.float64) / phases
    x = ((taps - shifts[:, None]) * cutoff).clamp(-SINC_WIDTH, SINC_WIDTH)  # in zero crossings of the sinc
    window = torch.cos(x * math.pi / (2 * SINC_WIDTH)).square()
    kernel = torch.special.sinc(x) * window * (cutoff / step)
    return rearrange(kernel.float(), "phase tap -> phase 1 tap"), reach
