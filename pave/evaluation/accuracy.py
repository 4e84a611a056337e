"""Evaluation of a model with and without its patches, and with the sense removed or replaced.

In: a model and a file of questions, or the files of a published benchmark. Out: an `Evaluation`. All runs of it
(`Side`) read the same frames, and are asked the same questions in the same batches. Answers are generated greedily.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from pave.evaluation.asking import Asked, OnAnswers, ask, letters_of
from pave.evaluation.journal import Journal, likeliest
from pave.evaluation.judge import Judge, OnVerdicts
from pave.evaluation.metrics.known import refuse_unknown
from pave.evaluation.metrics.measured import Measured
from pave.evaluation.result import METRICS, Evaluation, Sample, Score
from pave.evaluation.sides import Side, changed, sides_of, silent
from pave.features.cache import FeatureCache, OnClip
from pave.features.stored import Features
from pave.files.atomic import write_text
from pave.files.locks import held
from pave.media.decoding import Timeout
from pave.model.inputs import ClipFeatures
from pave.model.options import most_of
from pave.model.patched import PatchedModel
from pave.readers.questions import Data, names_of, read_data
from pave.tasks.known import task_of
from pave.tasks.task import Task
from pave.text.shown import counted

__all__ = ["Evaluation", "Sample", "Score", "Side", "evaluate"]

RESULT = "evaluation.json"


def evaluate(
    model: PatchedModel,
    data: Data,
    *,
    task: str | Task | None = None,
    patches: Sequence[str] | None = None,
    side: Side | Sequence[Side] = "own",
    by: str | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    judge: Judge | None = None,
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
    on_verdicts: OnVerdicts | None = None,
) -> Evaluation:
    """Ask every question of `data` (a file in a format that training reads, a `datasets.Dataset`, or examples);
    `patches=()` asks the base, None all enabled patches.

    task: a published benchmark by its name, as `pave eval --list` has them; `data` is then the folder of its files, and
    prompt, metrics, groups and the length of answers are the benchmark's, unless they are given.
    side: what the side channels are: "own", "off", "silent", "shuffled" between clips, "shifted" in time; or "base",
    without patches. Several make one paired evaluation on the same frames.
    by: keys of the data file, by which figures are grouped; None: `channel`, if the file has it.
    metrics: names, as in `pave eval --help`; the first is that of the groups. None: match, exact and f1. Questions with
    options also have `likeliest`: whether the letter of the right one is likelier than the others.
    judge: a language model that compares answers with the right ones.
    folder: for `evaluation.json` and `samples.jsonl`; if there are answers of the same evaluation, it goes on.
    `features` (or the folder `cache`) avoids encoding clips again; `made` names folders of feature files.
    Unreadable clips are left out.
    max_new_tokens: None allows for the longest of the correct answers, or what the task allows.
    timeout: of each file, as in `Clip.read`.
    """
    sides = sides_of(side)
    known = None if task is None else task_of(task)
    metrics = tuple(dict.fromkeys(metrics if metrics is not None else known.metrics if known else METRICS))
    refuse_unknown(metrics)
    if max_new_tokens is not None:
        max_new_tokens = most_of(max_new_tokens)
    examples = _examples(model, data, known)
    fields = _fields(examples, by, known)
    sources = list(dict.fromkeys(example.source for example in examples))
    notes = _unread(sources, model.encoders())
    if known and (short := known.missing(len(examples))):
        notes.append(short)
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
        if max_new_tokens is None and known:
            max_new_tokens = known.max_new_tokens
        if max_new_tokens is None:
            max_new_tokens = 1 + max(len(model.host.encode_text(example.answer)) for example in examples)
        settings = settings_of(model, data, examples, patches, sides, known)
        settings |= {"decoder": {"greedy": True, "max_new_tokens": max_new_tokens, "batch": batch}, "seed": seed}
        journal = Journal(folder, settings)
        own = [example.source for example in examples]
        asked = {
            name: Asked(changed(features, name, seed, silences), own, () if name == "base" else patches)
            for name in sides
        }
        letters = letters_of(model.host, examples)
        ask(model, examples, asked, batch, max_new_tokens, journal, letters, on_answers)
        runs = {name: tuple(journal.known[i][name] for i in range(len(examples))) for name in sides}
        given, chosen = _likeliest(journal, examples, sides) if letters else ({}, {})
        if any(example.choices for example in examples) and not letters:
            notes.append("likeliest n/a: letters do not differ in their first token")
        if judge is not None:
            judged, told = judge.verdicts(examples, runs, folder, on_verdicts)
            given, settings, notes = given | judged, settings | {"judge": judge.as_json()}, [*notes, *told]
        balance = known.balanced if known else ""
        main = runs.get("own", runs[sides[0]])
        samples = tuple(Sample(example, answer) for example, answer in zip(examples, main, strict=True))
        several = runs if len(runs) > 1 or folder is not None else {}
        found = Evaluation(
            samples, refused, flawed, several, metrics, fields, seed, settings, tuple(notes), given, chosen, balance
        )
        if folder is not None:
            journal.finish(found.as_samples())
            write_text(folder / RESULT, json.dumps(found.as_json(), indent=1, ensure_ascii=False) + "\n")
    return found


def _examples(model: PatchedModel, data: Data, task: Task | None) -> list[Example]:
    """The questions of a file, or of a benchmark's folder."""
    if task is None:
        return read_data(data, model.host.refuse_text)
    if not isinstance(data, str | Path):
        raise UsageError(f"task={task.name!r} reads the publisher's files; pass their folder as data")
    return task.read(data, model.host.refuse_text)


def _likeliest(
    journal: Journal, examples: Sequence[Example], sides: Sequence[Side]
) -> tuple[dict[str, dict[str, Measured]], dict[str, tuple[str, ...]]]:
    """Whether the likeliest letter is right, and the letters, by run. Questions without options do not count."""
    letters = {side: tuple(journal.known[i][likeliest(side)] for i in range(len(examples))) for side in sides}
    found = {
        side: Measured.mean_of(
            [
                letter == example.answer if example.choices else None
                for letter, example in zip(own, examples, strict=True)
            ]
        )
        for side, own in letters.items()
    }
    return {"likeliest": found}, letters


def _fields(examples: Sequence[Example], by: str | Sequence[str] | None, task: Task | None) -> tuple[str, ...]:
    """The keys that group figures. UsageError for one that no question has."""
    known = dict.fromkeys(key for example in examples for key in example.facts)
    if by is None and task:
        return tuple(key for key in task.by if key in known)
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
    model: PatchedModel,
    data: Data,
    examples: Sequence[Example],
    patches: Sequence[str] | None,
    sides: Sequence[Side],
    task: Task | None = None,
) -> dict[str, Any]:
    """What identifies an evaluation, as JSON values. Questions count by their content, not by their file."""
    import pave  # its version; the package imports this file

    asked = [
        [str(e.source), list(e.source.signals), e.question, e.answer, e.history, *e.source.tracks.items()]
        for e in examples
    ]
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
        **({"task": {"name": task.name, "split": task.split, "prompt_of": task.prompt_of or "ours"}} if task else {}),
    }
