"""Conflict: high where picture and sound contradict each other, and 0 where they agree or one says nothing."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from patched import hears
from places import ROOT
from small import make_clip

from pave.config import FusionConfig
from pave.model.conflict import likelihoods
from pave.model.patched import PatchedModel
from pave.playroom.matches import Match
from pave.playroom.world import Script, draw_scene
from pave.playroom.writer import write_clip

QUESTION = "what sound do you hear?"


@pytest.fixture(scope="module")
def ears(playroom: PatchedModel):
    playroom.apply_patch("audio-playroom")
    yield playroom
    playroom.remove_patch("audio-playroom")


@pytest.mark.parametrize(("card", "low", "high"), [("drum", 0.9, 1.0), ("bell", 0.0, 0.1)])
def test_a_card_that_contradicts_the_sound_is_a_conflict_and_one_that_agrees_is_not(
    ears, tmp_path: Path, card, low, high
):
    write_clip(tmp_path / "a.mp4", draw_scene(1), Script("quiet", ()), 1, extra={"conflict": Match(card, "bell", 1)})
    answer = ears.ask(tmp_path / "a.mp4", QUESTION, conflict=True)
    assert answer == ears.ask(tmp_path / "a.mp4", QUESTION) == "bell"
    assert answer.conflict is not None and low <= answer.conflict <= high
    assert pickle.loads(pickle.dumps(answer)).conflict == answer.conflict


def test_the_score_is_that_of_the_question_behind_its_history(ears):
    room, asked = ROOT / "examples/room.mp4", "what colour is the ball when you hear the bell?"
    alone = ears.ask(room, asked, conflict=True)
    assert alone.conflict != ears.ask(room, asked, history=[(QUESTION, "drum")], conflict=True).conflict


def test_the_command_tells_the_score_only_if_asked(command):
    words = ("ask", ROOT / "examples/room.mp4", QUESTION, "--patch", "audio-playroom")
    _, _, remarks = command(*words, "--conflict")
    assert "conflict of pictures and signals: 0.0" in remarks and "conflict" not in command(*words)[2]


def test_a_picture_that_says_nothing_of_the_sound_is_no_conflict(ears):
    answer = ears.ask(ROOT / "examples/room.mp4", "what colour is the ball when you hear the bell?", conflict=True)
    assert answer.conflict is not None and answer.conflict < 0.1 and answer == "red"


def test_it_takes_a_picture_and_a_signal_and_is_measured_only_if_asked(ears):
    room = ROOT / "examples/room.mp4"
    assert ears.ask(room, QUESTION, audio=None, conflict=True).conflict is None
    assert ears.ask(room, QUESTION, patches=[], conflict=True).conflict is None
    assert ears.ask(room, QUESTION).conflict is None


@pytest.mark.parametrize("combine", ["add", "prefix"])
def test_likelihoods_behind_one_prefix_are_those_of_each_answer_alone(one, combine):
    fusion: Any = {"width": 32, "heads": 2, "combine": combine}
    hears(one, fusion=FusionConfig.model_validate(fusion))
    clips, answers = one.encode([make_clip(), make_clip(1)]), ["hear", "What do", "a"]
    patches, history = [["ears"], []], [("Who is there?", "a")]
    with torch.no_grad():
        found = likelihoods(one.calls, clips, "What do you hear?", patches, answers, history)
        for i, clip in enumerate(clips):
            for j, answer in enumerate(answers):
                inputs = one.prepare([clip], ["What do you hear?"], patches=[patches[i]], histories=[history])
                ids = torch.tensor([*one.host.encode_text(answer), one.host.end])
                for token in ids:
                    found[i, j] -= one.forward(inputs).logits[0, -1].log_softmax(-1)[token]
                    inputs = _longer(inputs, token)
    assert found.abs().max() < 1e-3


def _longer(inputs: Any, token: torch.Tensor) -> Any:
    ids = torch.cat([inputs.input_ids, token.view(1, 1)], 1)
    return replace(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
