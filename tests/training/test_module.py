"""A patch as a module for other people's loops: its names, gradients, parallel training, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from forked import begin
from patched import QUESTIONS, favor_config
from small import awaken, make_clip, make_config

import pave
from pave.errors import PatchNotFound, UsageError
from pave.model.patched import PatchedModel
from pave.training.gate import fitted
from pave.training.module import PatchModule

ANSWERS = ("a beep", "nothing")
MUTE = [make_clip(0, sound=False), make_clip(1, sound=False)]


@pytest.fixture
def module(one: PatchedModel) -> PatchModule:
    one.attach("ears", make_config(one.host))
    awaken(one, "ears")
    return pave.patch_module(one, "ears")


def zero(module: PatchModule) -> dict[str, bool]:
    """By part of the patch: whether its gradients, which all exist, are zero."""
    parts: dict[str, bool] = {}
    for name, each in module.named_parameters():
        assert each.grad is not None, name
        part = ".".join(name.split(".")[:2]) if name.startswith("fusion") else name.split(".")[0]
        parts[part] = parts.get(part, True) and not each.grad.any()
    return parts


def test_parameters_and_names_are_those_of_the_patch_file(one: PatchedModel, module: PatchModule) -> None:
    assert module.state_dict().keys() == one.export("ears").tensors.keys()
    assert [id(each) for each in module.parameters()] == [id(each) for each in one.attached()[0].parameters()]
    assert not {id(each) for each in module.parameters()} & {id(each) for each in one.base.parameters()}


def test_a_plain_loop_learns_and_the_export_is_what_was_learned(one: PatchedModel) -> None:
    one.attach("ears", make_config(one.host))
    module, clips = pave.patch_module(one, "ears"), one.encode([make_clip(0), make_clip(1)])
    with torch.device("meta"), torch.inference_mode():  # neither has an effect
        module.calibrate(clips)
        inputs, labels = module.batch(clips, QUESTIONS, ANSWERS)
    optimiser, losses = torch.optim.AdamW(module.parameters(), lr=1e-2), []
    scaler = torch.amp.GradScaler("cpu")
    module.train()
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16):  # has no effect
            loss = module(inputs, labels).loss
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    module.eval()
    assert losses[-1] < losses[0] / 2 and not any(each.training for each in one.base.modules())
    with torch.no_grad():
        after = module(inputs, labels).loss
        patch = one.export("ears")
        one.remove_patch("ears")
        one.apply_patch(patch)
        again = one.prepare(clips, QUESTIONS)
        assert torch.equal(
            one.forward(inputs.__class__(**{**vars(inputs), "uses": again.uses}), labels=labels).loss, after
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_without_the_sense_has_zero_gradients_and_the_base_s_bits(
    one: PatchedModel, module: PatchModule, checkpointing: bool
) -> None:
    if checkpointing:
        module.gradient_checkpointing_enable()
    for clips, silent in ((MUTE, True), ([make_clip(0), MUTE[1]], False)):
        inputs, labels = module.batch(clips, QUESTIONS, ANSWERS)
        with one.patches_off():
            bare = one.forward(inputs, labels=labels)
        outputs = module(inputs, labels)
        assert torch.equal(outputs.logits[1], bare.logits[1]) and torch.equal(outputs.loss, bare.loss) == silent
        for loss in (outputs.loss, outputs.logits.float().square().mean()):
            module.zero_grad()
            loss.backward(retain_graph=True)
            assert set(zero(module).values()) == {silent}
        module.zero_grad()
        one.forward(inputs, labels=labels).loss.backward()
        assert set(zero(module).values()) == {silent}
    module.gradient_checkpointing_disable()
    with torch.no_grad():
        assert not module(*module.batch(MUTE, QUESTIONS, ANSWERS)).loss.requires_grad


def test_a_sense_that_no_row_has_gets_zero_gradients_beside_another(one: PatchedModel) -> None:
    config = make_config(one.host)
    other = one.encoder(config.senses["audio"].model_copy(update={"options": {"bands": 16, "rate": 10}})).spec
    one.attach("both", config.model_copy(update={"senses": {**config.senses, "fast": other.facts("time")}}))
    awaken(one, "both")
    module, (clip,) = pave.patch_module(one, "both"), one.encode([make_clip(0)])
    clip.sides[other.preprocessing] = None  # type: ignore[index]
    module(*module.batch([clip], QUESTIONS[:1], ANSWERS[:1])).loss.backward()
    assert zero(module) == {"fusion.audio": False, "fusion.fast": True, "lora": False}


def test_auxiliary_losses_are_in_the_loss_of_training_only(one: PatchedModel) -> None:
    config = favor_config(one.host)
    resampler = config.resampler.model_copy(update={"diversity": 0.5})  # type: ignore[union-attr]
    one.attach("favor", config.model_copy(update={"resampler": resampler, "lora": None}))
    awaken(one, "favor")
    module = pave.patch_module(one, "favor")
    inputs, labels = module.batch([make_clip(0)], QUESTIONS[:1], ANSWERS[:1])
    plain = module(inputs, labels).loss
    module.train()
    loss = module(inputs, labels).loss
    assert torch.equal(loss, plain + module.attached.aux_losses["diversity"]) and not torch.equal(loss, plain)
    loss.backward()
    module.zero_grad()
    module(*module.batch(MUTE[:1], QUESTIONS[:1], ANSWERS[:1])).loss.backward()
    assert all(zero(module).values())


def test_a_copy_has_weights_of_its_own_on_the_same_base(one: PatchedModel, module: PatchModule) -> None:
    inputs, labels = module.batch([make_clip(0)], QUESTIONS[:1], ANSWERS[:1])
    before = module(inputs, labels).loss
    average: Any = torch.optim.swa_utils.AveragedModel(module)
    assert torch.equal(average(inputs, labels).loss, before)
    for each in average.module.parameters():
        torch.nn.init.zeros_(each)
    assert not torch.equal(average(inputs, labels).loss, before) and torch.equal(module(inputs, labels).loss, before)
    with pytest.raises(UsageError, match=r"cannot be pickled; save its state_dict\(\), or model\.export\('ears'\)"):
        pickle.dumps(module)
    twin = copy.deepcopy(module)
    twin.load_state_dict(average.module.state_dict())
    assert torch.equal(twin(inputs, labels).loss, average(inputs, labels).loss)
    one.remove_patch("ears")
    with pytest.raises(PatchNotFound, match="removed"):
        module(inputs)


def test_what_cannot_be_trained_is_refused_in_words(one: PatchedModel, module: PatchModule) -> None:
    patch = one.export("ears")
    one.apply_patch(patch, name="frozen")
    with pytest.raises(UsageError, match=r"frozen: its weights are frozen; apply it with model\.attach"):
        pave.patch_module(one, "frozen")
    with pytest.raises(PatchNotFound, match="did you mean 'ears'"):
        pave.patch_module(one, "eers")
    with pytest.raises(UsageError, match=r"do not use the patch ears \(they use frozen\); enable it"):
        module(one.prepare([make_clip(0)], QUESTIONS[:1], patches=["frozen"]))
    with pytest.raises(UsageError, match="1 clip, 2 questions and 2 answers"):
        module.batch([make_clip(0)], QUESTIONS, ANSWERS)
    inputs, labels = module.batch([make_clip(0)], QUESTIONS[:1], ANSWERS[:1])
    with pytest.raises(UsageError, match="the patch ears is on meta, its base on cpu"):
        module.to("meta")(inputs, labels)


CLIP = [make_clip(0)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((CLIP, "What?", ["no"]), "the questions are a str; pass a list"),
        ((CLIP, ["What?"], "n"), "the answers are a str; pass a list"),
        ((CLIP, None, ["no"]), "the questions are a NoneType"),
        ((CLIP[0], ["What?"], ["no"]), "the clips are a Clip"),
        (([], [], []), "got 0 clips, 0 questions and 0 answers"),
        ((CLIP, [5], ["no"]), "the question is a int"),
        ((CLIP, ["What?"], [None]), "the answer is a NoneType"),
        ((CLIP, [" "], ["no"]), "the question is empty"),
        ((CLIP, ["What?"], [""]), "the answer is empty"),
        ((CLIP, ["é" * 50_000], ["no"]), "the question has .* shorten it"),
        ((CLIP, ["What?"], ["é" * 50_000]), "the answer has .* shorten it"),
    ],
)
def test_texts_of_a_batch_are_refused_in_words(module: PatchModule, rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        module.batch(*rows)


def test_inputs_labels_and_models_of_another_kind_are_refused(one: PatchedModel, module: PatchModule) -> None:
    inputs, labels = module.batch(CLIP, QUESTIONS[:1], ANSWERS[:1])
    for call in (module, one.forward, one.generate):
        with pytest.raises(UsageError, match=r"the inputs are a NoneType; pass what model\.prepare"):
            call(None)  # type: ignore[arg-type]
    others: tuple[Any, ...] = (
        labels.tolist(),
        labels.float(),
        labels.int(),
        labels[:, 1:],
        labels[0],
        labels.repeat(2, 1),
    )
    for other in others:
        for call in (module, one.forward):
            with pytest.raises(
                UsageError, match=r"labels are .*; pass a tensor \(1, \d+\), as input_ids, of torch\.int64"
            ):
                call(inputs, labels=other)
    with pytest.raises(UsageError, match="pass the one that pave"):
        pave.patch_module(one.base, "ears")  # type: ignore[arg-type]


def test_two_processes_train_together_though_one_has_no_row_with_the_sense(tmp_path: Path) -> None:
    """Under DDP and under FSDP2, whose distributed weights are gathered by export."""
    store = str(tmp_path / "store")
    ranks = [begin(tmp_path / str(rank), partial(two_ranks.main, rank, store)) for rank in range(2)]
    done = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], done[0][1] + done[1][1]
    first, second = (json.loads(out) for out, _ in done)
    assert first["losses"] != second["losses"] and first["losses"][1] < first["losses"][0]
    assert first["total"] == second["total"] and max(first["off"], second["off"]) < 1e-6


def test_a_loop_fits_the_gate_as_pave_train_does(one: PatchedModel, module: PatchModule, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="attach it with gate=True"):
        module.fit_gate(QUESTIONS)
    one.remove_patch("ears")
    one.attach("ears", make_config(one.host, gate=True))
    awaken(one, "ears")
    module = pave.patch_module(one, "ears")
    for none in ((), "What do you hear?"):
        with pytest.raises(UsageError, match="give a list of all questions"):
            module.fit_gate(none)
    with pytest.raises(UsageError, match="is empty"):
        module.fit_gate(QUESTIONS, [" "])
    kept = ("Who was Galileo?", "What is a noun?")
    with torch.device("meta"), torch.inference_mode():
        left = module.fit_gate(QUESTIONS, kept)
    gate, reads = one.applied.module("ears").gate, one.perception.reads
    assert gate is not None
    tensors, shares = fitted(one.perception.reads_many, QUESTIONS, kept, hears=True)
    assert shares == {"left_to_base": left} and left > 0
    assert torch.equal(gate.weight, tensors["weight"]) and torch.equal(gate.bias, tensors["bias"])
    assert all(gate.opens(reads(question)) for question in QUESTIONS)
    one.export("ears").save(tmp_path / "ears.safetensors")
    assert torch.equal(pave.Patch.load(tmp_path / "ears.safetensors").tensors["gate.weight"], gate.weight)
