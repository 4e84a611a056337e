"""Clips whose features are read when they are asked for, and the reading ahead of those that a step is about to need.

In: what reads the features of a clip. Out: what is known of the clip before, and its features. Knows nothing of files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from pave.data import Source
from pave.model.inputs import ClipFeatures

READERS = 4  # threads that read and unpack, at most
Finish = Callable[[], ClipFeatures]


@dataclass(frozen=True)
class Stored:
    """A clip whose features are read when they are asked for, and what is known of it before."""

    fetch: Callable[[], Finish]  # reads, in any thread; what it returns ends the work in the thread of the model
    present: frozenset[str] = frozenset()  # encoders of which it has side tokens, by their `spec.preprocessing`
    absent: Mapping[str, str] = field(default_factory=dict)  # why it has none of others
    warnings: tuple[str, ...] = ()
    outside: Mapping[str, int] = field(default_factory=dict)  # steps of a sensor before or after the clip, if any
    visual: int = 0  # visual tokens
    blind: bool = False  # without pictures

    @classmethod
    def of(cls, features: ClipFeatures) -> Stored:
        """A clip in memory."""
        return cls.told(lambda: lambda: features, known(features))

    @classmethod
    def told(cls, fetch: Callable[[], Finish], facts: Mapping[str, Any]) -> Stored:
        """A clip of which so much is `known`."""
        parts = {"present": frozenset(facts["present"]), "warnings": tuple(facts["warnings"])}
        return cls(fetch, **{**facts, **parts})

    @property
    def features(self) -> ClipFeatures:
        """Read now, at every access."""
        return self.fetch()()


def known(features: ClipFeatures, pictures: bool = False) -> dict[str, Any]:
    """What a `Stored` tells of a clip, as JSON values. `pictures`: whether they are kept instead of their features."""
    outside = {key: features.side(key, "time")[1] for key in features.sides}
    return {
        "present": sorted(key for key, side in features.sides.items() if side is not None and side.present),
        "absent": dict(features.absent),
        "warnings": list(features.warnings),
        "outside": {key: steps for key, steps in outside.items() if steps},
        "visual": features.tokens.shape[:2].numel(),
        **({"blind": True} if features.blind and not pictures else {}),
    }


def shuffled(clips: Sequence[Stored], seed: int) -> list[Stored]:
    """Clips that each have the side tokens of another one of them: in one random cycle, so that none keeps its own."""
    order = list(range(len(clips)))
    Random(seed).shuffle(order)
    donors = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [with_signals(clip, clips[donors[place]]) for place, clip in enumerate(clips)]


def with_signals(clip: Stored, donor: Stored) -> Stored:
    """A clip with the side tokens of another one."""

    def fetch() -> Finish:
        own, other = clip.fetch(), donor.fetch()
        return lambda: replace(own(), sides=other().sides)

    return replace(clip, fetch=fetch, present=donor.present, absent=donor.absent, outside=donor.outside)


class Features(Mapping[Source, ClipFeatures]):
    """The features of clips, in order, which are read at every access; `stored`: what is known of them before."""

    def __init__(self, stored: Mapping[Source, Stored]) -> None:
        self.stored = stored

    def __getitem__(self, source: Source) -> ClipFeatures:
        return self.stored[source].features

    def __iter__(self) -> Iterator[Source]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, source: object) -> bool:  # without reading it
        return source in self.stored


class Ahead:
    """Features of batches of clips, each read in threads while the batch before it is computed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="features")
        self._begun: dict[int, tuple[Stored, Future[Finish]]] = {}  # by id, which is the clip's as long as it is here
        self.waited = 0.0  # seconds for reading that was not done when it was needed

    def features(self, clips: Sequence[Stored], following: Sequence[Stored] = ()) -> list[ClipFeatures]:
        """Of a batch; the reading of the following one begins."""
        due = self._begun | self._begin(clips, self._begun)
        self._begun = self._begin(following, {})
        begin = time.perf_counter()
        read = [due[id(clip)][1].result() for clip in clips]
        self.waited += time.perf_counter() - begin
        return [finish() for finish in read]

    def _begin(self, clips: Sequence[Stored], begun: Mapping[int, Any]) -> dict[int, tuple[Stored, Future[Finish]]]:
        fresh = {id(clip): clip for clip in clips if id(clip) not in begun}
        return {name: (clip, self._pool.submit(clip.fetch)) for name, clip in fresh.items()}
