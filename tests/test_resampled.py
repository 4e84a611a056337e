"""Claims about patches with a resampler inside a model: the laws of DESIGN.md for what reads several senses at once,
each beside its opposite; their training, their files, their cost, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FRAMES, awaken, make_clip, make_config
from patched import QUESTIONS, WAYS, alike, clips, logits, portrait
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pave import catalogue
from pave.base import Base
from pave.card import card
from pave.cli import app
from pave.config import FusionConfig, PatchConfig, ResamplerConfig, SenseFacts
from pave.cost import cost_of, table
from pave.encoder import load_encoder
from pave.errors import PatchMismatch, RecipeError
from pave.inputs import ClipFeatures, Inputs, beside
from pave.model import PatchedModel
from pave.patch import Patch
from pave.recipe import Recipe, read_recipe
from pave.train import Run, train

SMALL: dict[str, Any] = {"slots": 5, "window": 4, "queries": 3, "width": 16, "heads": 2}
READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # resampler, fusion
    "residual": ({}, {}),
    "official": ({}, {"kind": "official"}),
    "finer": ({"queries": 4, "finer": (1, 2)}, {}),
    "overlapping": ({"stride": 2}, {}),
    "states": ({"readout": "states", "queries": 32}, {}),
    "prefix": ({}, {"combine": "prefix"}),
    "interleave": ({}, {"combine": "interleave"}),
}
ADDS = ("residual", "official", "finer", "overlapping", "states")
every_way = pytest.mark.parametrize("way", READ)
every_addition = pytest.mark.parametrize("way", ADDS)


def sense(**options: Any) -> SenseFacts:
    return load_encoder("logmel", **options).spec.facts("time")


def favor_config(base: Base, way: str = "residual", name: str = "favor", **changes: Any) -> PatchConfig:
    """Two senses, 10 and 2 tokens per second, put on one clock of 2 steps per second: 4 steps, or 2 s, to a window."""
    resampler, fusion = READ[way]
    fields = {
        "senses": {"slow": sense(bands=8, rate=2), "fast": sense(bands=16, rate=10)},
        "resampler": ResamplerConfig.model_validate(SMALL | resampler),
        "fusion": FusionConfig.model_validate({"width": 32, "heads": 2} | fusion),
    }
    return make_config(base, name, **(fields | changes))


def favors(model: PatchedModel, way: str = "residual", name: str = "favor", **changes: Any) -> None:
    """Apply a patch whose weights act."""
    model.attach(name, favor_config(model.host, way, name, **changes), trainable=False)
    awaken(model, name)


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
    bare = one.visual_ids(seen, [])
    favors(one, way)
    ids = one.visual_ids(seen, None)
    assert [len(row) - len(before) for row, before in zip(ids, bare, strict=True)] == [more, more // 2]
    assert logits(one).shape[1] == logits(one, patches=[]).shape[1] + more


def test_interleaved_windows_stand_before_their_own_key_frames(one: PatchedModel) -> None:
    """Key frames at 0, 1, 2 and 3 s, windows from 0 and from 2 s."""
    favors(one, "interleave")
    (groups,) = beside(one.prepare(clips()[:1], QUESTIONS[:1]).uses, 1)
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
    fast = one._found("favor")[0].config.senses["fast"]
    (both,) = one.encode(clips()[:1])
    (other,) = one.encode(clips()[1:])
    borrowed = replace(both, sides=dict(both.sides) | {fast.preprocessing: other.sides[fast.preprocessing]})
    whole, part = fused(one, both)[0], fused(one, without(both, fast))[0]
    assert not torch.equal(whole, part) and not torch.equal(part, both.tokens)
    assert not torch.equal(fused(one, borrowed)[0], whole), "the other sense is heard where it is there"
    assert torch.equal(fused(one, without(borrowed, fast))[0], part), "and nowhere else"


# Law 6


@every_addition
def test_what_is_added_to_a_row_does_not_hang_on_its_batch(one: PatchedModel, way: str) -> None:
    """Clips of other lengths, with both senses, one or none."""
    favors(one, way)
    slow, fast = one._found("favor")[0].config.senses.values()
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
    """The file sorts the senses, so their order in a recipe must not count."""
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


def test_a_file_that_lacks_part_of_its_resampler_or_has_another_is_refused(one: PatchedModel) -> None:
    favors(one)
    patch = one.export("favor")
    one.remove_patch("favor")
    lost = {name: tensor for name, tensor in patch.tensors.items() if name != "resampler.position"}
    with pytest.raises(PatchMismatch, match=r"resampler\.position is missing"):
        one.apply_patch(Patch(patch.config, lost))
    none = patch.config.model_copy(update={"resampler": None})
    with pytest.raises(PatchMismatch, match=r"fusion\.slow\..* is missing"):
        one.apply_patch(Patch(none, patch.tensors))
    longer = patch.config.model_copy(update={"resampler": ResamplerConfig.model_validate(SMALL | {"queries": 4})})
    with pytest.raises(PatchMismatch, match=r"resampler\.queries\.4 is \(3, 16\), expected \(4, 16\)"):
        one.apply_patch(Patch(longer, patch.tensors))
    blind = patch.config.model_dump() | {"senses": {}}
    with pytest.raises(ValidationError, match="a resampler needs a sense to read"):
        PatchConfig.model_validate(blind)
    assert not one.patches


def test_people_are_told_of_the_resampler(
    one: PatchedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    favors(one)
    patch = one.export("favor")
    app(["patch", "info", str(patch.save(tmp_path / "favor.safetensors"))], standalone_mode=False)
    assert "3 outputs of every 4 steps at 2 per second, width 16" in capsys.readouterr().out
    assert f"| resampler | {patch.config.resampler} |" in card(patch, "somebody/favor")


def test_a_small_copy_of_the_file_still_acts(one: PatchedModel, tmp_path: Path) -> None:
    favors(one)
    patch = one.export("favor")
    one.remove_patch("favor")
    one.apply_patch(patch.shrink(8).save(tmp_path / "small.safetensors"))
    assert one.patches["favor"].bytes < 0.7 * patch.nbytes
    assert not torch.equal(logits(one), logits(one, patches=[]))


def test_patches_without_a_resampler_are_written_as_before(tmp_path: Path) -> None:
    place = catalogue.locate("audio-playroom")
    patch = Patch.load(place)
    assert patch.save(tmp_path / "again.safetensors").read_bytes() == place.read_bytes()
    words = patch.config.model_copy(update={"resampler": ResamplerConfig()}).canonical()
    assert '"resampler":{' in words and "resampler" not in patch.config.canonical()


# Training


@pytest.fixture
def favor(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The workshop's recipe with a second sense and a resampler."""

    def make(*overrides: str, output: str = "out", **resampler: Any) -> Recipe:
        words = json.dumps({**SMALL, "slots": 3, **resampler})
        slow = "senses.slow={encoder: logmel, options: {bands: 8, rate: 2}}"
        return recipe(slow, f"resampler={words}", *overrides, output=output)

    return make


@pytest.mark.parametrize("way", ["residual", "states", "prefix"])
def test_training_moves_all_of_the_patch_and_its_file_can_be_used(favor: Callable[..., Recipe], way: str) -> None:
    resampler, fusion = READ[way]
    run = Run(favor("train.steps=2", f"fusion={json.dumps({'width': 32, 'heads': 2} | fusion)}", **resampler))
    run.prepare()
    before = run.model.export("ears").tensors
    run.fit(lambda step, steps, figures: None)
    patch = Patch.load(run.finish().patch)
    same = {name for name, tensor in patch.tensors.items() if torch.equal(tensor, before[name])}
    assert all("standard." in name or name.endswith("scale") for name in same), "what was measured, not learned"
    run.model.remove_patch("ears")
    assert run.model.apply_patch(patch).senses == {"audio": "logmel", "slow": "logmel"}


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(favor: Callable[..., Recipe]) -> None:
    whole = train(favor(dropout=0.1, output="whole")).patch.read_bytes()

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(favor(dropout=0.1), progress=stop)
    assert train(favor(dropout=0.1), resume=True).patch.read_bytes() == whole


def test_the_diversity_loss_is_that_of_all_windows_of_a_step_times_its_weight(favor: Callable[..., Recipe]) -> None:
    run = Run(favor(diversity=0.5))
    run.prepare()
    clips = run.train_clips[:3]
    inputs, _ = run.batch(clips, run.names)
    (use,) = inputs.uses
    with run.model.training("ears"):
        run.model.forward(inputs)
    resampler: Any = use.attached.resampler
    rows = [dict(zip(use.sides, row, strict=True)) for row in zip(*use.sides.values(), strict=True)]
    want = 0.5 * torch.cat([resampler(row)[1] for row in rows]).mean()
    assert torch.allclose(use.attached.aux_losses["diversity"], want)


def test_the_diversity_loss_is_learned_from_and_none_is_none(favor: Callable[..., Recipe]) -> None:
    alike = {}
    for weight in (0.0, 10.0):
        run = Run(favor("train.steps=6", "train.batch=1", diversity=weight, output=f"out{weight}"))
        run.prepare()
        told: list[dict[str, float]] = []
        run.fit(lambda step, steps, figures, told=told: told.append(figures))
        assert [set(each) for each in told] == [{"loss", "rate"} | ({"diversity"} if weight else set())] * 6
        row = {sense: sides[0] for sense, sides in run.batch(run.train_clips[:1], run.names)[0].uses[0].sides.items()}
        resampler: Any = run.attached.resampler
        alike[weight] = resampler(row)[1].mean().item()
    assert alike[10.0] < alike[0.0] - 0.1


def test_the_senses_are_measured_before_training(favor: Callable[..., Recipe]) -> None:
    run = Run(favor())
    run.prepare()
    attached: Any = run.attached
    sides = [clip.features.sides[run.senses["audio"].spec.preprocessing] for clip in run.train_clips]
    heard = torch.cat([side.x.flatten(0, 2) for side in sides if side is not None])
    assert torch.allclose(attached.resampler.standard["audio"].mean, heard.double().mean(0).float(), atol=1e-5)
    assert attached.fusion["resampled"].scale != 1


# Cost


@every_way
def test_a_resampler_costs_what_torch_counts(one: PatchedModel, way: str) -> None:
    config = favor_config(one.host, way)
    one.attach("favor", config, trainable=False)
    (seen,) = one.encode(clips()[:1])
    (use,) = one.prepare([seen], QUESTIONS[:1]).uses
    row = {sense: sides[0] for sense, sides in use.sides.items()}
    resampler: Any = use.attached.resampler
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        side, _ = resampler(row)
    steps = [side.x.shape[1] for side in row.values() if side is not None]
    cost = cost_of(one.host, one.export("favor"), side_steps=steps)
    assert cost.honest.resampler == counter.get_total_flops() and cost.side == {"slow": (8, 1, 1), "fast": (40, 1, 1)}
    assert cost.beside == (side.x[0, :, :, 0, 0].numel() if config.fusion.combine != "add" else 0)
    report = one.patches["favor"]
    assert (cost.resampler_params, cost.params) == (report.resampler_params, report.params)
    assert cost.file_bytes == one.export("favor").file_bytes and f"{cost.resampler_params:,}" in table(cost)


# What is refused


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("resampler={preset: papre}", "did you mean 'paper'"),
        ("resampler={querys: 3}", "did you mean 'queries'"),
        ("resampler={width: 30, heads: 4}", "width=30 is not a multiple of heads=4"),
        ("resampler={window: 4, stride: 5}", "stride=5 leaves steps out between windows of 4"),
        ("resampler={finer: [3]}", "3 steps do not divide a window of 10 with 32 queries"),
        ("resampler={finer: [5, 5]}", "names a length twice"),
        ("resampler={queries: 1}", "use diversity: 0"),
        ("resampler={readout: states, causal_direction: none}", "is for causal_direction: past, got none"),
        ("resampler={readout: states, finer: [5]}", "readout: states has no finer"),
        ("senses.audio.align=index", "senses.audio: a resampler knows no align: index"),
        ("fusion={rope: 3d}", "fusion.rope: 3d needs square grids, which no resampler gives"),
        ("fusion={combine: prefix}", "resampler.readout: states is for combine: add, got prefix"),
    ],
)
def test_a_wrong_resampler_is_refused_by_key_value_and_remedy(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "patch.yaml"
    fields = {"name": "favor", "senses": {"audio": {"encoder": "logmel"}}, "resampler": {"readout": "states"}}
    path.write_text(json.dumps(fields | {"data": {"playroom": {"clips": 8}}}))
    with pytest.raises(RecipeError) as refused:
        read_recipe(path, [override])
    assert said in str(refused.value)


def test_a_preset_is_resolved_in_the_patch_and_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "patch.yaml"
    fields = {"name": "favor", "senses": {"audio": {"encoder": "logmel"}}, "resampler": {"preset": "tiny"}}
    path.write_text(json.dumps(fields | {"data": {"playroom": {"clips": 8}}}))
    tiny = ResamplerConfig(queries=16, width=256, heads=4)
    assert read_recipe(path).resampler == tiny
    assert read_recipe(path, ["resampler.queries=8"]).resampler == tiny.model_copy(update={"queries": 8})
    assert read_recipe(path, ["resampler=null"]).resampler is None
    states = read_recipe(path, ["resampler.readout=states"]).resampler
    assert states and (states.width, states.readout) == (256, "states")
