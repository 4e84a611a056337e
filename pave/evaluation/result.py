"""The result of an evaluation: all answers, their metrics with intervals, by group, and in how far two runs differ.

In: answers of one or more runs to the same questions. Out: tables, as text, as HTML in a notebook, and as JSON. Knows
nothing of models and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from pave.data import Example, Source
from pave.evaluation.intervals import LEVEL, RESAMPLES, Bootstrap, Figure
from pave.evaluation.journal import likeliest
from pave.evaluation.metrics.answers import folded
from pave.evaluation.metrics.known import measure
from pave.evaluation.metrics.measured import Measured
from pave.media.warned import told
from pave.readers.wording import LETTERS
from pave.text.shown import Lines, counted

METRICS = ("match", "exact", "f1")  # by default; the first is that of the tables by group
ALL = "all"
OF_OPTIMA = ("match", "exact")  # metrics that a line's `optimum` bounds
Group = tuple[str, str]  # a field and one of its values
Figures = dict[str, Figure | str]  # by run, and by "run - base"; a text: why there is none


@dataclass(frozen=True)
class Sample:
    """One question with the model's answer."""

    example: Example
    answer: str

    @property
    def right(self) -> bool:
        """Equal text, ignoring case and surrounding spaces."""
        return folded(self.answer) == folded(self.example.answer)


@dataclass(frozen=True)
class Score:
    """Correct answers of one group of questions."""

    right: int
    asked: int
    optimum: float | None  # best expected score without the sense; None unless every line of the group has one

    @property
    def accuracy(self) -> float:
        return self.right / self.asked


@dataclass(frozen=True, repr=False)
class Evaluation(Lines):
    """The answers of a run, or of several on the same questions; the unreadable clips with the reasons, whose questions
    are left out; and the warnings of clips that were read."""

    samples: tuple[Sample, ...]  # of the run `own`, or of the first one
    refused: Mapping[Source, str] = field(default_factory=dict)
    warnings: Mapping[Source, tuple[str, ...]] = field(default_factory=dict)
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # answers by side; empty: those of `samples`
    metrics: tuple[str, ...] = METRICS
    fields: tuple[str, ...] = ("channel",)
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # versions, base, patches, data, decoder, seed
    notes: tuple[str, ...] = ()
    given: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)  # metrics of more than texts, by run
    letters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the likeliest option, by run
    balanced: str = ""  # a key: the first metric is also told as the mean over its groups

    # Scores of one run

    def by(self, fact: str = "channel") -> dict[str, Score]:
        """Exact scores grouped by a key of the data file, in order of first appearance."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(str(sample.example.facts.get(fact, ALL)), []).append(sample)
        return {name: _score(group) for name, group in groups.items()}

    @property
    def accuracy(self) -> float:
        return _score(self.samples).accuracy

    # Figures of all runs

    @property
    def examples(self) -> list[Example]:
        return [sample.example for sample in self.samples]

    @cached_property
    def measured(self) -> dict[str, dict[str, Measured | str]]:
        """By metric and by run; a text says why there is none."""
        references = [references_of(example) for example in self.examples]
        found: dict[str, dict[str, Measured | str]] = {
            name: {run: measure(name, answers, references) for run, answers in self.answers.items()}
            for name in self.metrics
        }
        if self.balanced:
            weights = self._balance()
            own = {run: each for run, each in found[self.metrics[0]].items() if isinstance(each, Measured)}
            found[f"{self.metrics[0]}, mean of {self.balanced}"] = {run: m.weighed(weights) for run, m in own.items()}
        return {**found, **{name: dict(runs) for name, runs in self.given.items()}}

    def _balance(self) -> np.ndarray:
        """Weights (n,) with which all groups weigh the same."""
        groups = [str(example.facts.get(self.balanced)) for example in self.examples]
        counts = Counter(groups)
        return np.array([1 / counts[each] for each in groups])

    @property
    def answers(self) -> Mapping[str, tuple[str, ...]]:
        """Answers by run."""
        return self.runs or {"own": tuple(sample.answer for sample in self.samples)}

    @property
    def main(self) -> str:
        """The run that is compared with the base."""
        return "own" if "own" in self.answers else next(iter(self.answers))

    @property
    def missing(self) -> dict[str, str]:
        """Why a metric is n/a."""
        return {name: each for name, runs in self.measured.items() for each in runs.values() if isinstance(each, str)}

    @cached_property
    def groups(self) -> dict[Group, np.ndarray]:
        """The questions of each group (n,), all of them first."""
        found: dict[Group, np.ndarray] = {(ALL, ALL): np.ones(len(self.samples), bool)}
        for name in self.fields:
            values = [str(example.facts.get(name, "none")) for example in self.examples]
            for value in dict.fromkeys(values):
                found[name, value] = np.array([each == value for each in values])
        return found

    @cached_property
    def figures(self) -> dict[Group, dict[str, Figures]]:
        """By group and by metric."""
        draws = Bootstrap([example.source for example in self.examples], self.seed)
        return {
            group: {name: self._figures(draws, runs, chosen) for name, runs in self.measured.items()}
            for group, chosen in self.groups.items()
        }

    @staticmethod
    def _figures(draws: Bootstrap, runs: Mapping[str, Measured | str], chosen: np.ndarray) -> Figures:
        found: Figures = {}
        for run, measured in runs.items():
            found[run] = measured if isinstance(measured, str) else _known(draws.figure(measured, chosen))
        base = runs.get("base")
        for run, measured in runs.items():
            if run != "base" and isinstance(base, Measured) and isinstance(measured, Measured):
                found[f"{run} - base"] = _known(draws.difference(measured, base, chosen))
        return found

    # As text

    def lines(self) -> list[str]:
        lines = self._table() if self.runs else self._channels()
        lines += [f"left out: {reason}" for reason in self.refused.values()]
        lines += [f"warning: {text}" for text in told({str(clip): texts for clip, texts in self.warnings.items()})]
        lines += [f"{name} n/a: {reason}" for name, reason in (self.missing if self.runs else {}).items()]
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def _channels(self) -> list[str]:
        """The exact scores of one run."""
        lines = [f"{'channel':14} {'right':>7} {'asked':>6} {'best without':>13}"]
        for name, score in self.by().items():
            optimum = "" if score.optimum is None else f"{score.optimum:.3f}"
            lines.append(f"{name:14} {score.accuracy:7.3f} {score.asked:6} {optimum:>13}")
        return lines

    def _table(self) -> list[str]:
        clips = len({example.source for example in self.examples})
        head, *rows = self.rows()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [f"{counted(len(self.samples), 'question')} about {counted(clips, 'clip')}; {CAPTION}"]
        for row in (head, *rows):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells).rstrip())
        return lines

    def rows(self) -> Iterator[list[str]]:
        """A table: its head; every metric of all questions; the first metric of each group."""
        differs = f"{self.main} - base"
        shown = [*self.answers, *([differs] if differs in self.figures[ALL, ALL][self.metrics[0]] else [])]
        optima = {group: _score(self._of(group)).optimum for group in self.groups}
        bounded = any(optimum is not None for optimum in optima.values())
        yield ["", "questions", *shown, *(["best without"] if bounded else [])]
        for (name, value), figures in self.figures.items():
            asked, best = f"{int(self.groups[name, value].sum()):,}", optima[name, value]
            for metric in self.measured if name == ALL else self.metrics[:1]:
                label = metric if name == ALL else f"{metric}, {name} {value}"
                bound = "" if best is None or metric not in OF_OPTIMA else f"{best:.3f}"
                cells = [_cell(figures[metric].get(run, "n/a")) for run in shown]
                yield [label, asked, *cells, *([bound] if bounded else [])]

    def _of(self, group: Group) -> list[Sample]:
        return [sample for sample, held in zip(self.samples, self.groups[group], strict=True) if held]

    # In a notebook, and as JSON

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table><p>{CAPTION}</p>"

    def as_json(self) -> dict[str, Any]:
        """What was evaluated and what was found, as JSON values; equal for equal answers."""
        found: dict[str, Any] = {}
        for (name, value), figures in self.figures.items():
            own = {metric: {run: _json(each) for run, each in runs.items()} for metric, runs in figures.items()}
            optimum = _score(self._of((name, value))).optimum
            asked = {"questions": int(self.groups[name, value].sum()), "best_without": optimum}
            found.setdefault(name, {})[value] = {**asked, **own}
        return {
            **self.settings,
            "intervals": {"level": LEVEL, "resamples": RESAMPLES, "of": "clips", "seed": self.seed},
            "questions": len(self.samples),
            "clips": len({example.source for example in self.examples}),
            "figures": found,
            "left_out": {str(source): reason for source, reason in self.refused.items()},
            "warnings": {str(source): list(texts) for source, texts in self.warnings.items()},
            "notes": list(self.notes),
        }

    def as_samples(self) -> list[dict[str, Any]]:
        """Every question with its answers and their metrics, as JSON values."""
        found = []
        for i, example in enumerate(self.examples):
            scores = {
                name: {run: _rounded(each.each[i]) for run, each in runs.items() if isinstance(each, Measured)}
                for name, runs in self.measured.items()
            }
            answers = {run: answers[i] for run, answers in self.answers.items()}
            answers |= {likeliest(run): letters[i] for run, letters in self.letters.items()}
            asked = {"clip": str(example.source), "question": example.question, "references": references_of(example)}
            facts = {key: value for key, value in example.facts.items() if key != "answers"}
            found.append({**asked, "answers": answers, "scores": scores, "facts": facts, "line": example.line})
        return found


CAPTION = f"{LEVEL:.0%} intervals, over clips"


def references_of(example: Example) -> list[str]:
    """The texts that are right: the answer, all others that the data file has as `answers`, and of a letter the text of
    its option."""
    others = example.facts.get("answers")
    texts = (
        [each.get("answer") if isinstance(each, dict) else each for each in others or ()]
        if isinstance(others, list)
        else []
    )
    chosen = LETTERS.find(example.answer) if example.choices else -1
    texts = [*texts, *example.choices[chosen : chosen + 1]] if chosen >= 0 else texts
    return list(dict.fromkeys([example.answer, *(text for text in texts if isinstance(text, str) and text.strip())]))


def _known(figure: Figure) -> Figure | str:
    return "none of these answers counts" if np.isnan(figure.value) else figure


def _rounded(value: float) -> float | None:
    """As a JSON value; None for an answer that does not count."""
    return None if np.isnan(value) else round(float(value), 6)


def _cell(figure: Figure | str) -> str:
    return str(figure) if isinstance(figure, Figure) else "n/a"


def _json(figure: Figure | str) -> dict[str, float | None] | str:
    if isinstance(figure, str):
        return f"n/a: {figure}"
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def _score(samples: Sequence[Sample]) -> Score:
    optima = [sample.example.facts.get("optimum") for sample in samples]
    known = [value for value in optima if isinstance(value, int | float)]
    optimum = sum(known) / len(known) if known and len(known) == len(samples) else None
    return Score(sum(sample.right for sample in samples), len(samples), optimum)
