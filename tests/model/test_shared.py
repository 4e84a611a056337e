"""Claims about shared prefixes: questions about one clip get the answers that each gets with a prompt of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, make_base
from patched import config_for
from small import awaken, make_clip
from transformers import PreTrainedTokenizerFast

from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.model.shared import shared

QUESTIONS = ("What do you hear?", "Is it loud?", "What?", "How many drums do you hear before the bell?")


def listening(tokenizer: PreTrainedTokenizerFast, family: str = "llava_onevision") -> PatchedModel:
    """A model with a patch that has a strong effect on any sound."""
    model = PatchedModel(make_base(tokenizer, family=family))
    model.attach("ears", config_for(model.host))
    awaken(model, "ears", scale=1.0)
    return model


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return listening(tokenizer)


def generated(model: PatchedModel, inputs: Inputs, past: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of three steps, and the ids."""
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.calls.generate(inputs, past, **options)
    return torch.stack(found.logits), found.sequences[:, -3:]


def asked(model: PatchedModel) -> tuple[list[Any], list[str]]:
    """Three clips of other lengths, one without sound, with four, two and one questions, mixed."""
    one, two, three = model.encode([make_clip(1), make_clip(2, frames=3), make_clip(3, sound=False)])
    return [one, two, one, three, one, two, one], [*QUESTIONS, QUESTIONS[0], QUESTIONS[1], QUESTIONS[2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_with_prompts_of_their_own(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = listening(tokenizer, family)
    clips, questions = asked(model)
    inputs, past = shared(model.calls, clips, questions)
    assert past is not None
    together, ids = generated(model, inputs, past)
    alone, expected = generated(model, model.prepare(clips, questions))
    scale = alone.abs().max()
    assert (together - alone).abs().max() <= 1e-4 * scale
    assert torch.equal(ids, expected)
    base, _ = generated(model, model.prepare(clips, questions, patches=()))
    assert (base - alone).abs().max() > 1e-2 * scale, "the patch has an effect"


def test_patches_and_histories_are_those_of_each_question(model: PatchedModel) -> None:
    clips, questions = asked(model)
    histories = [[("Is it red?", "yes")] if i % 2 else [] for i in range(len(clips))]
    patches = [["ears"] if i < 3 else [] for i in range(len(clips))]
    inputs, past = shared(model.calls, clips, questions, patches, histories)
    together, _ = generated(model, inputs, past)
    alone, _ = generated(model, model.prepare(clips, questions, patches=patches, histories=histories))
    assert (together - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_the_clip_goes_through_the_language_model_once(model: PatchedModel) -> None:
    clips, questions = asked(model)
    lengths = []
    hook = model.host.language_model.register_forward_hook(
        lambda module, args, kwargs, out: lengths.append(tuple(out[0].shape[:2])), with_kwargs=True
    )
    try:
        generated(model, *shared(model.calls, clips, questions))
    finally:
        hook.remove()
    (prefixes, visual), (rows, rest) = lengths[:2]
    assert (prefixes, rows) == (3, 7) and rest < visual / 4


def test_single_questions_are_prepared_as_always(model: PatchedModel) -> None:
    (clip,) = model.encode([make_clip(1)])
    inputs, past = shared(model.calls, [clip], QUESTIONS[:1])
    assert past is None and torch.equal(inputs.input_ids, model.prepare([clip], QUESTIONS[:1]).input_ids)


def test_equal_questions_are_answered_each(model: PatchedModel) -> None:
    (clip,) = model.encode([make_clip(1)])
    inputs, past = shared(model.calls, [clip] * 3, QUESTIONS[:1] * 3)
    _, ids = generated(model, inputs, past)
    assert torch.equal(ids, generated(model, model.prepare([clip], QUESTIONS[:1]))[1].expand(3, -1))


def test_a_template_with_the_question_before_the_clip_shares_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    model = PatchedModel(make_base(tokenizer))
    model.host.prompter.template = "<|im_start|>user\n{question}\n{video}<|im_end|>\n<|im_start|>assistant\n"
    clips = model.encode([make_clip(1)]) * 2
    inputs, past = shared(model.calls, clips, QUESTIONS[:2])
    assert past is None and len(inputs.input_ids) == 2
