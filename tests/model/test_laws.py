"""The laws of DESIGN.md, each beside its opposite.

Tested in float32 and bfloat16, through forward and through generate (greedy, beams).
"""

import dataclasses
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import torch
from families import FRAMES, make_base
from patched import QUESTIONS, WAYS, alike, clips, hears, hooked, logits, other_ears, portrait
from small import awaken, make_clip, make_config
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.config import FusionConfig, LoraConfig, SenseFacts
from pave.errors import PatchError, PatchMismatch, PatchNotFound, RecipeError, SignalError
from pave.media.clip import Clip
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.training.trainee import checkpoint_activations, trainable


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[PatchedModel, Inputs], Tensor]:
    return WAYS[request.param]


# Law 1


@pytest.mark.parametrize(
    "fusion",
    [
        FusionConfig(width=32, heads=2),
        FusionConfig(kind="official", width=32, heads=2),
        FusionConfig(kind="official", width=32, heads=2, precision="float32"),
    ],
)
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


def test_a_fusion_in_float32_adds_in_float32(model: PatchedModel) -> None:
    """As in the official evaluation: fusion in float32 on a base in half precision, and their sum rounded once."""
    hears(model, fusion=FusionConfig(kind="official", width=32, heads=2, precision="float32"), lora=None)
    inputs = model.prepare(clips(), QUESTIONS)
    (use,) = inputs.uses
    for row, fused, side in zip(inputs.visual.rows(), model.fused_tokens(inputs), use.sides["audio"], strict=True):
        update = use.attached.fusing("audio")(row.vision, row.tokens.float(), side)
        assert update.dtype == torch.float32
        assert torch.equal(fused, (row.tokens[0].float() + update[0]).to(model.host.dtype))
    saved = model.export("ears")
    model.remove_patch("ears")
    model.apply_patch(saved)
    assert alike(model.fused_tokens(model.prepare(clips(), QUESTIONS)), model.fused_tokens(inputs))


# Law 2


def test_applied_and_removed_leaves_no_trace(
    model: PatchedModel, run: Callable[[PatchedModel, Inputs], Tensor]
) -> None:
    reference = run(model, model.prepare(clips(), QUESTIONS))
    before, seeds = portrait(model), torch.random.get_rng_state()
    model.attach("ears", make_config(model.host), make_tensors(model), trainable=False)
    assert torch.equal(torch.random.get_rng_state(), seeds), "a loaded patch draws no random numbers"
    patched = run(model, model.prepare(clips(), QUESTIONS))
    assert patched.shape != reference.shape or not torch.equal(patched, reference)
    assert not alike(before, portrait(model)), "the portrait includes hooks"
    assert list(model.base_state_dict()) == list(before["state"])
    model.remove_patch("ears")
    assert alike(before, portrait(model))
    assert torch.equal(reference, run(model, model.prepare(clips(), QUESTIONS)))


def make_tensors(model: PatchedModel) -> dict[str, Tensor]:
    """Tensors of a patch that changes answers, from another model."""
    other = PatchedModel(model.host)
    with torch.random.fork_rng(devices=[]):
        other.attach("ears", make_config(model.host))
    awaken(other, "ears")
    tensors = dict(other.export("ears").tensors)
    other.remove_patch("ears")
    return tensors


def test_two_hundred_random_changes_leave_no_trace(one: PatchedModel) -> None:
    """Apply, swap, change the weight, enable, disable and remove in any order, with questions between them."""
    reference = logits(one)
    patches = [other_ears(one), other_ears(one, lora=LoraConfig(r=2, lora_alpha=3)), other_ears(one, lora=None)]
    before, rng, bare, outcomes = portrait(one), Random(0), 0, set()

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
        outcomes.add(torch.equal(answer, reference))
        if not one.patches:
            bare += 1
            assert torch.equal(answer, reference) and alike(before, portrait(one))
    for name in list(one.patches):
        one.remove_patch(name)
    assert bare > 20 and outcomes == {True, False} and alike(before, portrait(one))


def test_memory_returns(one: PatchedModel) -> None:
    hears(one)
    one.ask(clips()[0], QUESTIONS[0])
    weights = {id(parameter) for parameter in one.applied.found("ears")[0].parameters()}
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
    """Recomputation runs after the call has ended, and for two calls with different rows."""
    attached = one.attach("ears", make_config(one.host))
    awaken(one, "ears")
    calls = [one.prepare(clips(), QUESTIONS, patches=rows) for rows in (["ears"], [["ears"], []])]
    gradients, counted = [], []
    layer = one.host.language_model.get_submodule("layers.0.mlp")
    for enable in (False, True):
        checkpoint_activations(one, enable)
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
    checkpoint_activations(one, False)
    assert not one.base.training and not any(module.training for module in one.base.modules())


def test_training_computes_what_the_loaded_patch_will(model: PatchedModel) -> None:
    model.attach("ears", make_config(model.host), trainable=True)
    awaken(model, "ears")
    assert {p.dtype for part in trainable(model.applied.module("ears")).values() for p in part.values()} == {
        torch.float32
    }
    trained, patch = logits(model), model.export("ears")
    model.remove_patch("ears")
    model.apply_patch(patch)
    assert {p.dtype for p in model.applied.found("ears")[0].parameters()} == {model.host.dtype}
    assert torch.equal(logits(model), trained)


# Law 4


def test_a_key_frame_reads_its_own_segment_only(model: PatchedModel) -> None:
    hears(model)
    clip = make_clip(0)
    assert clip.audio is not None and clip.times is not None and clip.rate is not None
    before = model.fused_tokens(model.prepare([clip], QUESTIONS[:1]))[0]
    for frame, moment in enumerate(clip.times.tolist()):
        sound = clip.audio.clone()
        sound[:, max(0, round((moment - 0.1) * clip.rate)) : round((moment + 0.1) * clip.rate)] = 0
        other = dataclasses.replace(clip, audio=sound)
        after = model.fused_tokens(model.prepare([other], QUESTIONS[:1]))[0]
        changed = [not torch.equal(one, two) for one, two in zip(before, after, strict=True)]
        assert changed == [i == frame for i in range(len(changed))]
        assert not torch.equal(logits(model), model.forward(model.prepare([other, make_clip(1)], QUESTIONS)).logits)


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
    assert alike(one.fused_tokens(inputs), list(inputs.visual.tokens)), "fusion is still skipped"


def test_a_partly_present_row_runs_with_the_missing_sense_masked(one: PatchedModel) -> None:
    """A patch with two senses, and a clip that has one of them."""
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
    tokens = [one.fused_tokens(each)[0] for each in (both, part, none)]
    assert torch.equal(tokens[2], features[0].tokens)
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


@pytest.mark.parametrize("kind", ["folded", "official"])
def test_the_update_of_a_row_does_not_depend_on_its_batch(
    one: PatchedModel, kind: Literal["folded", "official"]
) -> None:
    shape = FusionConfig(kind=kind, width=64, heads=4)
    for seed, name in enumerate(("ears", "more")):
        one.attach(name, make_config(one.host, fusion=shape))
        awaken(one, name, seed=seed)
    long, short, mute = make_clip(0), make_clip(1, FRAMES - 1), make_clip(2, sound=False)
    seen = one.encode([long, short, mute])
    ways = [[["ears"], ["ears", "more"], ["more"]], [["ears"]] * 3, [["more"], ["ears", "more"], []]]
    batches = [one.fused_tokens(one.prepare(seen, QUESTIONS[:1] * 3, patches=way)) for way in ways]
    alone = [
        one.fused_tokens(one.prepare([clip], QUESTIONS[:1], patches=names))[0]
        for clip, names in zip(seen, ways[0], strict=True)
    ]
    assert alike(batches[0], alone)
    assert torch.equal(batches[1][0], alone[0]) and torch.equal(batches[2][1], alone[1])
    assert torch.equal(batches[1][2], seen[2].tokens) and not torch.equal(batches[1][1], alone[1])


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


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_rows_with_different_patches_generate_what_they_would_alone(one: PatchedModel, options: dict[str, int]) -> None:
    hears(one)
    hears(one, "more", lora=LoraConfig(r=2, lora_alpha=3))
    awaken(one, "more", seed=7)
    many = [make_clip(0), make_clip(1, frames=2), make_clip(2, frames=3), make_clip(3, sound=False)]
    questions, sets = ["Well?", *QUESTIONS, "And?"], [["ears"], [], ["more", "ears"], ["more"]]
    returned, rows = options.get("num_return_sequences", 1), []
    inputs = one.prepare(many, questions, patches=sets)
    together = one.generate(inputs, max_new_tokens=6, do_sample=False, **options)[:, inputs.input_ids.shape[1] :]
    for i, (clip, question, names) in enumerate(zip(many, questions, sets, strict=True)):
        single = one.prepare([clip], [question], patches=names)
        alone = one.generate(single, max_new_tokens=6, do_sample=False, **options)[:, single.input_ids.shape[1] :]
        assert torch.equal(together[i * returned : (i + 1) * returned, : alone.shape[1]], alone)
        rows.append(alone[0].tolist())
    with pytest.raises(PatchNotFound, match="no patch of this name is applied"):
        one.prepare(many, questions, patches=[["ears"], [], ["moer"], []])
    assert len({str(each) for each in rows}) > 1


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
    with pytest.raises(
        PatchMismatch, match=rf"{stranger.host.fingerprint()[:12]}.*load the base it was made for; or pass strict"
    ):
        one.apply_patch(patch)
    assert not one.patches
    report = one.apply_patch(patch, strict=False)
    assert "other weights" in report.base_match
    facts = patch.config.base.model_copy(update={"dim": 65})
    with pytest.raises(PatchMismatch, match="dim=65"):
        one.apply_patch(Patch(patch.config.model_copy(update={"base": facts}), patch.tensors), name="b", strict=False)
    facts = patch.config.base.model_copy(update={"model_type": "qwen2_vl", "repo": "a/b", "fingerprint": ""})
    with pytest.raises(
        PatchMismatch, match=r"for a/b with model_type=qwen2_vl, this base has llava_onevision; load a/b"
    ):
        one.apply_patch(Patch(patch.config.model_copy(update={"base": facts}), patch.tensors), name="b", strict=False)


def test_what_cannot_fit_is_refused_before_the_base_is_hashed(
    one: PatchedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    hears(one)
    patch = one.export("ears")
    shallow: Any = PatchedModel(make_base(tokenizer))
    shallow.host.language_model.layers = shallow.host.language_model.layers[:1]
    assert patch.config.lora is not None
    paths = tuple(name[5:-2] for name in patch.tensors if name.startswith("lora.") and name.endswith(".A"))
    for words, message in (
        (patch.config.lora.target_modules, r"its LoRA does not fit this base: lora\.layers\.1\..* is unexpected"),
        (paths, r"does not fit this base: lora\.target_modules: no layer matches layers\.1\..* and 4 more; "),
    ):
        lora = patch.config.lora.model_copy(update={"target_modules": words})
        made = patch.config.base.model_copy(update={"repo": "a/b"})
        config = patch.config.model_copy(update={"lora": lora, "base": made})
        for strict in (True, False):
            with pytest.raises(PatchMismatch, match=rf"^deep: {message}.*; load a/b and apply it there$"):
                shallow.apply_patch(Patch(config, patch.tensors, source="deep"), strict=strict)
    made = patch.config.base.model_copy(update={"dim": 65})
    with pytest.raises(PatchMismatch, match="dim=65"):
        shallow.apply_patch(Patch(patch.config.model_copy(update={"base": made}), patch.tensors))
    made = patch.config.base.model_copy(update={"fingerprint": ""})
    fresh = PatchedModel(make_base(tokenizer))
    fresh.apply_patch(Patch(patch.config.model_copy(update={"base": made}), patch.tensors))
    assert shallow.host.weights.known is None and fresh.host.weights.known is None
    with pytest.raises(RecipeError, match="no layer matches nose"):
        one.attach("nose", make_config(one.host, lora=LoraConfig(target_modules=("nose",))))


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
