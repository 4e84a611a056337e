"""Claims about answers that choose: letters by text and by likelihood, yes and no, and the files of a benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pave.cli.main import app
from pave.data import Example, Source
from pave.errors import UsageError
from pave.evaluation.accuracy import evaluate
from pave.evaluation.asking import letters_of
from pave.evaluation.metrics.known import measure
from pave.evaluation.metrics.measured import Measured
from pave.evaluation.metrics.options import letter_of
from pave.evaluation.result import Evaluation, Sample, references_of
from pave.readers.wording import LETTERED
from pave.tasks.task import Task


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B. a train", "B"),
        ("(C) rain", "C"),
        ("The best answer is: D", "D"),
        ("Answer: (A)", "A"),
        ("The correct option is B because it rains", "B"),
        ("It is option C.", "C"),
        ("A man walks in.", ""),
        ("I think B, not C", "B"),
        ("Best option: (A) red", "A"),
        ("no letter at all", ""),
        ("It's Bob's", ""),
        ("", ""),
    ],
)
def test_a_letter_is_read_but_no_article_and_no_word(answer: str, letter: str) -> None:
    assert letter_of(answer) == letter


@pytest.mark.parametrize(
    ("name", "answer", "right", "value"),
    [
        ("option", "B.", ["B", "a train"], 1),
        ("option", "A train", ["B", "a train"], 1),
        ("option", "(B) a kettle", ["B", "a train"], 1),
        ("option", "C", ["B", "a train"], 0),
        ("option", "", ["B", "a train"], 0),
        ("option", "none", ["none"], 1),
        ("yes-no", "Yes, it is.", ["yes"], 1),
        ("yes-no", "Nothing is heard", ["No"], 0),
        ("yes-no", "no, yes", ["No"], 1),
        ("yes-no", "", ["No"], 0),
        ("bleu-1-clean", "The TV!", ["a tv"], 1),
    ],
)
def test_an_answer_that_chooses_is_scored(name: str, answer: str, right: list[str], value: float) -> None:
    found = measure(name, [answer], [right])
    assert isinstance(found, Measured) and found.value == pytest.approx(value)


def test_the_text_of_the_right_option_is_right_too() -> None:
    example = Example(Source(Path("a")), "?", "B", 1, choices=("red", "blue"))
    assert references_of(example) == ["B", "blue"]
    assert references_of(Example(Source(Path("a")), "?", "none", 1, choices=("red", "blue"))) == ["none"]


def test_what_does_not_count_is_no_part_of_a_mean() -> None:
    found = Measured.mean_of([1.0, None, 0.0, None])
    assert found.value == 0.5 and np.isnan(found.each[1]) and math.isnan(found.only(np.array([1, 3])).value)


def evaluation(**given: Any) -> Evaluation:
    """Six answers: four of the kind a, of which one is right, and two right ones of the kind b."""
    examples = [Example(Source(Path(f"{i}")), "?", "y", i, {"kind": "aaaabb"[i]}) for i in range(6)]
    samples = tuple(Sample(example, "yn"[0 < i < 4]) for i, example in enumerate(examples))
    runs = {"own": tuple(sample.answer for sample in samples)}
    return Evaluation(samples, runs=runs, metrics=("exact",), fields=("kind",), **given)


def test_a_balanced_score_is_the_mean_over_groups() -> None:
    found = evaluation(balanced="kind")
    figures: Any = found.figures["all", "all"]
    assert figures["exact"]["own"].value == 0.5
    assert figures["exact, mean of kind"]["own"].value == pytest.approx((0.25 + 1) / 2)
    assert "exact, mean of kind" in str(found)


def test_given_metrics_are_shown_and_written_without_nan() -> None:
    found = evaluation(given={"judge": {"own": Measured.mean_of([1.0, None, None, None, None, None])}})
    assert "judge" in str(found) and found.figures["kind", "b"]["judge"]["own"] == "none of these answers counts"
    told = json.dumps([found.as_json(), found.as_samples()], allow_nan=False)
    assert '"judge": {"own": null}' in told and "n/a: none of these answers counts" in told


# With a model


QUESTIONS = Task(
    what="ours",
    senses="sound",
    files=("ours.jsonl",),
    format="mlvu",
    questions=4,
    metrics=("option",),
    data="https://example.org",
    licence="ours",
    by=("question_type",),
    wording=LETTERED,
    balanced="question_type",
    max_new_tokens=3,
    name="ours",
)


@pytest.fixture(scope="module")
def published(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of ours about two clips of the workshop, in a published layout."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "clips").symlink_to(workshop / "clips")
    clips = sorted(path.name for path in (workshop / "clips").glob("train-*.mp4"))[:2]
    rows = [
        {"video": clip, "duration": 1, "question": f"Which {i}?", "candidates": ["red", "blue", "green"]}
        | {"answer": ("red", "green")[i], "question_type": f"kind {i}"}
        for clip in clips
        for i in range(2)
    ]
    (folder / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_letters_are_scored_by_text_and_by_likelihood(model, published: Path, tmp_path: Path) -> None:
    sides: Any = ["base", "own"]
    found = evaluate(model, published, task=QUESTIONS, side=sides, folder=tmp_path / "out")
    assert found.metrics == ("option",) and found.fields == ("question_type",)
    assert list(found.measured) == ["option", "option, mean of question_type", "likeliest"]
    settings = found.settings
    assert settings["task"] == {"name": "ours", "split": "test", "prompt_of": "ours"}
    assert settings["decoder"]["max_new_tokens"] == 3 and not found.notes
    examples = [sample.example for sample in found.samples]
    assert [each.answer for each in examples] == ["A", "C", "A", "C"]
    # The slow way: the logits behind the whole prompt of each question alone.
    clips = dict(zip(*_encoded(model, examples), strict=True))
    ids = letters_of(model.host, examples)
    for side, letters in found.letters.items():
        for example, letter in zip(examples, letters, strict=True):
            patches = () if side == "base" else None
            inputs = model.prepare([clips[example.source]], [example.question], patches=patches)
            logits = model.forward(inputs).logits[0, -1, torch.tensor(ids)]
            assert letter == "ABC"[int(logits.argmax())], side
    right = np.mean([letter == each.answer for letter, each in zip(found.letters["own"], examples, strict=True)])
    assert found.figures["all", "all"]["likeliest"]["own"].value == right  # type: ignore[union-attr]
    again = evaluate(model, published, task=QUESTIONS, side=sides, folder=tmp_path / "out")
    assert again.letters == found.letters and again.as_json() == found.as_json()
    line = json.loads((tmp_path / "out/samples.jsonl").read_text("utf-8").splitlines()[0])
    assert set(line["answers"]) == {"base", "own", "base, likeliest", "own, likeliest"}


def _encoded(model: Any, examples: list[Example]) -> tuple[list[Source], list[Any]]:
    from pave.features.cache import FeatureCache

    sources = list(dict.fromkeys(example.source for example in examples))
    store = FeatureCache(model, model.encoders(), None, (), "auto")
    features = store.read(sources)
    return sources, [features[source] for source in sources]


def test_fewer_questions_than_the_benchmark_has_are_told(model, published: Path) -> None:
    from dataclasses import replace

    found = evaluate(model, published, task=replace(QUESTIONS, questions=9), side="base")
    assert found.notes == ("4 questions were found, ours has 9: figures are not those of all of it",)


def test_options_without_own_tokens_have_no_likelihood() -> None:
    class Host:
        def encode_text(self, text: str) -> list[int]:
            return [7, ord(text)]

    examples = [Example(Source(Path("a")), "?", "A", 1, choices=("red", "blue"))]
    assert letters_of(Host(), examples) == [] and letters_of(Host(), []) == []  # type: ignore[arg-type]


# The command


def test_the_command_lists_tasks_and_asks_for_their_folder(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", "--list"])
    assert done.exit_code == 0 and "music-avqa " in done.output and "9,129" in done.output

    def refused(*arguments: str) -> str:
        told = CliRunner().invoke(app, ["eval", *arguments]).exception
        assert isinstance(told, UsageError), told
        return str(told)

    assert "avqa is a published benchmark: name the folder of its files with --data, from https" in refused("avqa")
    assert "did you mean 'avqa'?" in refused("avqaa", "--data", str(tmp_path))
    assert "Give a file of questions, or a task of `pave eval --list`" in refused()
    assert "give its address with --judge URL" in refused("x.jsonl", "--judge-model", "m")
    assert "leave --format, --media and --option out" in refused("avqa", "--data", str(tmp_path), "--format", "avqa")
