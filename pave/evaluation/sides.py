"""What a side channel is replaced by, to see whether a model uses it.

In: features of clips. Out: the same clips with other side channels, changed when they are read:

base      as they are, but no patch runs
own       as they are
off       absent in all clips; the answers of most patches are then the base's
silent    there, and empty: digital silence in place of sound, zeros in place of the tokens of other senses
shuffled  those of another clip; what a patch knows of them is then wrong
shifted   half their length later, their end at the beginning: what was heard is right, when it was is wrong

Knows nothing of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Literal, cast, get_args

import torch

from pave.data import Source
from pave.encoder import Encoder
from pave.errors import DataError, UsageError, nearest
from pave.features.stored import Features, Stored
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures
from pave.sidechannel import SideTokens

Side = Literal["base", "own", "off", "silent", "shuffled", "shifted"]


def sides_of(named: Side | Sequence[Side]) -> tuple[Side, ...]:
    """The sides, each once. UsageError for an unknown one."""
    sides = (named,) if isinstance(named, str) else tuple(dict.fromkeys(named))
    for side in sides:
        if side not in get_args(Side):
            raise UsageError(f"side={side!r}: use one of {', '.join(get_args(Side))}; {nearest(side, get_args(Side))}")
    if not sides:
        raise UsageError(f"no side is named; use one or more of {', '.join(get_args(Side))}")
    return cast("tuple[Side, ...]", sides)


class Silent(Encoder):
    """An encoder that hears digital silence, as long as the sound of the clip."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.channel = encoder, encoder.channel
        self.spec = replace(encoder.spec, name=f"{encoder.spec.name} of silence")

    def encode(self, clip: Clip) -> SideTokens | None:
        silence = None if clip.audio is None else torch.zeros_like(clip.audio)
        return self.encoder.encode(replace(clip, audio=silence))


def silent(encoders: Iterable[Encoder]) -> dict[str, Encoder]:
    """For each encoder that hears, by its `spec.preprocessing`, one that hears silence."""
    return {encoder.spec.preprocessing: Silent(encoder) for encoder in encoders if encoder.hears}


def changed(
    features: Mapping[Source, ClipFeatures],
    side: Side,
    seed: int,
    silences: Mapping[str, Encoder],
    keys: Collection[str] | None = None,
) -> Mapping[Source, ClipFeatures]:
    """The same clips with other side channels; keys: which, None: all. silences: of `silent`, whose tokens the features
    have, too."""
    if side in ("base", "own"):
        return features
    if side == "shuffled":
        sources = list(features)
        if len(sources) < 2:
            raise DataError("side='shuffled' needs two clips or more, got one; add clips")
        Random(seed).shuffle(sources)
        donors = dict(zip(sources, [*sources[1:], sources[0]], strict=True))  # one cycle: no clip keeps its own
        return _each(features, lambda source, clip: replace(clip, sides=features[donors[source]].sides))
    replaced = {"off": _off, "silent": partial(_silent, silences), "shifted": _shifted}[side]

    def sides(clip: ClipFeatures) -> Sides:
        new = replaced(clip)
        return new if keys is None else {**clip.sides, **{key: new[key] for key in keys}}

    return _each(features, lambda source, clip: replace(clip, sides=sides(clip)))


Sides = dict[str, SideTokens | None]


def _off(clip: ClipFeatures) -> Sides:
    return dict.fromkeys(clip.sides)


def _silent(silences: Mapping[str, Encoder], clip: ClipFeatures) -> Sides:
    return {
        key: clip.sides[silences[key].spec.preprocessing]
        if key in silences
        else side and replace(side, x=torch.zeros_like(side.x))
        for key, side in clip.sides.items()
    }


def _shifted(clip: ClipFeatures) -> Sides:
    return {
        key: side and replace(side, x=side.x.roll(len(side.x) // 2, 0), valid=side.valid.roll(len(side.x) // 2, 0))
        for key, side in clip.sides.items()
    }


def _each(
    features: Mapping[Source, ClipFeatures], change: Callable[[Source, ClipFeatures], ClipFeatures]
) -> Mapping[Source, ClipFeatures]:
    """The same clips, each changed when it is read."""

    def read(source: Source) -> ClipFeatures:
        return change(source, features[source])

    return Features({source: Stored(partial(partial, read, source)) for source in features})
