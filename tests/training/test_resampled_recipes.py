"""Claims about recipes and files of patches with a resampler: training, cost, reports and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patched import QUESTIONS, READ, RESAMPLER, clips, favor_config, favors, logits
from pydantic import ValidationError
from small import awaken
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pave.cli.main import app
from pave.cli.profile import table
from pave.config import PatchConfig, ResamplerConfig
from pave.errors import PatchMismatch, RecipeError, SignalError
from pave.evaluation.cost import cost_of
from pave.features.stored import Stored
from pave.hub import catalogue
from pave.hub.card import card
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.packing.rows import IGNORE
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.sidechannel import SideTokens
from pave.training.dataset import TrainingClip, batch, training_clip
from pave.training.loss import scores
from pave.training.run import Run, train
from pave.training.trainee import training

# Files


def test_a_file_with_a_missing_or_wrong_part_of_its_resampler_is_refused(one: PatchedModel) -> None:
    favors(one)
    patch = one.export("favor")
    one.remove_patch("favor")
    lost = {name: tensor for name, tensor in patch.tensors.items() if name != "resampler.position"}
    with pytest.raises(PatchMismatch, match=r"resampler\.position is missing"):
        one.apply_patch(Patch(patch.config, lost))
    none = patch.config.model_copy(update={"resampler": None})
    with pytest.raises(PatchMismatch, match=r"fusion\.slow\..* is missing"):
        one.apply_patch(Patch(none, patch.tensors))
    longer = patch.config.model_copy(update={"resampler": ResamplerConfig.model_validate(RESAMPLER | {"queries": 4})})
    with pytest.raises(PatchMismatch, match=r"resampler\.queries\.4 is \(3, 16\), expected \(4, 16\)"):
        one.apply_patch(Patch(longer, patch.tensors))
    own = patch.config.model_dump()
    with pytest.raises(ValidationError, match=r"senses\.resampled: the name is reserved for resampler outputs"):
        PatchConfig.model_validate(own | {"senses": {"resampled": own["senses"]["fast"]}})
    blind = patch.config.model_dump() | {"senses": {}}
    with pytest.raises(ValidationError, match="a resampler needs at least one sense"):
        PatchConfig.model_validate(blind)
    assert not one.patches


def test_reports_include_the_resampler(one: PatchedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    place = catalogue.file_of("audio-playroom")
    patch = Patch.load(place)
    assert patch.save(tmp_path / "again.safetensors").read_bytes() == place.read_bytes()
    words = patch.config.model_copy(update={"resampler": ResamplerConfig()}).canonical()
    assert '"resampler":{' in words and "resampler" not in patch.config.canonical()


def test_reports_include_options_of_a_resampler_that_are_not_defaults() -> None:
    usual = "32 outputs of every 10 steps at 2 per second, width 512"
    assert str(ResamplerConfig()) == usual and str(ResamplerConfig(stride=10)) == usual
    other = ResamplerConfig(stride=5, queries=20, finer=(1, 5), causal_direction="future")
    assert str(other) == usual.replace("32", "20") + ", also of every 1 and 5 steps, stride 5, sees later steps"


def test_the_cost_needs_the_encoder(one: PatchedModel) -> None:
    favors(one)
    patch = one.export("favor")
    lost = {name: facts.model_copy(update={"encoder": "lost"}) for name, facts in patch.config.senses.items()}
    elsewhere = Patch(patch.config.model_copy(update={"senses": lost}), patch.tensors)
    with pytest.raises(SignalError, match=r"depends on the token rate of lost, .*; name its folder in PAVE_ENCODERS"):
        cost_of(one.host, elsewhere, side_steps=[8, 40])


# Training


def test_favor_av_has_the_published_values() -> None:
    """Of the paper (arXiv 2310.05863) and its inference code (BriansIDP/AudioVisualLLM at 52ab7d1: model/Qformer.py,
    openllama.py, inference.py); the warm-up is that of its successor's configurations. Rates and batch are ours."""
    recipe = catalogue.recipe("favor-av-prefix")
    resampler, lora = recipe.resampler, recipe.lora
    assert resampler is not None and lora is not None
    assert (resampler.layers, resampler.width, resampler.heads, resampler.dropout) == (2, 768, 12, 0.1)
    assert (resampler.rate, resampler.window, resampler.queries, resampler.diversity) == (2, 10, 32, 0.01)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (32, 32, 0.1)
    assert set(lora.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert 0.2 <= recipe.train.warmup <= 0.3
    assert recipe.fusion.combine == "prefix" and (recipe.train.keep, recipe.train.gate) == (0, False)


def test_favor_av_adds_to_the_visual_tokens_and_keeps_the_base() -> None:
    recipe, published = catalogue.recipe("favor-av"), catalogue.recipe("favor-av-prefix")
    assert recipe.fusion.combine == "add" and recipe.resampler and recipe.resampler.readout == "states"
    assert recipe.train.keep and recipe.train.gate
    assert (recipe.senses, recipe.lora, recipe.frames) == (published.senses, published.lora, published.frames)


@pytest.fixture
def favor(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The workshop's recipe with a second sense and a resampler."""

    def make(*overrides: str, output: str = "out", **resampler: Any) -> Recipe:
        words = json.dumps({**RESAMPLER, "slots": 3, **resampler})
        slow = "senses.slow={encoder: logmel, options: {bands: 8, rate: 2}}"
        return recipe(slow, f"resampler={words}", *overrides, output=output)

    return make


@pytest.mark.parametrize("way", ["residual", "states", "prefix"])
def test_training_moves_all_of_the_patch_and_its_file_can_be_used(favor: Callable[..., Recipe], way: str) -> None:
    resampler, fusion = READ[way]
    run = Run.begin(favor("train.steps=2", f"fusion={json.dumps({'width': 32, 'heads': 2} | fusion)}", **resampler))
    before = run.setup.model.export("ears").tensors
    run.fit(lambda step, steps, figures: None)
    patch = Patch.load(run.finish().patch)
    same = {name for name, tensor in patch.tensors.items() if torch.equal(tensor, before[name])}
    assert all("standard." in name or name.endswith("scale") for name in same), "what was measured, not learned"
    run.setup.model.remove_patch("ears")
    assert run.setup.model.apply_patch(patch).senses == {"audio": "logmel", "slow": "logmel"}


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(favor: Callable[..., Recipe]) -> None:
    whole = train(favor(dropout=0.1, output="whole")).patch.read_bytes()

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(favor(dropout=0.1), progress=stop)
    assert train(favor(dropout=0.1), resume=True).patch.read_bytes() == whole


def test_the_diversity_loss_is_that_of_all_windows_of_a_step_times_its_weight(favor: Callable[..., Recipe]) -> None:
    """Each window counts the same, however many its clip has."""
    run = Run.begin(favor(diversity=0.5))
    clips = run.dataset.train[:3]
    short = {key: side and side.only(side.times < 2) for key, side in clips[0].features.sides.items()}
    clips[0] = replace(clips[0], stored=Stored.of(replace(clips[0].features, sides=short)))
    inputs, _ = batch(run.setup.model, clips, run.setup.names)
    (use,) = inputs.uses
    with training(run.setup.model.applied.module("ears")):
        run.setup.model.forward(inputs)
    resampler: Any = use.attached.resampler
    rows = [dict(zip(use.sides, row, strict=True)) for row in zip(*use.sides.values(), strict=True)]
    want = 0.5 * torch.cat([resampler(row)[1] for row in rows]).mean()
    assert torch.allclose(use.attached.aux_losses["diversity"], want)
    assert [len(resampler(row)[1]) for row in rows] == [1, 2, 2]


@pytest.fixture
def mixed(recipe: Callable[..., Recipe]) -> Run:
    """Training of a patch with sound and dense pictures and non-zero weights, with a clip that has both, one without
    sound, one without dense pictures, and one with neither; their answers have several lengths."""
    fast = "senses.fast={encoder: base-tower, options: {rate: 2, grid: [1, 1]}}"
    run = Run.begin(recipe(fast, f"resampler={json.dumps({**RESAMPLER, 'slots': 3})}"))
    audio, pictures = (encoder.spec.preprocessing for encoder in run.setup.senses.values())
    clips = run.dataset.train[:4]
    for i, lacks in enumerate([(), (audio,), (pictures,), (audio, pictures)]):
        examples = tuple(replace(each, answer="a beep and a bell"[: 4 + 5 * i]) for each in clips[i].examples)
        clips[i] = training_clip(
            run.setup.model.host, Stored.of(with_sides(clips[i].features, dict.fromkeys(lacks))), examples
        )
    run.dataset.train[:] = clips
    awaken(run.setup.model, "ears")
    return run


def with_sides(features: ClipFeatures, sides: Mapping[str, SideTokens | None]) -> ClipFeatures:
    return replace(features, sides={**features.sides, **sides})


def learned(run: Run, clips: Sequence[TrainingClip]) -> tuple[int, Tensor, list[Tensor]]:
    """Number of label tokens in a step of these clips, the loss, and the gradients of the whole patch."""
    with training(run.setup.model.applied.module("ears")):
        found, wanted = scores(run.setup.model, *batch(run.setup.model, clips, run.setup.names))
        loss = F.cross_entropy(found.float(), wanted)
        weights = [each for part in run.trainee.parameters.values() for each in part.values()]
        pulls = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None] * len(weights)
    zipped = zip(pulls, weights, strict=True)
    return len(wanted), loss, [torch.zeros_like(weight) if each is None else each for each, weight in zipped]


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 2], [1, 3]], [[3, 0, 1], [2]]])
def test_a_step_of_clips_that_lack_senses_is_the_mean_of_its_parts_by_learned_ids(mixed: Run, parts) -> None:
    count, loss, gradients = learned(mixed, mixed.dataset.train)
    counts, losses, pulls = zip(
        *(learned(mixed, [mixed.dataset.train[i] for i in part]) for part in parts), strict=True
    )
    assert sum(counts) == count and len(set(counts)) > 1
    shares, strongest = torch.tensor(counts) / count, max(each.abs().max().item() for each in gradients)
    assert torch.allclose(loss, (shares * torch.stack(losses)).sum(), rtol=1e-5)
    for whole, *each in zip(gradients, *pulls, strict=True):
        want = torch.tensordot(shares, torch.stack(each), 1)
        assert torch.allclose(whole, want, rtol=1e-3, atol=1e-5 * strongest)
    assert all(each.any() for each in gradients), "all of the patch is pulled at"


def test_a_clip_learns_nothing_from_a_sense_that_it_lacks(mixed: Run) -> None:
    """Its scores do not depend on the senses of other clips in the step, and with neither sense they are the base's."""
    audio, pictures = (encoder.spec.preprocessing for encoder in mixed.setup.senses.values())
    both, soundless, sightless, neither = mixed.dataset.train

    def logits(*clips: TrainingClip, patches: Sequence[str] | None = None) -> list[Tensor]:
        with torch.no_grad():
            inputs, labels = batch(mixed.setup.model, clips, mixed.setup.names if patches is None else patches)
            found, _ = scores(mixed.setup.model, inputs, labels)
        return list(found.split([int((row[1:] != IGNORE).sum()) for row in labels]))

    before = logits(both, soundless, sightless, neither)
    for key in (audio, pictures):
        side = both.features.sides[key]
        assert side is not None
        moved = with_sides(both.features, {key: replace(side, x=side.x.flip(0) + 1)})
        other = replace(both, stored=Stored.of(moved))
        after = logits(other, soundless, sightless, neither)
        assert not torch.equal(after[0], before[0])
        assert all(map(torch.equal, after[1:], before[1:]))
    assert torch.equal(logits(both, soundless, sightless, neither, patches=())[3], before[3])


def test_each_part_learns_at_its_own_rate(favor: Callable[..., Recipe]) -> None:
    """Adam's first step moves a weight by the rate, whatever its gradient."""
    rates = {"resampler": 1e-2, "fusion": 1e-3, "lora": 1e-4}
    run = Run.begin(favor("train.warmup=0", *(f"train.{part}_lr={rate}" for part, rate in rates.items())))
    awaken(run.setup.model, "ears")
    before = {
        part: [each.detach().clone() for each in parts.values()] for part, parts in run.trainee.parameters.items()
    }
    run.step(0)
    for part, rate in rates.items():
        moved = [
            (new - old).abs().max()
            for new, old in zip(run.trainee.parameters[part].values(), before[part], strict=True)
        ]
        assert max(moved).item() == pytest.approx(rate, rel=0.01)


def test_the_diversity_loss_acts_and_weight_zero_adds_none(favor: Callable[..., Recipe]) -> None:
    alike = {}
    for weight in (0.0, 10.0):
        run = Run.begin(favor("train.steps=6", "train.batch=1", diversity=weight, output=f"out{weight}"))
        reported: list[dict[str, float]] = []
        run.fit(lambda step, steps, figures, reported=reported: reported.append(figures))
        assert [set(each) for each in reported] == [
            {"loss", "rate", "seconds", "waited"} | ({"diversity"} if weight else set())
        ] * 6
        row = {
            sense: sides[0]
            for sense, sides in batch(run.setup.model, run.dataset.train[:1], run.setup.names)[0].uses[0].sides.items()
        }
        resampler: Any = run.trainee.attached.resampler
        alike[weight] = resampler(row)[1].mean().item()
    assert alike[10.0] < alike[0.0] - 0.1


def test_the_senses_are_calibrated_before_training(favor: Callable[..., Recipe]) -> None:
    run = Run.begin(favor())
    attached: Any = run.trainee.attached
    sides = [clip.features.sides[run.setup.senses["audio"].spec.preprocessing] for clip in run.dataset.train]
    heard = torch.cat([side.x.flatten(0, 2) for side in sides if side is not None])
    assert torch.allclose(attached.resampler.standard["audio"].mean, heard.double().mean(0).float(), atol=1e-5)
    assert attached.fusion["resampled"].scale != 1


# Cost


@pytest.mark.parametrize("way", READ)
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


# Errors


def write_recipe(folder: Path, **resampler: str) -> Path:
    fields = {"name": "favor", "senses": {"audio": {"encoder": "logmel"}}, "resampler": resampler}
    (folder / "patch.yaml").write_text(json.dumps(fields | {"data": {"playroom": {"clips": 8}}}))
    return folder / "patch.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resampler={preset: papre}", "did you mean 'paper'"),
        ("resampler=defalt", "did you mean 'default'"),
        ("resampler={querys: 3}", "did you mean 'queries'"),
        ("resampler={width: 30, heads: 4}", "width=30 is not a multiple of heads=4"),
        ("resampler={window: 4, stride: 5}", "stride=5 skips steps between windows of 4"),
        ("resampler={finer: [3]}", "windows of 3 steps do not divide one of 10 steps with 32 queries"),
        ("resampler={finer: [5, 5]}", "has a duplicate length"),
        ("resampler={queries: 1}", "use diversity: 0"),
        ("resampler={readout: states, causal_direction: none}", "needs causal_direction: past, got none"),
        ("resampler={readout: states, finer: [5]}", "readout: states outputs the steps themselves and has no finer"),
        ("senses.audio.align=index", "senses.audio: a resampler does not support align: index"),
        ("fusion={rope: 3d}", "fusion.rope: 3d needs square grids, which a resampler does not output"),
        ("fusion={combine: prefix}", "resampler.readout: states needs fusion.combine: add, got prefix"),
    ],
)
def test_a_wrong_resampler_is_refused_with_key_value_and_remedy(tmp_path: Path, override: str, message: str) -> None:
    path = write_recipe(tmp_path, readout="states")
    with pytest.raises(RecipeError) as refused:
        read_recipe(path, [override])
    assert message in str(refused.value)


def test_a_preset_is_resolved_in_the_patch_and_can_be_changed(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, preset="tiny")
    tiny = ResamplerConfig(queries=16, width=256, heads=4)
    assert read_recipe(path).resampler == read_recipe(path, ["resampler=tiny"]).resampler == tiny
    assert read_recipe(path, ["resampler.queries=8"]).resampler == tiny.model_copy(update={"queries": 8})
    assert read_recipe(path, ["resampler=null"]).resampler is None
    states = read_recipe(path, ["resampler.readout=states"]).resampler
    assert states and (states.width, states.readout) == (256, "states")
