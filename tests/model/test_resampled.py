"""Claims about patches with a resampler, which reads several senses together: the laws of DESIGN.md, each beside its
opposite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FRAMES
from patched import QUESTIONS, READ, WAYS, alike, clips, favor_config, favors, logits, portrait
from small import awaken, make_clip, make_config
from torch import Tensor

from pave.config import SenseFacts
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.layout import inserted
from pave.model.patched import PatchedModel

every_way = pytest.mark.parametrize("way", READ)
every_addition = pytest.mark.parametrize("way", ["residual", "official", "finer", "overlapping", "states"])


def fused(model: PatchedModel, *seen: Any) -> list[Tensor]:
    return model.fused_tokens(model.prepare(list(seen), QUESTIONS[:1] * len(seen)))


def without(clip: ClipFeatures, *senses: SenseFacts) -> ClipFeatures:
    return replace(clip, sides=dict(clip.sides) | {facts.preprocessing: None for facts in senses})


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[PatchedModel, Inputs], Tensor]:
    return WAYS[request.param]


# Law 1, and what a prompt holds


def test_an_untrained_patch_changes_nothing_however_it_is_asked(
    model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor]
) -> None:
    before = run(model, model.prepare(clips(), QUESTIONS))
    model.attach("favor", favor_config(model.host))
    assert torch.equal(run(model, model.prepare(clips(), QUESTIONS)), before)


@every_addition
def test_an_untrained_patch_changes_nothing_and_one_weight_changes_something(model: PatchedModel, way: str) -> None:
    before = logits(model)
    attached = model.attach("favor", favor_config(model.host, way))
    assert torch.equal(logits(model), before)
    last = "output_mapping.2.weight" if way == "official" else "out.weight"
    attached.get_parameter(f"fusion.resampled.{last}").data[0, 0] = 30
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize(("way", "more"), [("residual", 0), ("states", 0), ("prefix", 6), ("interleave", 6)])
def test_a_prompt_grows_by_the_queries_of_each_window_or_not_at_all(one: PatchedModel, way: str, more: int) -> None:
    """4 s are two windows of three outputs, whatever the key frames; a shorter clip has one window."""
    seen = one.encode([make_clip(0), make_clip(1, frames=2)], list(favor_config(one.host).senses.values()))
    bare = one.lay_out(seen, []).visual
    favors(one, way)
    ids = one.lay_out(seen, None).visual
    assert [len(row) - len(before) for row, before in zip(ids, bare, strict=True)] == [more, more // 2]
    assert logits(one).shape[1] == logits(one, patches=[]).shape[1] + more


def test_interleaved_windows_precede_their_own_key_frames(one: PatchedModel) -> None:
    """Key frames at 0, 1, 2 and 3 s, windows from 0 and from 2 s."""
    favors(one, "interleave")
    (groups,) = inserted(one.prepare(clips()[:1], QUESTIONS[:1]).uses, [None])
    assert [len(group) for group in groups[0]] == [3, 0, 3, 0]


# Law 2 and 3


@every_way
def test_applied_and_removed_leaves_no_trace(one: PatchedModel, way: str) -> None:
    reference, before = logits(one), portrait(one)
    favors(one, way)
    after = logits(one)
    assert after.shape != reference.shape or not torch.equal(after, reference)
    one.remove_patch("favor")
    assert alike(before, portrait(one)) and torch.equal(reference, logits(one))


@every_way
def test_all_of_the_patch_gets_gradients_and_nothing_of_the_base(one: PatchedModel, way: str) -> None:
    attached = one.attach("favor", favor_config(one.host, way))
    awaken(one, "favor")
    one.forward(one.prepare(clips(), QUESTIONS)).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in one.base.parameters())
    still = [name for name, each in attached.named_parameters() if each.grad is None or not each.grad.any()]
    assert not still


# Law 4


@pytest.mark.parametrize(
    ("way", "heard"),
    [
        ("residual", {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}),
        ("states", {0: [1, 2], 1: [2], 2: [3], 3: []}),
    ],
)
def test_a_key_frame_reads_its_own_window_or_the_states_up_to_it(
    model: PatchedModel, way: str, heard: dict[int, list[int]]
) -> None:
    """Key frames at 0, 1, 2 and 3 s, in steps 0, 2, 4 and 6; the sound breaks off 0.7 s after one, in the next step.
    The states of this step and of later ones in its window hear it, and each key frame reads those since the last."""
    favors(model, way)
    clip = make_clip(0)
    assert clip.audio is not None
    before = fused(model, clip)[0]
    for second, frames in heard.items():
        sound = clip.audio.clone()
        begin = round(16_000 * (second + 0.7))
        sound[:, begin : begin + 1600] = 0
        after = fused(model, replace(clip, audio=sound))[0]
        assert [i for i in range(FRAMES) if not torch.equal(before[i], after[i])] == frames


# Law 5


@every_way
def test_a_clip_without_any_of_the_senses_gets_the_base_s_answer(one: PatchedModel, way: str) -> None:
    heard = list(favor_config(one.host).senses.values())
    seen = [one.encode([make_clip(i, sound=not i)], heard) for i in range(2)]
    before = [one.prepare(each, QUESTIONS[:1]) for each in seen]
    favors(one, way)
    with torch.no_grad():
        old, new = (
            [one.forward(x).logits for x in xs] for xs in (before, [one.prepare(x, QUESTIONS[:1]) for x in seen])
        )
    assert torch.equal(old[1], new[1]) and not torch.equal(old[0][:, -1], new[0][:, -1])


@every_addition
def test_a_clip_with_one_of_the_senses_is_changed_by_that_one_alone(one: PatchedModel, way: str) -> None:
    favors(one, way)
    fast = one.applied.found("favor")[0].config.senses["fast"]
    (both,) = one.encode(clips()[:1])
    (other,) = one.encode(clips()[1:])
    borrowed = replace(both, sides=dict(both.sides) | {fast.preprocessing: other.sides[fast.preprocessing]})
    whole, part = fused(one, both)[0], fused(one, without(both, fast))[0]
    assert not torch.equal(whole, part) and not torch.equal(part, both.tokens)
    assert not torch.equal(fused(one, borrowed)[0], whole), "the other sense is read where it is present"
    assert torch.equal(fused(one, without(borrowed, fast))[0], part), "and nowhere else"


# Law 6


@every_addition
def test_the_update_of_a_row_does_not_depend_on_its_batch(one: PatchedModel, way: str) -> None:
    """Clips of different lengths, with both senses, one or none."""
    favors(one, way)
    slow, fast = one.applied.found("favor")[0].config.senses.values()
    seen = one.encode([make_clip(i, frames) for i, frames in enumerate((4, 3, 1, 4, 2))])
    seen[3], seen[4] = without(seen[3], slow), without(seen[4], slow, fast)
    together = fused(one, *seen)
    assert alike(together, [fused(one, clip)[0] for clip in seen])
    assert [torch.equal(tokens, clip.tokens) for tokens, clip in zip(together, seen, strict=True)] == [False] * 4 + [
        True
    ]


@every_way
def test_rows_with_different_patches_generate_what_they_would_alone(one: PatchedModel, way: str) -> None:
    favors(one, way)
    one.attach("ears", make_config(one.host), trainable=False)
    awaken(one, "ears", seed=7)
    many, sets = [make_clip(0), make_clip(1, frames=2), make_clip(2, sound=False)], [["favor"], ["favor", "ears"], []]
    questions = [*QUESTIONS, "Well?"]
    inputs = one.prepare(many, questions, patches=sets)
    together = one.generate(inputs, max_new_tokens=6, do_sample=False)[:, inputs.input_ids.shape[1] :]
    for row, clip, question, names in zip(together, many, questions, sets, strict=True):
        single = one.prepare([clip], [question], patches=[names])
        alone = one.generate(single, max_new_tokens=6, do_sample=False)[0, single.input_ids.shape[1] :]
        assert torch.equal(row[: len(alone)], alone)


# Law 7


@every_way
def test_saved_and_loaded_gives_equal_logits(one: PatchedModel, tmp_path: Path, way: str) -> None:
    """The file sorts the senses, so their order in a recipe must not matter."""
    favors(one, way)
    patched, patch = logits(one), one.export("favor")
    one.remove_patch("favor")
    report = one.apply_patch(patch.save(tmp_path / "favor.safetensors"))
    assert (list(patch.config.senses), list(report.senses)) == (["slow", "fast"], ["fast", "slow"])
    assert torch.equal(logits(one), patched)
    sizes = (report.resampler_params, report.fusion_params, report.lora_params)
    assert sum(sizes) == report.params and f"{sizes[0]:,} resampler" in str(report)


def test_training_computes_what_the_loaded_patch_will(model: PatchedModel) -> None:
    model.attach("favor", favor_config(model.host), trainable=True)
    awaken(model, "favor")
    trained, patch = logits(model), model.export("favor")
    model.remove_patch("favor")
    model.apply_patch(patch)
    assert torch.equal(logits(model), trained)
