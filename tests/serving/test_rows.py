"""Rows: how tokens are chosen, and which text is certain when."""

from __future__ import annotations

import threading

import pytest
import torch

from pave.serving.messages import Sampling
from pave.serving.rows import Chosen, Row

LETTERS = " abcdef"
END = 99
LOGITS = torch.tensor([0.0, 3.0, 2.9, 1.0, -1.0, -2.0, -3.0])


def row(**sampling: object) -> tuple[Row, list[str]]:
    pieces: list[str] = []

    def decode(ids: list[int]) -> str:
        return "".join(LETTERS[id] for id in ids)

    return Row(Sampling(**{"most": 50, **sampling}), threading.Event(), decode, pieces.append), pieces  # type: ignore[arg-type]


def fed(text: str, **sampling: object) -> tuple[Row, list[str]]:
    """A row that is fed a text letter by letter, and then the end of the answer."""
    one, pieces = row(**sampling)
    for letter in text:
        one.feed(LETTERS.index(letter), False)
    one.feed(END, True)
    return one, pieces


@pytest.mark.parametrize(
    ("text", "sampling", "left", "finish"),
    [
        ("abc", {}, "abc", "stop"),
        ("  abc de ", {}, "abc de", "stop"),
        ("abcdef", {"most": 3}, "abc", "length"),
        ("abcdef", {"stop": ("cd",)}, "ab", "stop"),
        ("abcdef", {"stop": ("cf", "f")}, "abcde", "stop"),
        ("abcce", {"stop": ("cd",)}, "abcce", "stop"),
        ("ab ab", {"stop": (" a", "b a")}, "a", "stop"),
        ("ab", {"stop": ("ab",), "most": 2}, "", "stop"),
    ],
)
def test_the_pieces_are_the_answer_and_no_part_of_a_stop_gets_out(text, sampling, left, finish):
    one, pieces = fed(text, **sampling)
    assert ("".join(pieces), one.text, one.finish) == (left, left, finish)


def test_an_answer_is_whole_if_the_tokenizer_writes_a_word_anew():
    texts = ["do", "do n", "don't", "don't go"]
    pieces: list[str] = []
    one = Row(Sampling(most=50), threading.Event(), lambda ids: texts[len(ids) - 1], pieces.append)
    for id in range(4):
        one.feed(id, False)
    one.feed(END, True)
    assert one.text == "don't go" and pieces[:2] == ["do", " n"], "what has been sent cannot be taken back"


def test_text_comes_as_soon_as_it_is_certain():
    one, pieces = row()
    for letter, told in (("a", ["a"]), (" ", ["a"]), ("b", ["a", " b"])):
        one.feed(LETTERS.index(letter), False)
        assert pieces == told


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0}, {"temperature": 1e-40}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1}]
)
def test_these_are_greedy(sampling):
    assert {int(row(**sampling)[0].choose(LOGITS)) for _ in range(20)} == {1}


def test_draws_follow_the_temperature_and_the_limits():
    one, _ = row(temperature=0.5, top_k=3, seed=1)
    drawn = torch.bincount(torch.tensor([int(one.choose(LOGITS)) for _ in range(2000)]), minlength=7) / 2000
    wanted = (LOGITS[1:4] / 0.5).softmax(-1)
    assert drawn[[0, 4, 5, 6]].sum() == 0
    torch.testing.assert_close(drawn[1:4], wanted, atol=0.04, rtol=0)


def test_probabilities_are_those_of_the_base_before_sampling():
    one, _ = row(temperature=0.1, logprobs=2)
    one.note(LOGITS, 3)
    logs = LOGITS.log_softmax(-1)
    top = tuple((i, pytest.approx(logs[i].item())) for i in (1, 2))
    assert one.chosen == [Chosen(3, pytest.approx(logs[3].item()), top)]  # type: ignore[arg-type]
