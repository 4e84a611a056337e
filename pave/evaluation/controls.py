"""Controls of a certificate: signals that lack what is heard, and keep something else that could tell the answer.

In: features of clips, and their questions. Out: signals of other clips for each question, of about the same length and
loudness; and encoders of what keeps only the loudness.

What a deaf patch may read in place of the content, and what stays the same in a control, so that it gains nothing:
that there is a signal (in all, but `silent`); how long it is (in all: another clip's is brought to this clip's times);
how loud it is as a whole (`envelope`, and about so in `shuffled`), and when (`envelope`).

τ time steps, n samples, w samples of a window
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from pave.encoder import Encoder
from pave.features.stored import Features, Stored
from pave.media.clip import Clip
from pave.media.resampling import resample
from pave.model.inputs import ClipFeatures
from pave.sidechannel import SideTokens

LONGER = 1.25  # signals of one stratum differ by less in duration
LOUDER = 3.0  # dB, and by less in loudness: with 6, planted readers of loudness alone were nearly certified
WINDOW = 0.05  # seconds, over which loudness is measured: shorter than a syllable, longer than a period of 40 Hz
LOUD = 0.1  # of the loudest moment, -20 dB: what is softer is a pause, and not used as a sound
CARRIERS = 16  # clips whose sounds are heard in `envelope`
QUIETEST = 1e-8  # power, -80 dB
TRIES = 50  # orders, of which the one with most pairs is taken


class Envelope(Encoder):
    """Hears the sounds of other clips, at each moment as loud as the clip's own: what Smith, Delgutte and Oxenham
    (2002) call a chimaera, of one sound's envelope and another's fine structure."""

    def __init__(self, encoder: Encoder, carriers: Sequence[tuple[Tensor, int]]) -> None:
        self.encoder, self.channel = encoder, encoder.channel
        self.carriers = carriers  # samples (n,), and their rate
        content = sha256(b"".join(sound.numpy().tobytes() for sound, _ in carriers)).hexdigest()
        self.spec = replace(encoder.spec, name=f"{encoder.spec.name} of other sounds {content[:16]}")

    def encode(self, clip: Clip) -> SideTokens | None:
        if clip.audio is None or not clip.rate or not clip.audio.shape[-1]:
            return self.encoder.encode(clip)
        # Chosen by what is heard, so that it is the same wherever the file is.
        mono = clip.audio.mean(0)
        sound, rate = self.carriers[crc32(mono.numpy().tobytes()) % len(self.carriers)]
        flat = resample(sound[None], rate, clip.rate)[0]
        length = clip.audio.shape[-1]
        own = loudness(mono, clip.rate) * flat.repeat(-(-length // len(flat)))[:length]
        return self.encoder.encode(replace(clip, audio=own.clamp(-1, 1).expand_as(clip.audio).contiguous()))


class Loudness(Encoder):
    """One token: the loudness of a clip's sound, in dB."""

    def __init__(self, encoder: Encoder) -> None:
        self.channel = encoder.channel
        self.spec = replace(encoder.spec, name="loudness", dim=1, grid=(1, 1), points=False, options={}, revision="1")

    def encode(self, clip: Clip) -> SideTokens | None:
        if clip.audio is None or not clip.audio.shape[-1]:
            return None
        power = max(float(clip.audio.double().square().mean()), QUIETEST)
        return SideTokens.regular(torch.tensor([[10 * math.log10(power)]]), rate=1.0)


def loudness(sound: Tensor, rate: int) -> Tensor:
    """The root mean square of the window around each sample of (n,)."""
    window = max(1, round(WINDOW * rate))
    sums = torch.nn.functional.pad(sound.double().square().cumsum(0), (1, 0))  # (n + 1)
    places = torch.arange(len(sound))
    first, last = (places - window // 2).clamp(min=0), (places + window - window // 2).clamp(max=len(sound))
    return ((sums[last] - sums[first]).clamp(min=0) / (last - first)).sqrt().float()


def carrier(sound: Tensor, rate: int) -> Tensor | None:
    """What is heard in (n,) at an even loudness of 1, without its pauses; None for digital silence."""
    level = loudness(sound, rate)
    loud = level > max(LOUD * float(level.max()), QUIETEST**0.5)
    return (sound[loud] / level[loud]) if loud.any() else None


def carriers_of(clips: Iterable[Clip]) -> list[tuple[Tensor, int]]:
    """The sounds of clips, for `Envelope`."""
    heard = [(clip.audio.mean(0), clip.rate) for clip in clips if clip.audio is not None and clip.rate]
    flat = [(carrier(sound, rate), rate) for sound, rate in heard if len(sound)]
    return [(sound, rate) for sound, rate in flat if sound is not None][:CARRIERS]


def stratum(clip: ClipFeatures, keys: Sequence[str], level: str) -> Hashable:
    """What signals must have in common to be exchanged: which are there, their grid, and about their length and
    loudness. level: the key of `Loudness`, or empty."""
    facts: list[Hashable] = []
    for key in keys:
        side = clip.sides[key]
        if side is None or not side.present:
            facts.append(None)
            continue
        seconds = float(side.spans[:, 1].max() - side.spans[:, 0].min())
        facts += [tuple(side.x.shape[1:]), side.kind, round(math.log(max(seconds, 1e-3), LONGER))]
    loud = clip.sides.get(level) if level else None
    return (*facts, None if loud is None else math.floor(float(loud.x.flatten()[0]) / LOUDER))


def deranged(clips: Sequence[Hashable], answers: Sequence[str], random: Random) -> list[int | None]:
    """For each question, the place of one whose signal it gets: of another clip, with another answer; no signal is
    used twice. None: there is none for it; so few as a search finds.

    Of an answer that more than half of the questions have, only as many can be exchanged as there are others."""
    best: list[int | None] = [None] * len(clips)
    groups: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        groups.setdefault(answer, []).append(place)
    for _ in range(TRIES):
        parts = [random.sample(group, len(group)) for group in groups.values()]
        random.shuffle(parts)
        largest = max(parts, key=len)
        del largest[len(answers) - len(largest) :]
        order = [place for part in parts for place in part]
        # Groups are contiguous and none is longer than `step`, nor than what is left of the circle: each lands outside.
        step = len(largest)
        found: list[int | None] = [None] * len(clips)
        for i, place in enumerate(order):
            donor = order[(i + step) % len(order)]
            found[place] = donor if clips[donor] != clips[place] else None
        if found.count(None) < best.count(None):
            best = found
        if found.count(None) == len(answers) - len(order):  # no more are possible
            break
    return best


def exchanged(
    features: Mapping[Any, ClipFeatures], pairs: Iterable[tuple[Any, Any]], keys: Sequence[str]
) -> Mapping[Any, ClipFeatures]:
    """By pair of a clip and a donor: the clip with the donor's signals of these keys, at its own times."""

    def read(clip: Any, donor: Any) -> ClipFeatures:
        own, other = features[clip], features[donor]
        return replace(own, sides={**own.sides, **{key: _timed(other.sides[key], own.sides[key]) for key in keys}})

    found: Any = {pair: Stored(partial(partial, read, *pair)) for pair in dict.fromkeys(pairs)}
    return Features(found)


def _timed(side: SideTokens | None, own: SideTokens | None) -> SideTokens | None:
    """Another clip's tokens at the times of this one's; they begin again if they are fewer."""
    if side is None or own is None:
        return side
    steps = torch.arange(len(own.x)) % len(side.x)
    return replace(own, x=side.x[steps], valid=side.valid[steps])
