"""Inputs in other models and processes, copies of patched models and bases, and options of forward and generate."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from patched import QUESTIONS, alike, clips, hears, logits, other_ears, portrait
from small import awaken, make_clip, make_config, write_base
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from pave.errors import PatchNotFound, UsageError
from pave.model.patched import PatchedModel, load


@pytest.fixture
def two(tokenizer: PreTrainedTokenizerFast) -> list[PatchedModel]:
    """Two models with equal bases, and equal patches with LoRA."""
    models = [PatchedModel(make_base(tokenizer)) for _ in range(2)]
    patch = other_ears(models[0])
    for model in models:
        model.apply_patch(patch)
    return models


# Inputs


def test_inputs_of_another_model_are_answered_with_the_patch_of_equal_content(two: list[PatchedModel]) -> None:
    first, second = two
    inputs, expected = first.prepare(clips(), QUESTIONS), logits(first)
    patch = first.export("ears")
    assert torch.equal(second.forward(inputs).logits, expected)
    assert torch.equal(second.forward(pickle.loads(pickle.dumps(inputs))).logits, expected)
    answer = first.generate(inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(second.generate(inputs, max_new_tokens=4, do_sample=False), answer)
    for change in (lambda: second.set_weight("ears", 0.3), lambda: second.disable("ears")):
        change()  # the snapshot has its own weight and choice
        assert torch.equal(second.forward(inputs).logits, expected)
    with second.patches_off():
        assert torch.equal(second.forward(inputs).logits, logits(first, patches=[]))
    second.swap_patch("ears", other_ears(second, lora=None))
    with pytest.raises(PatchNotFound, match=r"prepared by another model, with a patch that is not applied to this one"):
        second.forward(inputs)
    second.apply_patch(patch, name="again")
    assert torch.equal(second.forward(inputs).logits, expected)
    second.remove_patch("again")
    for call in (second.generate, second.fused_tokens, second.forward):
        with pytest.raises(PatchNotFound, match="apply the same patch here, or prepare the inputs with this model"):
            call(inputs)
    assert torch.equal(first.forward(inputs).logits, expected)


def test_inputs_about_another_base_are_refused(one: PatchedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    other, equal = (PatchedModel(make_base(tokenizer, seed=seed)) for seed in (1, 0))
    inputs = one.prepare(clips(), QUESTIONS)
    assert torch.equal(equal.forward(inputs).logits, one.forward(inputs).logits)
    for given in (inputs, pickle.loads(pickle.dumps(inputs))):
        with pytest.raises(UsageError, match="prepared by a model with another base; prepare them with this model"):
            other.forward(given)
    half = PatchedModel(make_base(tokenizer, torch.bfloat16))
    with pytest.raises(UsageError, match="another base"):
        half.generate(inputs, max_new_tokens=1)


def test_a_patch_in_training_is_known_to_forked_workers_only(two: list[PatchedModel]) -> None:
    first, second = two
    for model in two:
        model.attach("more", make_config(model.host))
        awaken(model, "more")
    features = first.encode(clips())

    def prepared(each: list[int]) -> Any:
        return first.prepare([features[i] for i in each], [QUESTIONS[i] for i in each])

    loader: Any = DataLoader([0, 1], num_workers=1, multiprocessing_context="fork", collate_fn=prepared)  # type: ignore
    for i, inputs in enumerate(loader):
        own = first.prepare(features[i : i + 1], QUESTIONS[i : i + 1])
        assert torch.equal(first.forward(inputs).logits, first.forward(own).logits)
        with pytest.raises(PatchNotFound, match="more: these inputs were prepared by another model"):
            second.forward(inputs)


# Copies


def test_a_copy_of_a_patched_base_is_the_base(one: PatchedModel) -> None:
    other = PatchedModel(one.host)
    bare = copy.deepcopy(one.base)
    hooks = [len(each._forward_hooks) for each in bare.modules()]
    layer: Any = one.base.get_decoder().get_submodule("layers.0.self_attn.v_proj")
    kept = layer.register_forward_hook(plain_hook)
    hears(one)
    other.apply_patch(other_ears(one), name="more")
    file = io.BytesIO()
    torch.save(one.base, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False), pickle.loads(pickle.dumps(one.base)), copy.deepcopy(one.base)
    for copied in loaded:
        assert type(copied) is type(one.base) and alike(dict(copied.state_dict()), dict(bare.state_dict()))
        assert sum(len(each._forward_hooks) for each in copied.modules()) == sum(hooks) + 1, "the user's own stays"
        assert not any("__reduce_ex__" in vars(each) for each in copied.modules())
        next(copied.parameters()).data.zero_()
    assert alike(dict(one.base_state_dict()), dict(bare.state_dict()))
    kept.remove()
    other.remove_patch("more")
    assert any("__reduce_ex__" in vars(each) for each in one.base.modules())
    one.remove_patch("ears")
    assert not any("__reduce_ex__" in vars(each) for each in one.base.modules())


def test_a_base_that_has_seen_a_clip_can_be_pickled() -> None:
    model = load("playroom")  # its vision tower captures hidden states with hooks of transformers
    clip = make_clip()
    expected = model.ask(clip, "What do you hear?", max_new_tokens=2)
    for patched in (False, True):
        if patched:
            model.apply_patch("audio-playroom")
            model.forward(model.prepare([clip], ["What?"]), output_hidden_states=True)
        copied = pickle.loads(pickle.dumps(model.base)), copy.deepcopy(model.base)
        for base in copied:
            assert alike(dict(base.state_dict()), dict(model.base_state_dict()))
            host: Any = type(model.host)(base, model.host.tokenizer, frames=model.host.frames)
            assert PatchedModel(host).ask(clip, "What do you hear?", max_new_tokens=2) == expected
            assert PatchedModel(host).ask(clip, "What do you hear?", max_new_tokens=2) == expected
        pickle.dumps(model.base.get_submodule("model.vision_tower"))
    torch.save(model.base, io.BytesIO())


def plain_hook(*_: Any) -> None:
    """A hook of a user."""


def test_a_deep_copy_of_a_model_is_independent_and_answers_equally(one: PatchedModel) -> None:
    hears(one)
    one.apply_patch(other_ears(one), name="more", weight=0.5)
    one.attach("trained", make_config(one.host))
    awaken(one, "trained")
    one.disable("more")
    expected, alone = logits(one), logits(one, patches=["more"])
    state = portrait(one)
    copied = copy.deepcopy(one)
    assert torch.equal(logits(copied), expected) and torch.equal(logits(copied, patches=["more"]), alone)
    assert copied.patches == one.patches and copied.ask(clips()[0], QUESTIONS[0]) == one.ask(clips()[0], QUESTIONS[0])
    flags = [[each.requires_grad for each in model.applied.module("trained").parameters()] for model in (one, copied)]
    assert flags[0] == flags[1] and all(flags[0])
    for name in list(copied.patches):
        copied.remove_patch(name)
    next(copied.base.parameters()).data.zero_()
    assert torch.equal(logits(one), expected) and alike(portrait(one), state)


def test_what_cannot_be_copied_says_so(two: list[PatchedModel], tmp_path: Path) -> None:
    for save in (pickle.dumps, lambda model: torch.save(model, tmp_path / "model.pt")):
        with pytest.raises(UsageError, match=r"cannot be pickled.*load it again with pave\.load.*export\(name\)\.save"):
            save(two[0])
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match=r"ears: the modules of an applied patch.*use export\(\)"):
            way(two[0].attached()[0])
    write_base(tmp_path / "base", two[0].host.tokenizer)
    apart = load(tmp_path / "base", device={"model": "cpu", "lm_head": "disk"})
    with pytest.raises(UsageError, match=r"in files that are deleted with this model.*pave\.load"):
        copy.deepcopy(apart)


# Options


def test_hugging_face_s_options_of_forward_are_passed_on(one: PatchedModel) -> None:
    hears(one)
    inputs = one.prepare(clips(), QUESTIONS)
    with torch.no_grad():
        plain = one.forward(inputs)
        more = one.forward(inputs, output_hidden_states=True, use_cache=True)
        assert torch.equal(more.logits, plain.logits) and plain.hidden_states is plain.past_key_values is None
        layers = one.base.config.get_text_config().num_hidden_layers
        assert len(more.hidden_states) == layers + 1 and more.past_key_values.get_seq_length() == plain.logits.shape[1]
        assert torch.equal(one.base.lm_head(more.hidden_states[-1]), plain.logits)
        assert torch.equal(one.forward(inputs, return_dict=False)[0], plain.logits)
        labels = inputs.input_ids
        loss, first, *_ = one.forward(inputs, labels=labels, return_dict=False)
        assert not loss.dim() and torch.equal(first, plain.logits)
        with pytest.raises(UsageError, match=r'output_attentions=True has no effect.*implementation\("eager"\)'):
            one.forward(inputs, output_attentions=True)
        one.base.set_attn_implementation("eager")
        assert len(one.forward(inputs, output_attentions=True).attentions) == layers


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            {"output_hiden_states": True},
            "no option 'output_hiden_states'; did you mean 'output_hidden_states'",
        ),
        ({"output_router_logits": True}, "output_router_logits=True has no effect in this base; leave it out"),
        ({"pixel_values": None}, "no option 'pixel_values'; known: output_attentions, "),
        ({"use_cache": 1}, "use_cache=1 must be True, False or None"),
    ],
)
def test_options_of_forward_are_refused_by_name(one: PatchedModel, option: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        one.forward(one.prepare(clips(), QUESTIONS), **option)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"max_new_token": 3}, "generate: no option 'max_new_token'; did you mean 'max_new_tokens'"),
        ({"input_ids": torch.zeros(1, 1)}, "no option 'input_ids'; it comes from the inputs, or does not exist"),
        ({"custom_generate": "somebody/code"}, "no option 'custom_generate'"),
        ({"trust_remote_code": True}, "no option 'trust_remote_code'"),
    ],
)
def test_options_of_generate_are_refused_by_name(one: PatchedModel, option: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        one.generate(one.prepare(clips(), QUESTIONS), **option)


def test_options_of_generate_are_passed_on(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    found = one.generate(inputs, **options, output_hidden_states=True, stop_strings="!", tokenizer=one.host.tokenizer)
    assert len(found.scores) == 2 and len(found.hidden_states) == 2
