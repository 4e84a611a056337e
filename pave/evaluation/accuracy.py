"""Evaluation of a model with and without its patches, and with the sense removed or replaced.

In: a model and a file of questions. Out: an `Evaluation`. All runs of it (`Side`) read the same frames, and are asked
the same questions in the same batches; questions about one clip share its prefix. Answers are generated greedily.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from pave.data import Example, Source
from pave.data_sets import DataSet
from pave.encoder import Encoder
from pave.errors import DataError, UsageError, nearest
from pave.evaluation.journal import Journal
from pave.evaluation.metrics.known import refuse_unknown
from pave.evaluation.result import METRICS, Evaluation, Sample, Score
from pave.evaluation.sides import Side, changed, sides_of, silent
from pave.features.cache import FeatureCache, OnClip
from pave.features.stored import Features
from pave.files.atomic import write_text
from pave.files.locks import held
from pave.media.decoding import Timeout
from pave.model.answer import most_of, texts
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.model.shared import shared
from pave.readers.questions import Data, names_of, read_data
from pave.text.shown import counted

__all__ = ["Evaluation", "Sample", "Score", "Side", "evaluate"]

RESULT = "evaluation.json"
OnAnswers = Callable[[int, int], None]  # called with the number of answered questions, and of all


def evaluate(
    model: PatchedModel,
    data: Data,
    *,
    patches: Sequence[str] | None = None,
    side: Side | Sequence[Side] = "own",
    by: str | Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    folder: str | Path | None = None,
    features: Mapping[Source, ClipFeatures] | None = None,
    cache: Path | None = None,
    made: Sequence[Path] = (),
    batch: int = 32,
    max_new_tokens: int | None = None,
    seed: int = 0,
    timeout: Timeout = "auto",
    on_clip: OnClip | None = None,
    on_answers: OnAnswers | None = None,
) -> Evaluation:
    """Ask every question of `data` (a file in a format that training reads, a `datasets.Dataset`, or examples);
    `patches=()` asks the base, None all enabled patches.

    side: what the side channels are: "own", "off", "silent", "shuffled" between clips, "shifted" in time; or "base",
    without patches. Several make one paired evaluation on the same frames.
    by: keys of the data file, by which figures are grouped; None: `channel`, if the file has it.
    metrics: names, as in `pave eval --help`; the first is that of the groups.
    folder: for `evaluation.json` and `samples.jsonl`; if there are answers of the same evaluation, it goes on.
    `features` (or the folder `cache`) avoids encoding clips again; `made` names folders of feature files.
    Unreadable clips are left out.
    max_new_tokens: None allows for the longest of the correct answers. timeout: of each file, as in `Clip.read`.
    """
    sides = sides_of(side)
    metrics = tuple(dict.fromkeys(metrics))
    refuse_unknown(metrics)
    if max_new_tokens is not None:
        max_new_tokens = most_of(max_new_tokens)
    examples = read_data(data, model.host.refuse_text)
    fields = _fields(examples, by)
    sources = list(dict.fromkeys(example.source for example in examples))
    notes = _unread(sources, model.encoders())
    silences = silent(model.encoders()) if "silent" in sides else {}
    with ExitStack() as stack:
        if folder is not None:
            folder = Path(folder)
            stack.enter_context(held(folder, "an evaluation"))
            cache = cache or folder / "features"
        refused: dict[Source, str] = {}
        if features is None:
            store = FeatureCache(model, [*model.encoders(), *silences.values()], cache, made, timeout)
            features, refused = store.read(sources, on_clip), store.refused
        elif silences:
            raise UsageError("side='silent' encodes silence, so it needs the clips; leave features= out")
        examples = [example for example in examples if example.source in features]
        if not examples:
            reason = next(iter(refused.values()), "no features were passed for it")
            raise DataError(f"none of the {len(sources)} clips can be read; the first: {reason}")
        stored = features.stored if isinstance(features, Features) else features
        flawed = {source: clip.warnings for source in sources if (clip := stored.get(source)) and clip.warnings}
        if max_new_tokens is None:
            max_new_tokens = 1 + max(len(model.host.encode_text(example.answer)) for example in examples)
        settings = settings_of(model, data, examples, patches, sides)
        settings |= {"decoder": {"greedy": True, "max_new_tokens": max_new_tokens, "batch": batch}, "seed": seed}
        journal = Journal(folder, settings)
        own = [example.source for example in examples]
        asked = {
            name: Asked(changed(features, name, seed, silences), own, () if name == "base" else patches)
            for name in sides
        }
        ask(model, examples, asked, batch, max_new_tokens, journal, on_answers)
        runs = {name: tuple(journal.known[i][name] for i in range(len(examples))) for name in sides}
        main = runs.get("own", runs[sides[0]])
        samples = tuple(Sample(example, answer) for example, answer in zip(examples, main, strict=True))
        several = runs if len(runs) > 1 or folder is not None else {}
        found = Evaluation(samples, refused, flawed, several, metrics, fields, seed, settings, tuple(notes))
        if folder is not None:
            journal.finish(found.as_samples())
            write_text(folder / RESULT, json.dumps(found.as_json(), indent=1, ensure_ascii=False) + "\n")
    return found


@dataclass(frozen=True)
class Asked:
    """One run: what it reads, and which patches act."""

    features: Mapping[Any, ClipFeatures]
    clips: Sequence[Hashable]  # keys of `features`, one of each question
    patches: Sequence[str] | None


def ask(
    model: PatchedModel,
    examples: Sequence[Example],
    runs: Mapping[str, Asked],
    size: int,
    most: int,
    journal: Journal,
    tell: OnAnswers | None,
) -> None:
    """Answers of all runs, in the journal. Questions about one clip share its prefix, where a run reads the same."""
    done = 0
    for places in _batches(examples, size):
        if journal.of(places, list(runs)) is None:
            part = [examples[i] for i in places]
            questions, histories = [each.question for each in part], [each.history for each in part]
            answers: list[dict[str, str]] = [{} for _ in part]
            for name, run in runs.items():
                read = {key: run.features[key] for key in dict.fromkeys(run.clips[i] for i in places)}
                clips = [read[run.clips[i]] for i in places]
                inputs, past = shared(model.calls, clips, questions, run.patches, histories)
                for own, text in zip(answers, texts(model.calls, inputs, most, past), strict=True):
                    own[name] = text
            journal.add(places, answers)
        done += len(places)
        if tell:
            tell(done, len(examples))


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Places of questions, `size` at most; those about one clip stand together."""
    of_clip: dict[Source, list[int]] = {}
    for place, example in enumerate(examples):
        of_clip.setdefault(example.source, []).append(place)
    batch: list[int] = []
    for places in of_clip.values():
        if batch and len(batch) + len(places) > size:
            yield batch
            batch = []
        batch += places
        while len(batch) > size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


def _fields(examples: Sequence[Example], by: str | Sequence[str] | None) -> tuple[str, ...]:
    """The keys that group figures. UsageError for one that no question has."""
    known = dict.fromkeys(key for example in examples for key in example.facts)
    if by is None:
        return ("channel",) if "channel" in known else ()
    fields = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
    for name in fields:
        if name not in known:
            raise UsageError(f"by={name!r}: no question has this key; {nearest(name, known)}")
    return fields


def _unread(sources: Sequence[Source], encoders: Sequence[Encoder]) -> list[str]:
    """Remarks on signals that no applied patch reads. DataError for one that is misspelt: no clip has the signal whose
    name is nearest."""
    read = {encoder.spec.sense for encoder in encoders}
    named = Counter(name for source in sources for name, _ in source.signals)
    notes = []
    for name, count in named.items():
        if name in read or not read:
            continue
        cause = f"{counted(count, 'clip')} of {len(sources):,} have a signal {name!r}, which no applied patch reads"
        if get_close_matches(name, read - named.keys()):
            raise DataError(f"{cause}; {nearest(name, read - named.keys())}")
        notes.append(cause)
    return notes


def settings_of(
    model: PatchedModel, data: Data, examples: Sequence[Example], patches: Sequence[str] | None, sides: Sequence[Side]
) -> dict[str, Any]:
    """What identifies an evaluation, as JSON values. Questions count by their content, not by their file."""
    import pave  # its version; the package imports this file

    asked = [[str(e.source), list(e.source.signals), e.question, e.answer, e.history] for e in examples]
    named = model.applied.wanted(patches, 1)[0]
    host, reports = model.host, model.patches
    return {
        "versions": {"pave": pave.__version__, "python": python_version()}
        | {name: version(name) for name in ("torch", "transformers", "av", "numpy")},
        "base": {
            "name": host.repo or host.model_type,
            "revision": host.revision,
            "model_type": host.model_type,
            "fingerprint": host.fingerprint(),
            "dtype": str(host.dtype).removeprefix("torch."),
            "frames": host.frames,
            "size": list(host.size),
            "prompt": host.template,
        },
        "patches": [
            {"name": name, "sha256": reports[name].sha256, "weight": reports[name].weight, "gate": reports[name].gate}
            for name in named
        ],
        "data": {
            "file": names_of(Path(data) if isinstance(data, str) else data)
            if isinstance(data, str | Path | DataSet)
            else "",
            "sha256": sha256(json.dumps(asked, default=str).encode()).hexdigest(),
        },
        "sides": list(sides),
    }
