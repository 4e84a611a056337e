"""Claims about metrics: they equal the reference programs; any of them is a function of sums; what is missing is n/a.

Reference values: tests/golden/make_captions.py.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from places import ROOT

from pave.errors import UsageError
from pave.evaluation.metrics.answers import cleaned
from pave.evaluation.metrics.known import METRICS, measure
from pave.evaluation.metrics.measured import Measured
from pave.evaluation.metrics.ptb import tokenised

GIVEN = json.loads((ROOT / "tests/golden/captions_given.json").read_text("utf-8"))
FOUND = json.loads((ROOT / "tests/golden/captions_found.json").read_text("utf-8"))
ANSWERS, REFERENCES = GIVEN["answers"], GIVEN["references"]
EQUAL = sorted(FOUND["metrics"].keys() - {"meteor"})


def measured(name: str, answers: Any = ANSWERS, references: Any = REFERENCES) -> Measured:
    found = measure(name, answers, references)
    assert isinstance(found, Measured)
    return found


@pytest.mark.parametrize("kind", GIVEN["texts"])
def test_tokens_are_those_of_the_java_tokenizer(kind: str) -> None:
    assert [tokenised(text) for text in GIVEN["texts"][kind]] == FOUND["texts"][kind]


def test_tokens_of_the_answers_are_those_of_the_java_tokenizer() -> None:
    assert [[tokenised(text)] for text in ANSWERS] == FOUND["answers"]


JAVA = ("meteor", "spice", "spider")


@pytest.mark.parametrize("name", EQUAL)
def test_a_metric_equals_its_reference_over_all_answers_and_for_each(name: str) -> None:
    found, expected = measured(name), FOUND["metrics"][name]
    assert found.value == pytest.approx(expected["all"], abs=1e-6)
    np.testing.assert_allclose(found.each, expected["each"], atol=1e-6)


def test_answers_are_cleaned_as_the_authors_clean_them() -> None:
    assert [cleaned(answer) for answer in ANSWERS] == FOUND["cleaned"]
    assert [cleaned(text) for text in GIVEN["cleaning"]] == FOUND["cleaning"]


@pytest.mark.parametrize("name", sorted(name for name in METRICS if name.split("-")[0] not in JAVA))
def test_the_value_of_a_part_is_that_of_its_sums(name: str) -> None:
    """What a bootstrap relies on; of CIDEr, with what is rare in the whole."""
    found, chosen = measured(name), np.array([0, 5, 5, 13, 26])
    part = measured(name, [ANSWERS[i] for i in chosen], [REFERENCES[i] for i in chosen])
    if not name.startswith("cider"):
        assert found.only(chosen).value == pytest.approx(part.value)
    assert found.total(found.parts[chosen].sum(0)) == pytest.approx(found.only(chosen).value)
    assert found.only(np.arange(len(ANSWERS))).value == found.value


@pytest.mark.parametrize(
    ("name", "answer", "right", "value"),
    [
        ("exact", " A KETTLE\n", "a kettle", 1),
        ("exact", "a kettle", "A kettle.", 0),
        ("match", "a kettle", "A kettle.", 1),
        ("match", "kettle", "the kettle!", 1),
        ("match", "a", "b", 0),
        ("match", "the", "a", 0),
        ("match", "B.", "b", 1),
        ("contains", "I think yes", "Yes", 1),
        ("contains", "ye", "yes", 0),
        ("f1", "a red ball", "the ball", 2 / 3),
        ("f1", "cup", "ball", 0),
        ("em", "3", "three", 1),
        ("em", "日本", "中国", 0),
        ("em", "日本", "日本", 1),
        ("em-refined", "", "yes", 0),
        ("em-refined", "on the table", "table", 1),
        ("em-refined", "tab le s", "table", 1),
        ("wer", "a b c", "a x c d", 0.5),
        ("wer", "", "a b", 1),
        ("wer", "a b c d", "a", 3),
    ],
)
def test_an_answer_is_right_by_a_rule(name: str, answer: str, right: str, value: float) -> None:
    assert measured(name, [answer], [[right]]).value == pytest.approx(value)


def test_any_of_several_references_will_do() -> None:
    for name in ("exact", "match", "f1", "em", "contains", "bleu-4", "rouge-l"):
        assert measured(name, ["on the left side"], [["right", "on the left side", "left"]]).value == pytest.approx(1)


def test_a_metric_that_needs_a_missing_part_is_not_zero_but_says_what_it_needs(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("meteor", "spice", "spider"):
        assert measure(name, ["a"], [["a"]]) == "no `java` on the PATH; install a Java runtime"


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_equals_its_reference_where_it_can_be_computed() -> None:
    found = measure("meteor", ANSWERS, REFERENCES)
    if isinstance(found, str):
        assert "pip install 'pave[captions]'" in found
        return
    assert found.value == pytest.approx(FOUND["metrics"]["meteor"]["all"], abs=1e-6)
    np.testing.assert_allclose(found.each, FOUND["metrics"]["meteor"]["each"], atol=1e-6)


def test_a_misspelt_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no metric 'cidr'; did you mean 'cider'\?"):
        measure("cidr", ["a"], [["a"]])


def test_answers_without_references_are_refused() -> None:
    for references in ([], [["a"], ["b"]], [[]]):
        with pytest.raises(UsageError, match="1 answers and"):
            measure("exact", ["a"], references)


def test_long_texts_take_no_long_time() -> None:
    for piece in ("a", "a.", "<a ", "1-", "'", "-", "@", "x'"):
        assert len(tokenised(piece * 3000)) >= 0
