"""Claims about the life of a patch: enabled, weighted, swapped and removed, also while calls run."""

import math
import sys
import threading
from collections import Counter
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
import torch
from families import make_base
from patched import QUESTIONS, alike, clips, hears, hooked, logits, other_ears, portrait
from small import awaken
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import PreTrainedTokenizerFast

from pave.config import FusionConfig, LoraConfig
from pave.errors import PatchError, PatchNotFound
from pave.model.patched import PatchedModel


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


def test_threads_do_not_mix_rows_and_removal_waits(one: PatchedModel) -> None:
    hears(one)
    hears(one, "more")
    awaken(one, "more", seed=3)
    choices: list[tuple[str, ...]] = [(), ("ears",), ("ears", "more")]
    expected = {names: logits(one, patches=list(names)) for names in choices}
    failures: list[object] = []

    def work(names: tuple[str, ...]) -> None:
        for _ in range(5):
            if not torch.equal(logits(one, patches=list(names)), expected[names]):
                failures.append(names)

    threads = [threading.Thread(target=work, args=(names,)) for names in expected]
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
        assert go_on.wait(300)

    both = ("ears", "more")
    with hooked(one.host.language_model.get_submodule("layers.0"), block):
        call = threading.Thread(target=lambda: late.append(logits(one, patches=list(both))))
        call.start()
        assert inside.wait(300)
        removal = threading.Thread(target=one.remove_patch, args=("more",))
        removal.start()
        removal.join(0.3)
        assert removal.is_alive(), "a call still runs with it"
        go_on.set()
        call.join()
    removal.join()
    assert torch.equal(late[0], expected[both]) and list(one.patches) == ["ears"]
    with pytest.raises(PatchNotFound, match="removed"):
        one.forward(stale)


def test_a_swapped_patch_acts_from_the_next_question_on(one: PatchedModel) -> None:
    logits(one)  # the first call leaves caches in Hugging Face's modules
    before, patch = portrait(one), other_ears(one)
    one.apply_patch(patch, name="alone")
    expected = logits(one)
    one.remove_patch("alone")
    hears(one)
    first, prepared = logits(one), one.prepare(clips(), QUESTIONS)
    one.set_weight("ears", 0.5)
    half = logits(one)
    report = one.swap_patch("ears", patch)
    assert (report.weight, report.sha256) == (0.5, patch.sha256) and list(one.patches) == ["ears"]
    assert not torch.equal(logits(one), half)
    one.set_weight("ears", 1.0)
    assert torch.equal(logits(one), expected) and not torch.equal(expected, first)
    assert torch.equal(one.forward(prepared).logits, first), "what was prepared keeps its version"
    assert torch.equal(logits(one), expected)
    one.remove_patch("ears")
    assert alike(before, portrait(one))
    assert torch.equal(one.forward(prepared).logits, first) and alike(before, portrait(one)), "and leaves no trace"


def test_a_swap_does_not_wait_for_a_running_question_which_finishes_with_the_old_patch(one: PatchedModel) -> None:
    hears(one)
    first, patch = logits(one), other_ears(one)
    inside, go_on, late = threading.Event(), threading.Event(), []

    def block(*_: object) -> None:
        inside.set()
        assert go_on.wait(300)

    with hooked(one.host.language_model.get_submodule("layers.0"), block):
        call = threading.Thread(target=lambda: late.append(logits(one)))
        call.start()
        assert inside.wait(300)
        one.swap_patch("ears", patch)
        assert call.is_alive()
        go_on.set()
        call.join()
    assert torch.equal(late[0], first) and not torch.equal(logits(one), first)


@pytest.mark.parametrize("part", ["language model", "layers"])
def test_a_compiled_base_is_one_graph_and_another_patch_needs_no_other(one: PatchedModel, part: str) -> None:
    """Compiled before it was patched, too: torch does not look by itself whether hooks were added."""
    language: Any = one.host.language_model
    parts = [language] if part == "language model" else [*language.layers]
    torch._dynamo.reset()
    counter: Any = CompileCounter()

    def compiled() -> Tensor:
        for each in parts:
            each.compile(backend=counter, dynamic=True)
        found = logits(one)
        for each in parts:
            each._compiled_call_impl = None
        assert not torch.is_grad_enabled() and torch.equal(found, logits(one)), "the same without compiling"
        return found

    with torch.no_grad():
        bare = compiled()
        before = counter.frame_count
        hears(one)
        patch = other_ears(one)
        first = compiled()
        assert not torch.allclose(first, bare, atol=1e-3) and counter.frame_count <= 2 * before
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                one.swap_patch("ears", patch)
                assert not torch.allclose(compiled(), first, atol=1e-3)
            one.set_weight("ears", 0.5)
            compiled()
            one.apply_patch(other_ears(one, lora=LoraConfig(r=2, lora_alpha=3)), name="more")
            compiled()
            one.remove_patch("more")
            one.disable("ears")
            assert torch.equal(compiled(), bare)
            one.remove_patch("ears")
            assert torch.equal(compiled(), bare)
    hears(one)
    graphs = counter.frame_count
    for each in parts:
        each.compile(backend=counter, dynamic=True)
    learning = one.forward(one.prepare(clips(), QUESTIONS)).logits  # with gradients, a graph ends at each LoRA
    assert counter.frame_count > graphs and not torch.allclose(learning, bare, atol=1e-3)
    for each in parts:
        each._compiled_call_impl = None
    torch.testing.assert_close(logits(one), learning.detach())


def test_a_refused_swap_leaves_the_old_patch(one: PatchedModel) -> None:
    hears(one)
    first, patch = logits(one), other_ears(one)
    tensors = {name: value * math.nan for name, value in patch.tensors.items()}
    with pytest.raises(PatchError, match="not finite"):
        one.swap_patch("ears", replace(patch, tensors=tensors))
    with pytest.raises(PatchNotFound, match="did you mean 'ears'"):
        one.swap_patch("eers", patch)
    one.set_weight("ears", 0.5)
    beside = other_ears(one, fusion=FusionConfig(width=32, heads=2, combine="prefix"))
    with pytest.raises(ValueError, match="inserts tokens"):
        one.swap_patch("ears", beside)
    one.set_weight("ears", 1)
    assert (
        torch.equal(logits(one), first) and len(one.base.model.language_model.layers[0].mlp.up_proj._forward_hooks) == 1
    )


def test_two_versions_of_one_patch_run_under_two_names_and_their_order_does_not_matter(one: PatchedModel) -> None:
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


def test_a_refused_weight_leaves_no_patch(one: PatchedModel, tokenizer: PreTrainedTokenizerFast) -> None:
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


def test_applying_a_patch_does_nothing_twice(playroom: PatchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scan of the catalogue, no recipe, one LoRA layout and one fusion, as counted by Python's profiler."""
    names = ("glob", "read_recipe", "targets", "_copy")
    calls = Counter[str]()

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and (name := frame.f_code.co_name) in names:
            calls[name] += name != "_copy" or frame.f_back is None or frame.f_back.f_code.co_name != "_copy"

    playroom.apply_patch("audio-playroom", name="first")  # triggers late imports
    sys.setprofile(count)
    try:
        playroom.apply_patch("audio-playroom", name="second")
    finally:
        sys.setprofile(None)
        for name in ("first", "second"):
            playroom.remove_patch(name)
    assert dict(calls) == {"targets": 1, "_copy": 2}  # one blank fusion, one blank LoRA
