"""What a patch must not make the base forget: questions that need no sense, asked in training and measured after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patched import hears
from runs import KEEPING
from small import make_clip, write_line
from torch import Tensor
from typer.testing import CliRunner

from pave.cli.main import app
from pave.errors import DataError, RecipeError
from pave.hub.card import card
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel, load
from pave.model.rows import UNASKED
from pave.packing.rows import IGNORE, Turn
from pave.patch.file import Patch
from pave.readers.questions import read_data
from pave.recipe import Recipe
from pave.training.dataset import read_dataset
from pave.training.general import built_in
from pave.training.keep import LONGEST, own_answers
from pave.training.loss import answers, divergence, total
from pave.training.run import Run, train
from pave.training.setup import Setup

Make = Callable[..., Recipe]


@pytest.fixture
def recipe(recipe: Make) -> Make:
    """The workshop's recipe with what is tested here."""
    return partial(recipe, *KEEPING)


@pytest.fixture
def run(recipe: Make, workshop: Path) -> Run:
    """A run over six clips with sound and two without, at its start; each comes twice in a step."""
    return Run.begin(recipe(f"data.train={workshop / 'mixed.jsonl'}", "train.batch=16"))


def disturb(run: Run, size: float = 0.3) -> None:
    """Give the untrained patch an effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in run.trainee.parameters["lora"].values():
        parameter.data.normal_(std=size, generator=generator)


@torch.no_grad()
def alone(model: PatchedModel, clip: ClipFeatures, question: str, ids: Sequence[int], patches: Sequence[str]) -> Tensor:
    """Logits (k vocabulary) that predict an answer's ids, from a row of its own."""
    inputs = model.prepare([clip], [question], patches=patches)
    whole = torch.cat([inputs.input_ids, torch.tensor([ids])], 1)
    inputs = replace(inputs, input_ids=whole, attention_mask=torch.ones_like(whole))
    return model.forward(inputs).logits[0, -len(ids) - 1 : -1]


# The loss


def test_a_question_weighs_the_mean_of_its_tokens() -> None:
    labels = torch.tensor([[IGNORE, 3, 4, IGNORE, 5, IGNORE], [IGNORE, IGNORE, 6, 7, 8, 9]])
    numbers = answers(labels)
    assert numbers.tolist() == [0, 0, 1, 2, 2, 2, 2]
    values = torch.tensor([1.0, 3.0, 5.0, 0.0, 0.0, 4.0, 8.0])
    assert total(values, numbers) == (2 + 5 + 3, 3)


@pytest.mark.parametrize("mean_over", ["questions", "tokens"])
def test_the_loss_of_a_step_weighs_questions_or_tokens(recipe: Make, mean_over: str) -> None:
    run = Run.begin(recipe(f"train.mean_over={mean_over}", "train.keep=0"))
    clips, model = run.clips_of(0), run.setup.model
    losses = [
        F.cross_entropy(
            alone(model, clip.features, example.question, ids, run.setup.names), torch.tensor(ids), reduction="none"
        )
        for clip in clips
        for example, (_, ids, _) in zip(clip.examples, clip.turns, strict=True)
    ]
    assert len({len(each) for each in losses}) > 1
    wanted = (
        torch.stack([each.mean() for each in losses]).mean() if mean_over == "questions" else torch.cat(losses).mean()
    )
    ((loss, kept, *_),) = run.losses_of(0)
    assert kept == 0.0 and torch.allclose(loss, wanted, rtol=1e-5)


@torch.no_grad()
def losses(run: Run) -> tuple[float, float]:
    """Of the answers of the first step, and of what is kept."""
    passes = [(float(loss), float(kept)) for loss, kept, *_ in run.losses_of(0)]
    return sum(loss for loss, _ in passes), sum(kept for _, kept in passes)


def test_what_is_kept_is_the_divergence_of_each_question_asked_alone(run: Run) -> None:
    model, keep = run.setup.model, run.keep
    assert keep is not None
    untrained, nothing = losses(run)
    assert nothing == pytest.approx(0, abs=1e-6), "an untrained patch changes nothing"
    disturb(run)
    clips = run.clips_of(0)
    turns = keep.turns(0, [run.acts(clip) for clip in clips])
    order = iter(keep.order)
    each: list[Tensor] = []
    for clip, asked in zip(clips, turns, strict=True):
        for _, ids, _ in asked:
            question = keep.questions[next(order)]
            base, own = (alone(model, clip.features, question, ids, names) for names in ((), run.setup.names))
            each.append(divergence(own, base).mean())
    loss, kept = losses(run)
    wanted = torch.stack(each).sum().item() / sum(len(clip.turns) for clip in clips)
    assert len(each) == 4 and kept == pytest.approx(wanted, rel=1e-4)
    assert loss != untrained


def test_only_clips_on_which_the_patch_acts_are_asked(run: Run) -> None:
    keep, clips = run.keep, run.clips_of(0)
    assert keep is not None
    acting = [run.acts(clip) for clip in clips]
    assert sorted(acting) == [False] * 4 + [True] * 12
    asked = [bool(turns) for turns in keep.turns(0, acting)]
    assert sum(asked) == 2 and all(acts for acts, turns in zip(acting, asked, strict=True) if turns)
    assert not any(keep.turns(0, [False] * 16))


def test_answers_are_the_greedy_ones_of_the_base(run: Run) -> None:
    model, clip = run.setup.model, run.dataset.train[0].features
    disturb(run)
    (ids,) = own_answers(model, [clip], ["What is a circle?"], ())
    logits = alone(model, clip, "What is a circle?", ids, ())
    logits[:, sorted(model.host.placeholders)] = -torch.inf
    assert 0 < len(ids) <= LONGEST and logits.argmax(-1).tolist() == ids


def test_no_question_that_measures_is_asked_in_training() -> None:
    kept, measured = ({each.lower() for each in built_in(name)} for name in ("kept", "retention"))
    assert len(measured) == len(built_in("retention")) == 50
    assert len(kept) == len(built_in("kept")) > 300 and kept.isdisjoint(measured)


# Questions of one's own


def test_questions_of_a_file_are_asked(recipe: Make, workshop: Path) -> None:
    (workshop / "mine.txt").write_text("\ufeffWho are you?\n\n  What is a boat?  \n")
    run = Run.begin(recipe(f"data.keep={workshop / 'mine.txt'}"))
    assert run.keep is not None and run.keep.questions == ("Who are you?", "What is a boat?")


def test_questions_of_the_data_are_not_kept(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    """The patch learns other answers to them, also if they are written a little differently."""
    own, *_ = read_data(workshop / "train.jsonl")
    mine, data = tmp_path / "mine.txt", workshop / "measured.jsonl"
    mine.write_text(f"{own.question.upper()} !\nwho are you\nWhat is a boat?\n")
    asked = write_line(str(own.video), "what is the main colour of the picture", "red")
    data.write_text((workshop / "train.jsonl").read_text() + asked)
    words = 'train.modalities={match: {question: "Who are you?"}}'
    setup, told = Setup.of(recipe(f"data.train={data}", f"data.keep={mine}", words)), list[str]()
    run = Run.of(setup, read_dataset(setup, tell=told.append))
    assert run.keep is not None and run.keep.questions == ("What is a boat?",)
    assert sum("2 of the 3 questions that keep the base are not asked" in line for line in told) == 1
    assert {*built_in("retention")} - {*chain(*run.probe.asked)} == {"What is the main colour of the picture?"}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b" \n\n", "has no questions"),
        (b"Why?\nWHAT IS THE CAPITAL OF FRANCE?\n", "line 2: 'WHAT IS THE CAPITAL OF FRANCE?' is one of the questions"),
        (b"what  is the Capital of france ??\n", "line 1: 'what  is the Capital of france ??' is one of the questions"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"a" * 2_000_000, "is larger than 1,000,000 bytes"),
        (b"why " * 5_000, "line 1: the question has"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_of_questions_are_refused(recipe: Make, tmp_path: Path, content: bytes | None, cause: str) -> None:
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"^[^:]*mine.txt.*{re.escape(cause)}"):
        train(recipe(f"data.keep={file}"))


def test_a_file_of_questions_that_cannot_be_is_refused(recipe: Make) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*no file can have this name"):
        train(recipe('data.keep="a\\0b"'))


def test_questions_that_nobody_asks_are_refused(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.keep=0 asks none"):
        recipe(f"data.keep={tmp_path / 'mine.txt'}", "train.keep=0")


# Retention


def test_retention_is_that_of_each_question_asked_alone(run: Run) -> None:
    model, names = run.setup.model, run.setup.names
    probe = run.probe
    untouched = probe.measure(model, names, whole=True)
    assert (untouched.tokens, untouched.answers) == (1, 1) and untouched.kl == pytest.approx(0, abs=1e-6)
    disturb(run)
    found = probe.measure(model, names, whole=True)
    same, nats, unchanged = [], [], []
    for clip, questions, turns in zip(probe.clips, probe.asked, probe.turns, strict=True):
        for question, (_, ids, _) in list(zip(questions, turns, strict=True))[:2]:
            base, own = (alone(model, clip.features, question, ids, each) for each in ((), names))
            same += (base.argmax(-1) == own.argmax(-1)).tolist()
            nats += divergence(own, base).tolist()
            unchanged.append(own_answers(model, [clip.features], [question], names)[0] == ids)
    few = replace(probe, asked=[each[:2] for each in probe.asked], turns=[each[:2] for each in probe.turns])
    part = few.measure(model, names, whole=True)
    assert part.tokens == pytest.approx(sum(same) / len(same)) and part.kl == pytest.approx(
        sum(nats) / len(nats), rel=1e-4
    )
    assert part.answers == sum(unchanged) / len(unchanged)
    assert found.tokens < 0.9 and found.kl > 0.1
    assert sum(map(len, probe.asked)) == 50 and len(probe.clips) == 6, "about clips with the sense only"


def test_a_patch_below_acts_in_training_as_without_its_gate(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    model = load(workshop / "base")
    hears(model, "below", gate=True)
    gate = model.applied.module("below").gate
    assert gate is not None
    gate.bias.fill_(-1e6)  # closed to all
    file = model.export("below").save(tmp_path / "below.safetensors")
    run = Run.begin(recipe(f"train.on_top_of=[{file}]", "name=above", "train.gate=false"))
    own, clip, question = run.setup.model, run.dataset.train[0].features, "What is a circle?"
    (ids,) = own_answers(own, [clip], [question], run.setup.names[:-1])
    assert run.keep is not None
    logits = run.keep.teacher([clip], [[Turn(own.host.prompt(question)[1], ids)]])
    logits[:, sorted(own.host.placeholders)] = -torch.inf
    assert logits.argmax(-1).tolist() == ids, "the answers are of the model that is kept"
    above = own.export("above")
    for gated, told in ((True, True), (False, False)):
        model.remove_patch("below")
        model.apply_patch(file, gate=gated)
        assert ("apply that with gate=False" in str(model.apply_patch(above))) == told
        model.remove_patch("above")


def test_keep_makes_a_patch_forget_less(recipe: Make) -> None:
    rates = ("train.fusion_lr=0.03", "train.lora_lr=0.03", "train.steps=12", "train.gate=false")
    off, on = (
        train(recipe(*rates, f"train.keep={keep}", output=f"keep-{keep}")).metrics["retention"] for keep in (0, 3)
    )
    assert isinstance(off, dict) and isinstance(on, dict)
    assert on["kl"] < 0.5 * off["kl"], (off, on)


def test_training_fits_a_gate(recipe: Make, workshop: Path) -> None:
    rates = ("train.fusion_lr=0.03", "train.lora_lr=0.03", "train.steps=12", "train.keep=0")
    result, plain = train(recipe(*rates)), train(recipe(*rates, "train.gate=false", output="plain"))
    patch, kept = Patch.load(result.patch), result.metrics["retention"]
    assert (
        isinstance(kept, dict) and kept["ungated"] < kept["tokens"] and kept["left"] > 0
    )  # a base of random weights tells little apart
    assert Patch.load(plain.patch).retention["tokens"] == kept["ungated"], "the gate changes no weight"
    assert "gate" not in plain.metrics and not any(n.startswith("gate.") for n in Patch.load(plain.patch).tensors)
    model = load(workshop / "base")
    model.apply_patch(patch, name="ears")
    clip = make_clip(0)
    asked = [(clip, question) for question in (read_data(workshop / "train.jsonl")[0].question, *built_in("kept"))]
    answers_of = model.ask_batch(asked[:40], max_new_tokens=1)
    assert answers_of[0].signals["audio"] != UNASKED, "the data's own questions are for the patch"
    assert sum(each.signals["audio"] == UNASKED for each in answers_of[1:]) > 0
    shares: Any = result.metrics["gate"]
    assert shares["left_to_base"] > 0


def test_a_run_that_starts_from_a_patch_fits_the_gate_anew(recipe: Make, tmp_path: Path) -> None:
    short = ("train.steps=1", "train.keep=0")
    first = train(recipe(*short, output="first")).patch
    for gate in (True, False):
        words = (f"train.start_from={first}", f"train.gate={str(gate).lower()}")
        again = Patch.load(train(recipe(*short, *words, output=f"again-{gate}")).patch)
        assert again.config.gate == gate == ("gate.weight" in again.tensors)


def test_retention_goes_into_the_patch_its_card_and_its_report(recipe: Make, workshop: Path) -> None:
    result = train(recipe())
    patch = Patch.load(result.patch)
    assert patch.retention == result.metrics["retention"]
    assert patch.retention.keys() == {"tokens", "kl", "answers", "left", "ungated"}
    assert f"| share of tokens that stay the most likely | {patch.retention['tokens']:.3f} |" in card(patch, "me/ears")
    assert card(replace(patch, certificate=None), "me/ears").count("What the base keeps") == 0
    told = CliRunner().invoke(app, ["patch", "info", str(result.patch)]).output
    assert f"kept     share of tokens that stay the most likely: {patch.retention['tokens']:.3f}" in told
    model = load(workshop / "base")
    for tokens, warned in ((0.28, True), (0.95, False)):
        rated = replace(patch, certificate={"retention": {"tokens": tokens}})
        report = model.apply_patch(rated, name=f"rated-{tokens}")
        assert any("keeps only 28%" in each for each in report.remarks) == warned
    rated = replace(patch, certificate={"retention": {"tokens": 0.95, "ungated": 0.28}})
    for gate in (True, False):
        report = model.apply_patch(rated, name=f"gate-{gate}", gate=gate)
        assert any("keeps only 28%" in each for each in report.remarks) == (not gate)
    assert "keeps only 28%" in str(model.swap_patch("gate-False", rated)), "a swap keeps the gate open"
