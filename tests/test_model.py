"""The laws of DESIGN.md, each beside its opposite, and what a question can be.

Laws are looked at in float32 and bfloat16, through forward and through generate (greedy, beams).
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from conftest import FRAMES, SIDE, awaken, make_base, make_clip, make_config
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import pave
from pave.config import FusionConfig, LoraConfig, SenseFacts
from pave.data import collate, pack
from pave.errors import PatchError, PatchMismatch, PatchNotFound, SignalError
from pave.inputs import Inputs
from pave.media import Clip
from pave.model import Answer, PatchedModel
from pave.patch import Patch

QUESTIONS = ("What do you hear?", "And now, at the end of the clip?")
WAYS: dict[str, Callable[[PatchedModel, Inputs], Tensor]] = {
    "forward": lambda model, inputs: model.forward(inputs).logits.detach(),
    "greedy": lambda model, inputs: model.generate(inputs, max_new_tokens=6, do_sample=False),
    "beams": lambda model, inputs: model.generate(inputs, max_new_tokens=6, do_sample=False, num_beams=3),
}


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[PatchedModel, Inputs], Tensor]:
    return WAYS[request.param]


@pytest.fixture
def one(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A model in float32, for what does not depend on the dtype."""
    return PatchedModel(make_base(tokenizer))


def clips() -> list[Clip]:
    return [make_clip(0), make_clip(1)]


def logits(model: PatchedModel, **how: Any) -> Tensor:
    with torch.no_grad():
        return model.forward(model.prepare(clips(), QUESTIONS, **how)).logits


def hears(model: PatchedModel, name: str = "ears", **changes: Any) -> None:
    """Apply a patch whose weights act."""
    model.attach(name, make_config(model.host, name, **changes), trainable=False)
    awaken(model, name)


# Law 1


@pytest.mark.parametrize("fusion", [FusionConfig(width=32, heads=2), FusionConfig(kind="official", width=32, heads=2)])
def test_untrained_patch_changes_nothing(
    model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor], fusion: FusionConfig
) -> None:
    before = run(model, model.prepare(clips(), QUESTIONS))
    model.attach("ears", make_config(model.host, fusion=fusion))
    inputs = model.prepare(clips(), QUESTIONS)
    assert torch.equal(run(model, inputs), before)


@pytest.mark.parametrize("part", ["fusion", "lora"])
def test_one_nonzero_output_weight_changes_the_logits(model: PatchedModel, part: str) -> None:
    before = logits(model)
    attached = model.attach("ears", make_config(model.host))
    state = dict(attached.named_parameters())
    weight = state["fusion.audio.out.weight" if part == "fusion" else "lora.layers.0.self_attn.v_proj.B"]
    weight.data[0, 0] = 30.0
    assert not torch.equal(logits(model), before)


def test_trained_patch_changes_the_answer(model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor]) -> None:
    before = run(model, model.prepare(clips(), QUESTIONS))
    hears(model)
    after = run(model, model.prepare(clips(), QUESTIONS))
    assert before.shape != after.shape or not torch.equal(before, after)


def test_sound_that_is_not_finite_is_an_error(one: PatchedModel) -> None:
    hears(one)
    clip = make_clip()
    assert clip.audio is not None
    clip.audio[0, 5000] = float("nan")
    with pytest.raises(SignalError, match="not finite"):
        one.ask(clip, QUESTIONS[0])


def test_prompt_and_packing_are_hugging_faces_own(model: PatchedModel) -> None:
    """Without patches, the same logits as the base fed with pixels."""
    inputs = model.prepare(clips()[:1], QUESTIONS[:1])
    base: Any = model.base
    pixels = model.host.pixels(clips()[0])[None].to(model.host.dtype)
    official = base(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values_videos=pixels)
    assert torch.equal(model.forward(inputs).logits, official.logits)


# Law 2


def portrait(model: PatchedModel) -> dict[str, Any]:
    """Everything about the base that a guest could leave changed."""
    base = model.base
    parts: dict[str, Any] = {"state": {name: tensor.clone() for name, tensor in base.state_dict().items()}}
    parts["parameters"] = {n: (id(p), p.requires_grad, p.grad is None) for n, p in base.named_parameters()}
    parts["buffers"] = {name: buffer.clone() for name, buffer in base.named_buffers()}
    for name, module in base.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("_hooks") and value is not None}
        others = {key: id(value) for key, value in vars(module).items()}
        parts[name] = (type(module), id(module), module.training, hooks, others, id(module.forward.__func__))
    parts["generation"] = base.generation_config.to_dict()
    parts["config"] = base.config.to_dict()
    return parts


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    return one == other


def test_applied_and_removed_leaves_no_trace(
    model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor]
) -> None:
    reference = run(model, model.prepare(clips(), QUESTIONS))
    before, seeds = portrait(model), torch.random.get_rng_state()
    model.attach("ears", make_config(model.host), make_tensors(model), trainable=False)
    assert torch.equal(torch.random.get_rng_state(), seeds), "a loaded patch draws no random numbers"
    patched = run(model, model.prepare(clips(), QUESTIONS))
    assert patched.shape != reference.shape or not torch.equal(patched, reference)
    assert not alike(before, portrait(model)), "the portrait sees hooks"
    assert list(model.base_state_dict()) == list(before["state"])
    model.remove_patch("ears")
    assert alike(before, portrait(model))
    assert torch.equal(reference, run(model, model.prepare(clips(), QUESTIONS)))


def make_tensors(model: PatchedModel) -> dict[str, Tensor]:
    """Tensors of a patch that acts, from a model of its own."""
    other = PatchedModel(model.host)
    with torch.random.fork_rng(devices=[]):
        other.attach("ears", make_config(model.host))
    awaken(other, "ears")
    tensors = dict(other.export("ears").tensors)
    other.remove_patch("ears")
    return tensors


def test_two_hundred_random_changes_leave_no_trace(one: PatchedModel) -> None:
    """Applied, swapped, weighed, switched and removed in any order, with questions between them."""
    reference = logits(one)
    patches = [other_ears(one), other_ears(one, lora=LoraConfig(r=2, lora_alpha=3)), other_ears(one, lora=None)]
    before, rng, bare, told = portrait(one), Random(0), 0, set()

    def change() -> None:
        here = list(one.patches)
        free = [name for name in "abc" if name not in here]
        verb = rng.choice(["apply", "swap", "weight", "enable", "disable", "remove", "remove"])
        if verb == "apply" and free:
            one.apply_patch(rng.choice(patches), name=rng.choice(free))
        elif here:
            name = rng.choice(here)
            match verb:
                case "swap":
                    one.swap_patch(name, rng.choice(patches))
                case "weight":
                    one.set_weight(name, rng.choice([0.0, 0.5, 1.0, 2.0]))
                case "enable" | "disable":
                    getattr(one, verb)(name)
                case "remove":
                    one.remove_patch(name)

    for _ in range(200):
        change()
        answer = logits(one)
        told.add(torch.equal(answer, reference))
        if not one.patches:
            bare += 1
            assert torch.equal(answer, reference) and alike(before, portrait(one))
    for name in list(one.patches):
        one.remove_patch(name)
    assert bare > 20 and told == {True, False} and alike(before, portrait(one))


def test_memory_returns(one: PatchedModel) -> None:
    hears(one)
    one.ask(clips()[0], QUESTIONS[0])
    weights = {id(parameter) for parameter in one._found("ears")[0].parameters()}
    one.remove_patch("ears")
    gc.collect()
    assert not weights & {id(each) for each in gc.get_objects() if isinstance(each, torch.nn.Parameter)}


# Law 3


def test_only_the_patch_gets_gradients(model: PatchedModel) -> None:
    kind = type(model.base)
    attached = model.attach("ears", make_config(model.host))
    awaken(model, "ears")
    model.forward(model.prepare(clips(), QUESTIONS)).logits.float().square().mean().backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    moved = {
        name.split(".")[0] for name, each in attached.named_parameters() if each.grad is not None and each.grad.any()
    }
    assert moved == {"fusion", "lora"}
    assert type(model.base) is kind


def test_checkpointing_gives_the_same_gradients(one: PatchedModel) -> None:
    """Recomputation happens after the call has ended, and for two calls with different rows."""
    attached = one.attach("ears", make_config(one.host))
    awaken(one, "ears")
    calls = [one.prepare(clips(), QUESTIONS, patches=rows) for rows in (["ears"], [["ears"], []])]
    gradients, counted = [], []
    layer = one.host.language_model.get_submodule("layers.0.mlp")
    for enable in (False, True):
        one.checkpoint_activations(enable)
        attached.zero_grad()
        passes = itertools.count(1)
        with hooked(layer, lambda *_, passes=passes: next(passes)):
            sum(one.forward(call).logits.square().mean() for call in calls).backward()  # type: ignore[union-attr]
        counted.append(next(passes) - 1)
        gradients.append(
            {name: each.grad.clone() for name, each in attached.named_parameters() if each.grad is not None}
        )
    assert counted == [2, 4], "every layer runs again for the gradient of each call"
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
    one.checkpoint_activations(False)
    assert not one.base.training and not any(module.training for module in one.base.modules())


def test_training_computes_what_the_loaded_patch_will(model: PatchedModel) -> None:
    model.attach("ears", make_config(model.host), trainable=True)
    awaken(model, "ears")
    assert {p.dtype for part in model.trainable("ears").values() for p in part.values()} == {torch.float32}
    trained, patch = logits(model), model.export("ears")
    model.remove_patch("ears")
    model.apply_patch(patch)
    assert {p.dtype for p in model._found("ears")[0].parameters()} == {model.host.dtype}
    assert torch.equal(logits(model), trained)


# Law 5


def test_absent_sound_gets_the_base_answer_exactly(
    model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor]
) -> None:
    silent = [make_clip(0, sound=False), make_clip(1, sound=False)]
    before = run(model, model.prepare(silent, QUESTIONS))
    hears(model)
    inputs = model.prepare(silent, QUESTIONS)
    assert torch.equal(run(model, inputs), before)


def test_digital_silence_is_present(one: PatchedModel) -> None:
    before = logits(one)
    hears(one)
    quiet = [Clip.from_frames(c.frames, c.times, audio=torch.zeros(1, 16_000 * FRAMES), rate=16_000) for c in clips()]
    after = one.forward(one.prepare(quiet, QUESTIONS)).logits
    assert not torch.equal(after, before)


def test_lora_may_stay_when_the_recipe_says_so(one: PatchedModel) -> None:
    silent = [make_clip(0, sound=False), make_clip(1, sound=False)]
    before = one.forward(one.prepare(silent, QUESTIONS)).logits
    hears(one, keep_lora_when_absent=True)
    inputs = one.prepare(silent, QUESTIONS)
    assert not torch.equal(one.forward(inputs).logits, before)
    assert torch.equal(one.fused_tokens(inputs), inputs.visual.tokens), "fusion is skipped all the same"


def test_a_partly_present_row_runs_with_the_missing_sense_masked(one: PatchedModel) -> None:
    """Two senses of one patch, of which a clip has one."""
    config = make_config(one.host)
    other = SenseFacts(**{**config.senses["audio"].model_dump(), "options": {"bands": 16, "rate": 10}})
    spec = one.encoder(other).spec
    other = other.model_copy(update={"preprocessing": spec.preprocessing})
    one.attach("ears", config.model_copy(update={"senses": {"audio": config.senses["audio"], "fast": other}}))
    awaken(one, "ears")
    features = one.encode(clips()[:1])
    sides = dict(features[0].sides)
    sides[spec.preprocessing] = None
    partly = [dataclasses.replace(features[0], sides=sides)]
    nothing = [dataclasses.replace(features[0], sides=dict.fromkeys(sides))]
    both, part, none = (one.prepare(each, QUESTIONS[:1]) for each in (features, partly, nothing))
    tokens = [one.fused_tokens(each) for each in (both, part, none)]
    assert torch.equal(tokens[2], features[0].tokens[None])
    assert not torch.equal(tokens[1], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    with torch.no_grad():
        before = one.forward(one.prepare(features, QUESTIONS[:1], patches=[])).logits
        assert torch.equal(one.forward(none).logits, before)
        assert not torch.equal(one.forward(part).logits, before)


# Law 6 (forward only; the issue on serving looks at it whole)


def test_rows_with_different_patches_equal_rows_that_all_have_them(one: PatchedModel) -> None:
    hears(one)
    hears(one, "more", lora=LoraConfig(r=2, lora_alpha=3))
    awaken(one, "more", seed=7)
    mixed = logits(one, patches=[["ears"], ["more", "ears"]])
    assert torch.equal(mixed[0], logits(one, patches=["ears"])[0])
    assert torch.equal(mixed[1], logits(one, patches=["ears", "more"])[1])
    assert not torch.equal(mixed[1], logits(one, patches=["ears"])[1])
    off = logits(one, patches=[[], ["ears"]])
    assert torch.equal(off[0], logits(one, patches=[])[0])


def test_ragged_batches_answer_like_single_questions(one: PatchedModel) -> None:
    hears(one)
    many = [make_clip(0), make_clip(1, frames=2), make_clip(2, frames=3, sound=False)]
    padded = one.prepare(many, ["Well?", *QUESTIONS])
    assert [int(row[mask.bool()][0]) for row, mask in zip(padded.positions(), padded.attention_mask, strict=True)] == [
        0
    ] * 3
    for options in ({}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        returned = options.get("num_return_sequences", 1)
        questions = ["Well?", *QUESTIONS]
        inputs = one.prepare(many, questions)
        together = one.generate(inputs, max_new_tokens=6, do_sample=False, **options)[:, inputs.input_ids.shape[1] :]
        for i, (clip, question) in enumerate(zip(many, questions, strict=True)):
            single = one.prepare([clip], [question])
            alone = one.generate(single, max_new_tokens=6, do_sample=False, **options)
            alone = alone[:, single.input_ids.shape[1] :]
            assert torch.equal(together[i * returned : (i + 1) * returned, : alone.shape[1]], alone)


# Law 7


def test_saved_and_loaded_gives_equal_logits(model: PatchedModel, tmp_path: Path) -> None:
    before = logits(model)
    hears(model)
    patched = logits(model)
    path = model.export("ears").save(tmp_path / "ears.safetensors")
    model.remove_patch("ears")
    report = model.apply_patch(path, name="again")
    assert torch.equal(logits(model), patched)
    assert not torch.equal(before, patched)
    assert (report.base_match, report.source, report.senses) == ("exact", str(path), {"audio": "logmel"})
    assert report.sha256[:16] in str(report) and "again" in str(report)


def test_a_patch_of_another_base_is_refused(one: PatchedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    stranger = PatchedModel(make_base(tokenizer, seed=9))
    hears(stranger)
    patch = stranger.export("ears")
    with pytest.raises(PatchMismatch, match=stranger.host.fingerprint()[:12]):
        one.apply_patch(patch)
    assert not one.patches
    report = one.apply_patch(patch, strict=False)
    assert "not its own base" in report.base_match
    facts = patch.config.base.model_copy(update={"dim": 65})
    with pytest.raises(PatchMismatch, match="dim=65"):
        one.apply_patch(Patch(patch.config.model_copy(update={"base": facts}), patch.tensors), name="b", strict=False)


def test_a_patch_of_another_encoder_or_of_other_layers_is_refused(one: PatchedModel) -> None:
    hears(one)
    patch = one.export("ears")
    one.remove_patch("ears")
    facts = patch.config.senses["audio"].model_copy(update={"preprocessing": "0" * 64})
    with pytest.raises(PatchMismatch, match="logmel"):
        one.apply_patch(Patch(patch.config.model_copy(update={"senses": {"audio": facts}}), patch.tensors))
    fewer = {n: t for n, t in patch.tensors.items() if "layers.1.mlp" not in n}
    with pytest.raises(PatchMismatch, match=r"layers\.1\.mlp.*missing"):
        one.apply_patch(Patch(patch.config, fewer))
    assert not one.patches and not sum(len(module._forward_hooks) for module in one.base.modules())


def test_unknown_patches_are_refused_by_name(one: PatchedModel, tmp_path: Path) -> None:
    with pytest.raises(PatchNotFound, match="did you mean"):
        one.apply_patch("audio-playrom")
    with pytest.raises(PatchNotFound, match="not in the cache"):
        one.apply_patch("somebody/patch@v1")
    with pytest.raises(PatchNotFound):
        one.apply_patch(tmp_path)
    hears(one)
    with pytest.raises(PatchNotFound, match="did you mean 'ears'"):
        one.ask(clips()[0], QUESTIONS[0], patches=["eers"])
    with pytest.raises(PatchError, match="already"):
        one.attach("ears", make_config(one.host))
    with pytest.raises(PatchNotFound):
        one.remove_patch("nose")


# Switches


def test_weight_zero_disabled_and_off_are_the_base(model: PatchedModel) -> None:
    before = logits(model)
    hears(model)
    full = logits(model)
    model.set_weight("ears", 0.0)
    assert torch.equal(logits(model), before)
    model.set_weight("ears", 0.5)
    half = logits(model)
    assert not torch.equal(half, before) and not torch.equal(half, full)
    model.set_weight("ears", 1.0)
    model.disable("ears")
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model, patches=["ears"]), full)
    model.enable("ears")
    inputs = model.prepare(clips(), QUESTIONS)
    with model.patches_off():
        assert torch.equal(logits(model), before)
        assert torch.equal(model.forward(inputs).logits, before)
    assert torch.equal(logits(model), full)
    with pytest.raises(ValueError, match="weight"):
        model.set_weight("ears", float("nan"))


def test_a_direct_call_of_the_base_is_the_base(one: PatchedModel) -> None:
    inputs = one.prepare(clips()[:1], QUESTIONS[:1])
    base: Any = one.base
    pixels = one.host.pixels(clips()[0])[None]
    words = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask, "pixel_values_videos": pixels}
    before = base(**words).logits
    hears(one)
    assert torch.equal(base(**words).logits, before)


def test_patches_off_reaches_this_thread_only(one: PatchedModel) -> None:
    before = logits(one)
    hears(one)
    full = logits(one)
    seen: list[Tensor] = []
    with one.patches_off():
        thread = threading.Thread(target=lambda: seen.append(logits(one)))
        thread.start()
        thread.join()
        assert torch.equal(logits(one), before)
    assert torch.equal(seen[0], full)


@contextmanager
def hooked(layer: torch.nn.Module, call: Callable[..., None]) -> Iterator[None]:
    def before(*each: object) -> None:  # what a hook returns would take the place of the layer's input
        call(*each)

    handle = layer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def test_threads_do_not_mix_rows_and_removal_waits(one: PatchedModel) -> None:
    hears(one)
    hears(one, "more")
    awaken(one, "more", seed=3)
    choices: list[tuple[str, ...]] = [(), ("ears",), ("ears", "more")]
    wanted = {names: logits(one, patches=list(names)) for names in choices}
    failures: list[object] = []

    def work(names: tuple[str, ...]) -> None:
        for _ in range(5):
            if not torch.equal(logits(one, patches=list(names)), wanted[names]):
                failures.append(names)

    threads = [threading.Thread(target=work, args=(names,)) for names in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    stale = one.prepare(clips(), QUESTIONS)
    inside, go_on = threading.Event(), threading.Event()
    late: list[torch.Tensor] = []

    def block(*_: object) -> None:
        inside.set()
        assert go_on.wait(30)

    both = ("ears", "more")
    with hooked(one.host.language_model.get_submodule("layers.0"), block):
        call = threading.Thread(target=lambda: late.append(logits(one, patches=list(both))))
        call.start()
        assert inside.wait(30)
        removal = threading.Thread(target=one.remove_patch, args=("more",))
        removal.start()
        removal.join(0.3)
        assert removal.is_alive(), "a call still runs with it"
        go_on.set()
        call.join()
    removal.join()
    assert torch.equal(late[0], wanted[both]) and list(one.patches) == ["ears"]
    with pytest.raises(PatchNotFound, match="removed"):
        one.forward(stale)


def other_ears(one: PatchedModel, **changes: Any) -> Patch:
    """A patch of the same shapes as `hears` applies, with other weights."""
    donor = PatchedModel(one.host)
    donor.attach("ears", make_config(one.host, **changes), trainable=False)
    awaken(donor, "ears", seed=5)
    patch = donor.export("ears")
    donor.remove_patch("ears")
    return patch


def test_a_swapped_patch_acts_from_the_next_question_on(one: PatchedModel) -> None:
    logits(one)  # Hugging Face keeps things of a first call
    before, patch = portrait(one), other_ears(one)
    one.apply_patch(patch, name="alone")
    wanted = logits(one)
    one.remove_patch("alone")
    hears(one)
    first, prepared = logits(one), one.prepare(clips(), QUESTIONS)
    one.set_weight("ears", 0.5)
    half = logits(one)
    report = one.swap_patch("ears", patch)
    assert (report.weight, report.sha256) == (0.5, patch.sha256) and list(one.patches) == ["ears"]
    assert not torch.equal(logits(one), half)
    one.set_weight("ears", 1.0)
    assert torch.equal(logits(one), wanted) and not torch.equal(wanted, first)
    assert torch.equal(one.forward(prepared).logits, first), "what was prepared keeps its version"
    assert torch.equal(logits(one), wanted)
    one.remove_patch("ears")
    assert alike(before, portrait(one))
    assert torch.equal(one.forward(prepared).logits, first) and alike(before, portrait(one)), "and leaves no trace"


def test_a_swap_does_not_wait_for_a_running_question_which_ends_as_it_began(one: PatchedModel) -> None:
    hears(one)
    first, patch = logits(one), other_ears(one)
    inside, go_on, late = threading.Event(), threading.Event(), []

    def block(*_: object) -> None:
        inside.set()
        assert go_on.wait(30)

    with hooked(one.host.language_model.get_submodule("layers.0"), block):
        call = threading.Thread(target=lambda: late.append(logits(one)))
        call.start()
        assert inside.wait(30)
        one.swap_patch("ears", patch)
        assert call.is_alive()
        go_on.set()
        call.join()
    assert torch.equal(late[0], first) and not torch.equal(logits(one), first)


def test_a_compiled_base_is_not_compiled_again_for_another_patch(one: PatchedModel) -> None:
    hears(one)
    first, patch = logits(one), other_ears(one)
    torch._dynamo.reset()
    model: Any = one.host.language_model
    model.compile(backend="eager", dynamic=True)
    for _ in range(2):
        torch.testing.assert_close(logits(one), first, atol=1e-5, rtol=1e-5)
        logits(one, patches=[])
    with torch._dynamo.config.patch(error_on_recompile=True):
        one.swap_patch("ears", patch)
        assert not torch.allclose(logits(one), first, atol=1e-3)
        one.set_weight("ears", 0.5)
        logits(one)
        one.apply_patch(other_ears(one, lora=LoraConfig(r=2, lora_alpha=3)), name="more")
        logits(one)
        one.remove_patch("more")
        one.disable("ears")
        logits(one)
    model._compiled_call_impl = None
    one.enable("ears")
    one.set_weight("ears", 1.0)
    swapped = logits(one)
    one.remove_patch("ears")
    one.apply_patch(patch)
    assert torch.equal(logits(one), swapped)


def test_a_swap_that_is_refused_leaves_the_patch_that_was_there(one: PatchedModel) -> None:
    hears(one)
    first, patch = logits(one), other_ears(one)
    tensors = {name: value * math.nan for name, value in patch.tensors.items()}
    with pytest.raises(PatchError, match="not finite"):
        one.swap_patch("ears", replace(patch, tensors=tensors))
    with pytest.raises(PatchNotFound, match="did you mean 'ears'"):
        one.swap_patch("eers", patch)
    one.set_weight("ears", 0.5)
    beside = other_ears(one, fusion=FusionConfig(width=32, heads=2, combine="prefix"))
    with pytest.raises(ValueError, match="beside"):
        one.swap_patch("ears", beside)
    one.set_weight("ears", 1)
    assert (
        torch.equal(logits(one), first) and len(one.base.model.language_model.layers[0].mlp.up_proj._forward_hooks) == 1
    )


def test_two_versions_of_one_patch_live_under_two_names_and_any_order_is_the_same_sum(one: PatchedModel) -> None:
    hears(one)
    one.apply_patch(other_ears(one), name="newer")
    both = logits(one)
    assert not torch.equal(both, logits(one, patches=["ears"])) and list(one.patches) == ["ears", "newer"]
    again = PatchedModel(one.host)
    patches = [(name, one.export(name)) for name in ("newer", "ears")]
    for name in ("ears", "newer"):
        one.remove_patch(name)
    for name, patch in patches:
        again.apply_patch(patch, name=name)
    turned = logits(again)
    torch.testing.assert_close(turned, both, atol=1e-4, rtol=1e-4)
    for name, _ in patches:
        again.remove_patch(name)


def test_patches_with_different_layouts_cannot_share_a_row(one: PatchedModel) -> None:
    hears(one)
    hears(one, "grid", newline="grid")
    with pytest.raises(PatchMismatch, match="newline: grid"):
        one.ask(clips()[0], QUESTIONS[0])
    inputs = one.prepare(clips(), QUESTIONS, patches=[["ears"], ["grid"]])
    assert inputs.newline == ("end", "grid")
    assert one.forward(inputs).logits.isfinite().all()


@pytest.mark.parametrize("combine", ["prefix", "interleave"])
def test_concatenation_puts_side_tokens_beside(model: PatchedModel, combine: str) -> None:
    fusion = FusionConfig(width=32, heads=2, combine=combine)  # type: ignore[arg-type]
    plain = model.prepare(clips(), QUESTIONS)
    hears(model, fusion=fusion)
    many = [make_clip(0), make_clip(1, frames=2, sound=False)]
    inputs = model.prepare(many, QUESTIONS)
    placeholder = model.host.placeholder
    extra = (inputs.input_ids[0] == placeholder).sum() - (plain.input_ids[0] == placeholder).sum()
    assert extra == FRAMES * 5  # five tokens per second of sound
    absent = model.forward(inputs).logits[1, -1]
    alone = model.forward(model.prepare(many[1:], QUESTIONS[1:], patches=[])).logits[0, -1]
    tolerance = 1e-4 if model.host.dtype == torch.float32 else 0.5
    torch.testing.assert_close(absent, alone, atol=tolerance, rtol=tolerance)
    assert model.generate(inputs, max_new_tokens=3, num_beams=2, do_sample=False).shape[0] == 2
    with pytest.raises(ValueError, match="beside"):
        model.set_weight("ears", 0.5)


# The lower altitude


def test_packed_questions_equal_questions_alone(one: PatchedModel) -> None:
    """Several questions behind one visual prefix, as the trainer asks them."""
    hears(one)
    features = [one.encode_clip(clip) for clip in clips()]
    rows = []
    for count in one.visual_rows(features, ["ears"]):
        before, _ = one.host.prompt("")
        turns = [(one.host.prompt(question)[1], one.host.encode_text("yes")) for question in QUESTIONS]
        rows.append(pack([*before, *[one.host.placeholder] * count], turns))
    tokens = collate(rows, one.host.pad)
    labels = tokens.pop("labels")
    packed = one.forward(one.inputs(features, ["ears"], **tokens)).logits
    for i in range(2):
        places = (labels[i] != -100).nonzero()[:, 0]
        for question, place in zip(QUESTIONS, places[:: len(one.host.encode_text("yes"))], strict=True):
            alone = one.forward(one.prepare(features[i : i + 1], [question])).logits[0, -1]
            torch.testing.assert_close(packed[i, place - 1], alone, atol=1e-4, rtol=1e-4)


def test_wrong_counts_are_errors(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    fewer = inputs.input_ids.clone()
    fewer[fewer == one.host.placeholder] = one.host.pad
    with pytest.raises(ValueError, match="placeholders"):
        one.forward(Inputs(fewer, inputs.attention_mask, inputs.visual))
    with pytest.raises(ValueError, match="2 clips and 1 questions"):
        one.prepare(clips(), QUESTIONS[:1])
    with pytest.raises(ValueError, match="position_ids"):
        one.forward(Inputs(inputs.input_ids, inputs.attention_mask[:, None, None], inputs.visual))
    hears(one)
    with pytest.raises(SignalError, match="logmel"):
        one.prepare(one.encode(clips(), []), QUESTIONS)


# Questions


def test_vision_tower_runs_once_per_question(one: PatchedModel) -> None:
    hears(one)
    calls = []
    tower: Any = one.base.model.vision_tower
    handle = tower.register_forward_hook(lambda *arguments: calls.append(1))
    one.ask(clips()[0], QUESTIONS[0], max_new_tokens=8)
    assert len(calls) == 1
    shared = clips()[0]
    one.ask_batch([(shared, question) for question in QUESTIONS])
    assert len(calls) == 2
    handle.remove()


def test_an_answer_tells_how_it_came_about(one: PatchedModel) -> None:
    hears(one)
    answer = one.ask(clips()[0], QUESTIONS[0])
    assert isinstance(answer, str) and answer.patches == ("ears",)
    assert answer.signals["audio"].startswith("present: 20 steps")
    assert set(answer.timings) == {"read", "encode", "prepare", "generate"}
    kept = pickle.loads(pickle.dumps(copy.copy(answer)))
    assert isinstance(kept, Answer) and (kept, kept.signals) == (answer, answer.signals)


def test_real_files_pictures_and_arrays_can_be_asked(one: PatchedModel, tmp_path: Path) -> None:
    hears(one)
    wave = 0.1 * np.random.default_rng(0).standard_normal(48_000 * 2).astype(np.float32)
    write_clip(tmp_path / "loud.mp4", counting_frames(20), fps=10, audio=wave, rate=48_000)
    write_clip(tmp_path / "mute.mp4", counting_frames(20), fps=10)
    heard, deaf = one.ask(tmp_path / "loud.mp4", QUESTIONS[0]), one.ask(str(tmp_path / "mute.mp4"), QUESTIONS[0])
    assert heard.signals["audio"].startswith("present")
    assert deaf.signals == {"audio": "absent: no audio track"}
    assert deaf == one.ask(tmp_path / "mute.mp4", QUESTIONS[0], patches=[])
    assert one.ask(np.zeros((SIDE, SIDE, 3), np.uint8), QUESTIONS[0]).signals["audio"].startswith("absent")


def test_sound_can_be_handed_over_or_dropped(one: PatchedModel) -> None:
    hears(one)
    clip, other = clips()
    dropped = one.ask(clip, QUESTIONS[0], audio=None)
    assert dropped == one.ask(clip, QUESTIONS[0], patches=())
    assert dropped.signals["audio"] == "absent: left out by the caller"
    given = one.ask(make_clip(0, sound=False), QUESTIONS[0], audio=(clip.audio, 16_000))
    assert given == one.ask(clip, QUESTIONS[0])
    with pytest.raises(SignalError, match="no applied patch reads the signal 'depth'"):
        one.ask(clip, QUESTIONS[0], depth=other.audio)


def test_a_batch_answers_each_row_with_its_own_patches(one: PatchedModel) -> None:
    hears(one)
    clip = clips()[0]
    rows = [
        (clip, QUESTIONS[0]),
        (clip, QUESTIONS[0], []),
        {"clip": clip, "question": QUESTIONS[1], "patches": ["ears"]},
    ]
    patched, plain, third = one.ask_batch(rows)
    assert (patched.patches, plain.patches, third.patches) == (("ears",), (), ("ears",))
    with one.patches_off():
        off = one.ask(clip, QUESTIONS[0])
    assert plain == off and off.patches == ()
    assert patched == one.ask(clip, QUESTIONS[0])
    assert one.ask_batch([]) == []
    with pytest.raises(ValueError, match="row"):
        one.ask_batch([(clip,)])


def test_stream_says_what_ask_says(one: PatchedModel) -> None:
    hears(one)
    pieces = list(one.stream(clips()[0], QUESTIONS[0], max_new_tokens=12))
    assert "".join(pieces).strip() == one.ask(clips()[0], QUESTIONS[0], max_new_tokens=12)
    with one.patches_off():
        off = "".join(one.stream(clips()[0], QUESTIONS[0], max_new_tokens=12)).strip()
        assert off == one.ask(clips()[0], QUESTIONS[0], max_new_tokens=12)


def test_a_closed_stream_ends_its_generation(one: PatchedModel) -> None:
    running = threading.active_count()
    steps: list[int] = []
    with hooked(one.host.language_model.get_submodule("layers.0"), lambda *_: steps.append(1)):
        pieces = one.stream(clips()[0], QUESTIONS[0], max_new_tokens=900)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == running and len(steps) < 450


def test_a_stream_keeps_the_patches_it_was_asked_with(one: PatchedModel) -> None:
    plain = one.ask(clips()[0], QUESTIONS[0])
    hears(one)
    patched = one.ask(clips()[0], QUESTIONS[0])
    with one.patches_off():
        off = one.stream(clips()[0], QUESTIONS[0])
    on = one.stream(clips()[0], QUESTIONS[0])
    with one.patches_off():
        assert "".join(on).strip() == patched
    assert "".join(off).strip() == plain


def test_frames_spread_over_the_sound_that_comes_with_them(one: PatchedModel) -> None:
    hears(one)
    clip = make_clip()
    assert clip.audio is not None and clip.frames is not None
    apart = one.stream(clip.frames, QUESTIONS[0], audio=(clip.audio, 16000))
    together = one.ask(Clip.from_frames(clip.frames, audio=clip.audio, rate=16000), QUESTIONS[0])
    assert "".join(apart).strip() == together
    prepared = [
        one._prepare_rows([{"clip": given, "question": "?", **signals}])[0].uses[0].sides["audio"]
        for given, signals in (
            (clip.frames, {"audio": (clip.audio, 16000)}),
            (Clip.from_frames(clip.frames, audio=clip.audio, rate=16000), {}),
        )
    ]
    assert torch.equal(prepared[0].key_times, prepared[1].key_times)
    with pytest.raises(SignalError, match="pair"):
        one.ask(clip, QUESTIONS[0], audio=clip.audio)


def test_a_weight_that_is_refused_leaves_no_patch(one: PatchedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    donor = PatchedModel(make_base(tokenizer))
    hears(donor)
    patch = donor.export("ears")
    for weight in (math.nan, "1", 1e4):
        with pytest.raises(ValueError, match="weight="):
            one.apply_patch(patch, weight=weight)  # type: ignore[arg-type]
    assert not one.patches and one.apply_patch(patch, weight=0.5).weight == 0.5


def test_a_patch_in_memory_is_checked_like_a_file(one: PatchedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    donor = PatchedModel(make_base(tokenizer))
    hears(donor)
    patch = donor.export("ears")
    for bad, cause in ((torch.full_like, "not finite"), (lambda value, _: value.to(torch.int8), "int8")):
        tensors = {name: bad(value, math.nan) for name, value in patch.tensors.items()}
        with pytest.raises(PatchError, match=cause):
            one.apply_patch(replace(patch, tensors=tensors))
    assert not one.patches


def test_a_row_on_which_a_patch_does_not_act_is_laid_out_as_the_base_does(one: PatchedModel) -> None:
    silent = make_clip(1, sound=False)
    plain = one.prepare([silent], QUESTIONS[:1])
    hears(one, newline="grid")
    for weight, expected in ((1, ("grid", "end")), (0, ("end", "end"))):
        one.set_weight("ears", weight)
        inputs = one.prepare([make_clip(0), silent], QUESTIONS[:1] * 2)
        assert inputs.newline == expected
    alone = one.prepare([silent], QUESTIONS[:1])
    assert torch.equal(alone.input_ids, plain.input_ids) and torch.equal(
        one.forward(alone).logits, one.forward(plain).logits
    )


def test_features_that_were_encoded_without_a_sense_are_refused_where_it_is_asked_for(one: PatchedModel) -> None:
    before = one.encode([make_clip()])[0]
    hears(one)
    with pytest.raises(SignalError, match="hold nothing of logmel"):
        one.prepare([before], QUESTIONS[:1])
    mixed = one.prepare([before, make_clip(1)], QUESTIONS[:1] * 2, patches=[[], ["ears"]])
    assert mixed.uses[0].sensing.tolist() == [False, True]


def test_a_row_without_names_asks_for_all_that_are_enabled(one: PatchedModel) -> None:
    hears(one)
    inputs = one.prepare([make_clip()] * 3, QUESTIONS[:1] * 3, patches=[None, "ears", []])
    assert inputs.uses[0].rows.tolist() == [True, True, False]


def test_an_error_in_a_stream_reaches_the_reader(one: PatchedModel) -> None:
    hears(one)
    pieces = one.stream(clips()[0], QUESTIONS[0])
    one.remove_patch("ears")
    with pytest.raises(PatchNotFound, match="removed"):
        list(pieces)


def test_front_door_leads_here() -> None:
    assert pave.load.__module__ == "pave.model"
    assert pave.Patch is Patch
