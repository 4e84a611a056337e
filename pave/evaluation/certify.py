"""Measures whether a patch uses its sense: its gain with each clip's own signal over controls, on a labelled set.

In: a model with a patch, and questions with answers. Out: a `Certificate`. All runs see the same frames and answer the
same questions. The gain over a control is paired, with an interval over clips; the patch is certified if it is above 0
over every control. The seed is fixed, so that nobody can look for a lucky one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pave.data import Example, Source
from pave.encoder import Encoder
from pave.errors import DataError, UsageError, nearest
from pave.evaluation.accuracy import settings_of
from pave.evaluation.asking import Asked, OnAnswers, ask
from pave.evaluation.capacity import unlike
from pave.evaluation.controls import CARRIERS, Envelope, Loudness, carriers_of, deranged, exchanged, stratum
from pave.evaluation.intervals import Bootstrap
from pave.evaluation.journal import Journal
from pave.evaluation.labelled import labelled, named
from pave.evaluation.metrics.answers import folded
from pave.evaluation.metrics.known import measure
from pave.evaluation.metrics.measured import Measured
from pave.evaluation.result import references_of
from pave.evaluation.sides import changed, silent
from pave.features.cache import FeatureCache, OnClip
from pave.files.locks import held
from pave.media.clip import Clip
from pave.media.decoding import Timeout
from pave.model.inputs import ClipFeatures
from pave.model.options import most_of
from pave.model.patched import PatchedModel
from pave.patch.certificate import (
    CONTROLS,
    FEWEST,
    MOST_TYPES,
    Certificate,
    Control,
    Gain,
    LabelledSet,
    PlayroomSet,
    TypeOfQuestion,
)
from pave.readers.questions import Data
from pave.text.shown import counted

SEED = 0
LEVEL, RESAMPLES = 0.99, 4_000  # of the intervals: one deaf patch in 200 would gain over a control by luck
TYPES = ("kind", "channel")  # keys of a line that say its type of question, in order
DEAF = "its clip lacks the sense"
ALONE = "no clip of its type, length and loudness has another answer (of `shuffled` only)"


@dataclass(frozen=True)
class Ears:
    """The encoders of a patch, and those of its controls."""

    own: Mapping[str, Encoder]  # by `spec.preprocessing`, as all of them
    silences: Mapping[str, Encoder]
    envelopes: Mapping[str, Encoder]
    level: Encoder | None

    @classmethod
    def of(cls, encoders: Sequence[Encoder], sounds: Sequence[Clip]) -> Ears:
        """sounds: clips that are heard in `envelope`; not needed if no encoder hears."""
        hearing = [encoder for encoder in encoders if encoder.hears]
        carriers = carriers_of(sounds) if hearing else []
        if hearing and not carriers:
            raise DataError(
                f"none of {counted(len(sounds), 'clip')} has sound that is not silent; add clips with sound"
            )
        return cls(
            {encoder.spec.preprocessing: encoder for encoder in encoders},
            silent(hearing),
            {encoder.spec.preprocessing: Envelope(encoder, carriers) for encoder in hearing},
            Loudness(hearing[0]) if hearing else None,
        )

    @property
    def all(self) -> list[Encoder]:
        level = [self.level] if self.level else []
        return [*self.own.values(), *self.silences.values(), *self.envelopes.values(), *level]


def certify(
    model: PatchedModel,
    data: Data | PlayroomSet,
    *,
    patch: str | None = None,
    capacity: str | None = None,
    any_time: bool = False,
    by: str | None = None,
    metric: str = "match",
    folder: str | Path | None = None,
    batch: int = 32,
    max_new_tokens: int | None = None,
    timeout: Timeout = "auto",
    on_clip: OnClip | None = None,
    on_answers: OnAnswers | None = None,
) -> Certificate:
    """Measure whether an applied patch uses its sense, on data as `pave.evaluate` takes it, or on a `PlayroomSet`.

    patch: its name; None: the one that is applied last. Others that are applied act, too, in all runs.
    capacity: an applied patch of the same shape, trained with signals that tell nothing; it acts in that control only.
    any_time: the questions do not ask when something happens, so a shifted signal need not be worse.
    by: the key of a line that says its type of question; None: `kind`, or else `channel`, if there.
    metric: one whose value is a mean over answers. folder: for answers and features, from which it goes on.
    DataError if the set is too small to say anything.
    """
    name, other = _applied(model, patch, capacity)
    encoders = _of(model, name, capacity)
    with ExitStack() as stack:
        if folder is not None:
            folder = Path(folder)
            stack.enter_context(held(folder, "a certification"))
        examples = labelled(data, folder, model.host.refuse_text)
        store = FeatureCache(model, model.encoders(), None, (), timeout)
        heard = _sounds(store, examples) if any(encoder.hears for encoder in encoders) else []
        ears = Ears.of(encoders, heard)
        below = [each for each in model.encoders() if each.spec.preprocessing not in ears.own]
        cache = folder / "features" if folder is not None else None
        store = FeatureCache(model, [*ears.all, *below], cache, (), timeout)
        features = store.read(list(dict.fromkeys(example.source for example in examples)), on_clip)
        unreadable = sum(example.source not in features for example in examples)
        left_out = {"its clip cannot be read": unreadable} if unreadable else {}
        examples = [example for example in examples if example.source in features]
        if not examples:
            reason = next(iter(store.refused.values()), "there is none")
            raise DataError(f"no clip can be read; the first: {reason}")
        if max_new_tokens is None:
            max_new_tokens = 1 + max(len(model.host.encode_text(example.answer)) for example in examples)
        trial = Trial(model, name, other, capacity, ears, examples, features, by, metric, any_time)
        settings = {"batch": batch, "max_new_tokens": most_of(max_new_tokens)}
        return trial.run(folder, settings, on_answers, left_out, data)


@dataclass(frozen=True)
class Trial:
    """A patch on questions whose clips are encoded."""

    model: PatchedModel
    name: str
    others: tuple[str, ...]  # that act, too
    capacity: str | None
    ears: Ears
    examples: Sequence[Example]
    features: Mapping[Source, ClipFeatures]
    by: str | None = None
    metric: str = "match"
    any_time: bool = False

    def run(
        self,
        folder: Path | None,
        decoder: Mapping[str, int],
        on_answers: OnAnswers | None,
        left_out: Mapping[str, int],
        data: Any = (),
    ) -> Certificate:
        """Answer all questions in all runs, and compare."""
        alike = self._strata()
        asked = [example for example in self.examples if example.source in alike]
        clips = len({example.source for example in asked})
        if clips < FEWEST:
            cause = (
                f"{counted(clips, 'clip')} of {len({e.source for e in self.examples})} have the sense of {self.name}"
            )
            raise DataError(f"{cause}; a certificate needs {FEWEST} or more: add clips")
        types = self._types(asked)
        donors = self._donors(asked, types, alike)
        exchangeable = np.array([donor is not None for donor in donors])
        if (few := len({e.source for e, d in zip(asked, donors, strict=True) if d is not None})) < FEWEST:
            cause = f"signals can be exchanged for {counted(int(exchangeable.sum()), 'question')} of {len(asked)}"
            raise DataError(
                f"{cause}, about {counted(few, 'clip')}: the others have no clip of their type, length and loudness "
                f"with another answer; a certificate needs {FEWEST} clips or more: add clips"
            )
        runs = self._runs(asked, donors)
        settings = settings_of(self.model, (), asked, [self.name, *self.others], ())
        given = named(data, asked, self._field, types)
        settings |= {"certificate": given.model_dump(mode="json"), "runs": list(runs), **decoder}
        journal = Journal(folder, settings)
        ask(self.model, asked, runs, decoder["batch"], decoder["max_new_tokens"], journal, (), on_answers)
        answers = {run: [journal.known[i][run] for i in range(len(asked))] for run in runs}
        masks = {run: np.ones(len(asked), bool) for run in runs} | {"shuffled": exchangeable}
        left = {**left_out, DEAF: len(self.examples) - len(asked), ALONE: int((~exchangeable).sum())}
        return self._compared(asked, types, answers, masks, given, decoder, {k: n for k, n in left.items() if n})

    def _strata(self) -> dict[Source, Hashable]:
        """What the signals of each clip must have in common to be exchanged; without clips that lack the sense."""
        level = self.ears.level.spec.preprocessing if self.ears.level else ""
        keys, found = list(self.ears.own), dict[Source, Hashable]()
        for source in dict.fromkeys(example.source for example in self.examples):
            clip = self.features[source]
            if any((side := clip.sides.get(key)) is not None and side.present for key in keys):
                found[source] = stratum(clip, keys, level)
        return found

    @property
    def _field(self) -> str:
        """The key of a line that says its type of question; empty: none."""
        known = dict.fromkeys(key for example in self.examples for key in example.facts)
        if self.by is not None and self.by not in known:
            raise UsageError(f"by={self.by!r}: no question has this key; {nearest(self.by, known)}")
        return self.by or next((key for key in TYPES if key in known), "")

    def _types(self, asked: Sequence[Example]) -> list[str]:
        key = self._field
        return [str(example.facts.get(key, "none"))[:200] if key else "all" for example in asked]

    def _donors(
        self, asked: Sequence[Example], types: Sequence[str], alike: Mapping[Source, Hashable]
    ) -> list[int | None]:
        """For each question, the place of the one whose signal it gets in `shuffled`."""
        strata: dict[Hashable, list[int]] = {}
        for place, example in enumerate(asked):
            strata.setdefault((types[place], alike[example.source]), []).append(place)
        donors: list[int | None] = [None] * len(asked)
        random = Random(SEED)
        for places in strata.values():
            clips, answers = [asked[i].source for i in places], [folded(asked[i].answer) for i in places]
            for place, donor in zip(places, deranged(clips, answers, random), strict=True):
                donors[place] = None if donor is None else places[donor]
        return donors

    def _runs(self, asked: Sequence[Example], donors: Sequence[int | None]) -> dict[str, Asked]:
        own, acting = [example.source for example in asked], [*self.others, self.name]
        pairs = [
            (e.source, asked[i if d is None else d].source) for i, (e, d) in enumerate(zip(asked, donors, strict=True))
        ]
        keys, features = list(self.ears.own), self.features
        runs = {
            "own": Asked(features, own, acting),
            "shuffled": Asked(exchanged(features, pairs, keys), pairs, acting),
            "silent": Asked(changed(features, "silent", SEED, self.ears.silences, keys), own, acting),
            "shifted": Asked(changed(features, "shifted", SEED, {}, keys), own, acting),
        }
        if self.ears.envelopes:
            louds = changed(features, "silent", SEED, self.ears.envelopes, self.ears.envelopes.keys())
            runs["envelope"] = Asked(louds, own, acting)
        if self.capacity is not None:
            runs["capacity"] = Asked(features, own, [*self.others, self.capacity])
        return runs

    def _compared(
        self,
        asked: Sequence[Example],
        types: Sequence[str],
        answers: Mapping[str, Sequence[str]],
        masks: Mapping[str, np.ndarray],
        given: LabelledSet,
        decoder: Mapping[str, int],
        left_out: Mapping[str, int],
    ) -> Certificate:
        references = [references_of(example) for example in asked]
        measured = {run: self._measured(texts, references) for run, texts in answers.items()}
        sources = [example.source for example in asked]
        draws = Bootstrap(sources, SEED, LEVEL, RESAMPLES)

        def gains(group: np.ndarray) -> dict[Control, Gain]:
            found = {}
            for run in measured.keys() - {"own"}:
                chosen = group & masks[run]
                if chosen.any():
                    figure = draws.difference(measured["own"], measured[run], chosen)
                    counts = {
                        "questions": int(chosen.sum()),
                        "clips": len({s for s, held in zip(sources, chosen, strict=True) if held}),
                    }
                    found[run] = Gain(value=figure.value, low=figure.low, high=figure.high, **counts)
            return {run: found[run] for run in CONTROLS if run in found}

        kinds = Counter(types).most_common(MOST_TYPES)
        rows = [
            TypeOfQuestion(name=kind, questions=count, own=measured["own"].only(group).value, gains=gains(group))
            for kind, count in kinds
            for group in [np.array([each == kind for each in types])]
        ]
        base, reports = settings_of(self.model, (), asked, [self.name], ()), self.model.patches
        missing: dict[Control, str] = {} if "envelope" in answers else {"envelope": "no sense of the patch is sound"}
        missing |= {} if self.capacity else {"capacity": "no such patch was given"}
        return Certificate(
            sha256=reports[self.name].sha256,
            data=given,
            metric=self.metric,
            own=measured["own"].value,
            gains=gains(np.ones(len(asked), bool)),
            types=tuple(rows),
            hears=bool(self.ears.envelopes),
            any_time=self.any_time,
            capacity=reports[self.capacity].sha256 if self.capacity else "",
            not_run=missing,
            left_out=dict(left_out),
            level=LEVEL,
            resamples=RESAMPLES,
            seed=SEED,
            base=base["base"]["name"],
            fingerprint=base["base"]["fingerprint"],
            frames=base["base"]["frames"],
            dtype=base["base"]["dtype"],
            prompt=base["base"]["prompt"],
            max_new_tokens=decoder["max_new_tokens"],
            versions=base["versions"],
        )

    def _measured(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        if self.metric == "wer":
            raise UsageError("metric='wer' counts errors, of which fewer are better; use match, exact, f1 or another")
        found = measure(self.metric, answers, references)
        if isinstance(found, str) or found.whole is not None:
            why = found if isinstance(found, str) else "it has no value of a part of the answers, so no interval"
            raise UsageError(f"metric={self.metric!r}: {why}; use match, exact, f1 or another")
        return found


def _sounds(store: FeatureCache, examples: Sequence[Example]) -> list[Clip]:
    """Some clips that can be heard."""
    sources = list(dict.fromkeys(example.source for example in examples))
    chosen = Random(SEED).sample(sources, min(len(sources), CARRIERS))
    clips = zip(chosen, store.decoded(chosen), strict=True)
    return [clip.beside(source.beside(True)) for source, clip in clips if isinstance(clip, Clip)]


def _applied(model: PatchedModel, name: str | None, capacity: str | None) -> tuple[str, tuple[str, ...]]:
    """The patch to certify, and those that act besides. UsageError if its figures would be of something else."""
    reports = {key: report for key, report in model.patches.items() if key != capacity}
    if not reports:
        raise UsageError("no patch is applied; apply the one to certify")
    if capacity is not None and capacity not in model.patches:
        raise UsageError(f"capacity={capacity!r} is not applied; {nearest(capacity, model.patches)}")
    name = name or next(reversed(reports))
    if name not in reports:
        raise UsageError(f"patch={name!r} is not applied; {nearest(name, reports)}")
    if reports[name].weight != 1 or not reports[name].enabled:
        raise UsageError(f"{name} has weight {reports[name].weight:g}; a certificate is of weight 1, switched on")
    if capacity is not None and (flaw := unlike(model.export(name), model.export(capacity))):
        raise UsageError(
            f"capacity={capacity!r} is no control of the same size: {flaw}; train {name}'s recipe on noise"
        )
    return name, tuple(key for key, report in reports.items() if key != name and report.enabled)


def _of(model: PatchedModel, name: str, capacity: str | None) -> list[Encoder]:
    """The encoders that only this patch reads. UsageError if there is none."""
    read: dict[str, dict[str, Encoder]] = {}
    for key, attached in zip(model.patches, model.attached(), strict=True):
        read[key] = model.perception.encoders(attached.config.senses.values())
    others = {key for other, own in read.items() if other not in (name, capacity) for key in own}
    found = [encoder for key, encoder in read[name].items() if key not in others]
    if not found:
        cause = f"{name} reads nothing" if not read[name] else f"{name} reads nothing that other patches do not"
        raise UsageError(f"{cause}, so no signal can be taken from it alone; apply it without them")
    return found
