"""Claims about the gate of a patch: questions that are not about the clip are the base's, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import click, counting_frames, write_clip
from patched import hears
from small import make_clip

from pave.errors import PatchDamaged, PatchMismatch, UsageError
from pave.model.patched import PatchedModel
from pave.model.rows import UNASKED
from pave.patch.file import Patch
from pave.training.gate import balanced, fitted, sorted_out
from pave.training.general import built_in

ABOUT, ALONE = "What do you hear?", "What is the capital of France?"


def close(model: PatchedModel, question: str = ALONE, name: str = "ears") -> None:
    """Fit the gate by hand: open to all questions but this one."""
    read, gate = model.perception.reads, model.applied.module(name).gate
    assert gate is not None
    gate.weight, gate.bias = read(ABOUT) - read(question), torch.zeros(1)
    middle = (read(ABOUT) + read(question)) / 2
    gate.bias = -(gate.weight.double() @ middle.double()).float()[None]


@pytest.fixture
def gated(one: PatchedModel) -> PatchedModel:
    hears(one, gate=True)
    close(one)
    return one


def logits(model: PatchedModel, question: str, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(model.prepare([make_clip(0)], [question], **how)).logits


def test_an_untrained_gate_is_open(one: PatchedModel) -> None:
    base = logits(one, ALONE)
    hears(one, gate=True)
    assert not torch.equal(logits(one, ALONE), base)


def test_a_question_that_is_not_about_the_clip_is_the_bases_bit_for_bit(gated: PatchedModel) -> None:
    assert torch.equal(logits(gated, ALONE), logits(gated, ALONE, patches=()))
    assert not torch.equal(logits(gated, ABOUT), logits(gated, ABOUT, patches=()))
    clip = make_clip(0)
    own, base = gated.ask_batch([(clip, ABOUT), (clip, ALONE)]), gated.ask_batch([(clip, ABOUT, ()), (clip, ALONE, ())])
    assert own[1] == base[1] and own[1].signals == {"audio": UNASKED}
    assert own[0].signals["audio"].startswith("present")


def test_its_sound_is_not_even_decoded(gated: PatchedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = write_clip(tmp_path / "film.mp4", counting_frames(20), 10, click(2, 0.5))
    encoder, heard = gated.encoders()[0], []
    monkeypatch.setattr(encoder, "encode", lambda clip, run=encoder.encode: heard.append(clip) or run(clip))
    assert gated.ask(film, ALONE).signals == {"audio": UNASKED} and not heard
    assert gated.ask(film, ABOUT).signals["audio"].startswith("present") and len(heard) == 1


def test_an_answer_of_the_base_is_not_explained(gated: PatchedModel) -> None:
    with pytest.raises(UsageError, match=r"not about the clip.*apply it with gate=False"):
        gated.explain(make_clip(0), ALONE)


def test_watching_asks_the_gate(gated: PatchedModel, tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mp4", counting_frames(20), 10, click(2, 0.5))
    with gated.watch(film) as show:
        show.see()
        left, asked = show.ask(ALONE), show.ask(ABOUT)
    assert left.signals == {"audio": UNASKED} and asked.signals["audio"] != UNASKED
    assert left == gated.ask(film, ALONE, patches=())


def test_two_patches_have_a_gate_each(gated: PatchedModel) -> None:
    hears(gated, "others")
    only = logits(gated, ALONE, patches=["others"])
    assert torch.equal(logits(gated, ALONE), only) and not torch.equal(
        logits(gated, ABOUT), logits(gated, ABOUT, patches=["others"])
    )


def test_it_is_in_the_file_and_in_the_report_and_may_be_kept_open(gated: PatchedModel, tmp_path: Path) -> None:
    patch, base = gated.export("ears"), logits(gated, ALONE, patches=())
    assert {"gate.weight", "gate.bias"} <= patch.tensors.keys()
    for each in (Patch.load(patch.save(tmp_path / "whole")), Patch.load(patch.shrink().save(tmp_path / "small"))):
        gated.remove_patch("ears")
        assert "gate on" in str(gated.apply_patch(each, name="ears"))
        assert torch.equal(logits(gated, ALONE), base)
    gated.remove_patch("ears")
    assert "gate off" in str(gated.apply_patch(patch, name="ears", gate=False))
    assert not torch.equal(logits(gated, ALONE), base)
    assert "gate off" in str(gated.swap_patch("ears", replace(patch, source="newer"))), "a swap keeps the choice"
    assert not torch.equal(logits(gated, ALONE), base)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"gate.weight": None}, "gate.weight is missing"),
        ({"gate.weight": torch.zeros(3)}, r"gate.weight is \(3,\)"),
        ({"gate.bias": torch.full((1,), float("nan"))}, "gate.bias"),
        ({"gate.more": torch.zeros(1)}, "gate.more is unexpected"),
    ],
)
def test_a_wrong_gate_is_refused(gated: PatchedModel, change: dict[str, Any], cause: str, tmp_path: Path) -> None:
    patch = gated.export("ears")
    tensors = {name: value for name, value in {**patch.tensors, **change}.items() if value is not None}
    with pytest.raises((PatchMismatch, PatchDamaged), match=cause):
        replace(patch, tensors=tensors).save(tmp_path / "file")


def test_fitting_separates_what_the_base_tells_apart() -> None:
    """Two clouds in 24 dimensions: all that is far from both goes to the patch, as do the data's own questions."""
    draw = torch.Generator().manual_seed(0)
    places: dict[str, torch.Tensor] = {}

    def read(questions: Sequence[str]) -> torch.Tensor:
        for each in questions:
            places.setdefault(each, torch.randn(24, generator=draw) + (-2.0 if each in kept else 2.0))
        return torch.stack([places[each] for each in questions])

    facts = [f"fact {number}" for number in range(40)]
    kept = {*facts, *built_in("alone")}
    tensors, shares = fitted(read, ["own"], facts, False)
    odds = {name: (place @ tensors["weight"] + tensors["bias"]).item() for name, place in places.items()}
    assert all((odds[name] <= 0) == (name in kept) for name in places) and shares == {"left_to_base": 1.0}
    assert odds["own"] >= 1
    places["odd"] = places["fact 3"]  # a question of the data that the base does not tell from one of the kept
    tensors, shares = fitted(read, ["own", "odd"], facts, False)
    assert (places["odd"] @ tensors["weight"] + tensors["bias"]).item() >= 1 - 1e-4
    assert shares["left_to_base"] < 1


def test_many_questions_are_read_as_each_alone(one: PatchedModel) -> None:
    questions = [*built_in("alone")[:70], *built_in("about")[:70], ABOUT]
    together = one.perception.reads_many(questions)
    alone = torch.stack([one.perception.reads(question) for question in questions])
    assert torch.allclose(together, alone, atol=1e-5) and len({tuple(each.tolist()) for each in alone}) > 100


def test_no_question_is_on_both_sides() -> None:
    about, seen, alone, kept = map(built_in, ("about", "seen", "alone", "kept"))
    opens, closes = sorted_out(["Is it loud?", kept[0], alone[0]], kept, False)
    assert not {*opens} & {*closes} and {*about, *seen, kept[0], alone[0]} <= {*opens}
    assert {*closes} == {*kept, *alone} - {*opens} and len(closes) > 800
    opens, closes = sorted_out([], kept, True)  # sound does not help to see
    assert {*closes} == {*kept, *alone, *seen} and {*opens} == {*about} - {*kept}
    assert {*sorted_out([], ("mine",), True)[1]} == {"mine", *alone, *seen} - {*about}
    for typed in (f"{seen[0].upper()} !", f"  {kept[300].casefold().strip('?')}", f"{alone[0]}??"):
        assert len(sorted_out([typed], kept, True)[1]) == len(closes) - 1, "however it is written"
    often = balanced(kept)
    assert {*often} == {*kept} and 0.45 < sum(each in about for each in often) / len(often) < 0.55
    closes = sorted_out([], kept, False)[1]
    assert balanced(closes) == tuple(closes)
    many = [f"question {number}" for number in range(2_000)]
    assert len(sorted_out(many, kept, False)[0]) == 500 + len({*about, *seen})


def test_each_list_has_its_own_questions() -> None:
    def words(name: str) -> list[str]:
        return [" ".join(re.findall(r"\w+", question.casefold())) for question in built_in(name)]

    lists = {name: words(name) for name in ("about", "seen", "alone", "kept", "retention")}
    assert all(len(each) == len({*each}) for each in lists.values())
    shared = {(one, other) for one, other in combinations(lists, 2) if {*lists[one]} & {*lists[other]}}
    assert shared == {("about", "kept")}, "kept questions about clips are in both"
