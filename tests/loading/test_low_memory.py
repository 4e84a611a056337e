"""The laws hold for quantised and dispatched bases, and patches of the full base apply to them."""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, SIDE, make_base
from patched import QUESTIONS, WAYS, alike, clips, config_for, logits, other_ears, portrait
from small import awaken, make_clip, make_config, write_base
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from pave.errors import BaseModelError
from pave.features.cache import FeatureCache
from pave.model.patched import PatchedModel, load
from pave.training.trainee import trainable, training

LIBRARIES = {"int8": "torchao.quantization", "nf4": "bitsandbytes"}
MEMORY = {"int8": 0.5, "nf4": 0.25 + 1 / 32}  # of bfloat16: a byte; half a byte and a float32 per 64 weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return write_base(tmp_path_factory.mktemp("light") / "base", tokenizer)


@pytest.fixture(params=LIBRARIES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture
def light(folder: Path, kind: str, dtype: torch.dtype) -> PatchedModel:
    return load(folder, dtype=dtype, quantize=kind)


@pytest.fixture
def whole(folder: Path) -> PatchedModel:
    return load(folder)


def linear(model: PatchedModel) -> dict[str, nn.Linear]:
    return {name: each for name, each in model.base.named_modules() if isinstance(each, nn.Linear)}


def storage(layer: nn.Linear) -> list[Tensor]:
    """The tensors that a quantised weight consists of."""
    weight: Any = layer.weight
    if hasattr(weight, "__tensor_flatten__"):
        return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return [weight, weight.quant_state.absmax]


# Quantised


def test_the_language_model_is_quantised_and_nothing_else(light: PatchedModel, kind: str, folder: Path) -> None:
    whole = load(folder, dtype=light.host.dtype)
    plain, small = linear(whole), linear(light)
    assert list(plain) == list(small) and type(light.base) is LlavaOnevisionForConditionalGeneration
    inside = {f"model.language_model.{name}" for name, _ in whole.host.language_model.named_modules()}
    for name, layer in plain.items():
        if name in inside:
            numbers, (codes, *scales) = layer.weight.numel(), storage(small[name])
            row = 5 / 2 / layer.in_features if kind == "int8" else 0  # a float32 scale, an int8 zero
            assert sum(each.nbytes for each in (codes, *scales)) == numbers * 2 * (MEMORY[kind] + row)
            assert codes.dtype in (torch.int8, torch.uint8)
        else:
            assert torch.equal(small[name].weight, layer.weight)
    small_embedding, embedding = (each.base.get_input_embeddings().weight for each in (light, whole))
    assert torch.equal(small_embedding, embedding)  # type: ignore[arg-type]


def test_logits_are_close_to_those_of_the_full_base(whole: PatchedModel, folder: Path, kind: str) -> None:
    light, other = load(folder, quantize=kind), PatchedModel(make_base(whole.host.tokenizer, seed=9))
    right = logits(whole)
    off, far = (float((logits(each) - right).norm() / right.norm()) for each in (light, other))
    assert 0 < off < {"int8": 0.03, "nf4": 0.4}[kind] < 1 < far


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float16"])
def test_a_patch_of_the_full_base_applies_to_the_quantised_one(
    whole: PatchedModel, folder: Path, kind: str, precision: str, tmp_path: Path
) -> None:
    file = other_ears(whole).save(tmp_path / "ears.safetensors")
    light = load(folder, quantize=kind, dtype=precision)
    before = logits(light)
    assert light.apply_patch(file).base_match == "exact"
    assert light.host.fingerprint() == whole.host.fingerprint()
    assert not torch.equal(logits(light), before)


@pytest.mark.parametrize("way", WAYS)
def test_laws_1_2_and_5(light: PatchedModel, way: str) -> None:
    """Untrained: no change. Trained: a change, but not where there is no sound. Removed: no trace."""
    run, mute = WAYS[way], [make_clip(0, sound=False), make_clip(1, sound=False)]
    answer, silent = (run(light, light.prepare(each, QUESTIONS)) for each in (clips(), mute))
    before = portrait(light)
    light.attach("ears", make_config(light.host))
    assert torch.equal(run(light, light.prepare(clips(), QUESTIONS)), answer)
    awaken(light, "ears")
    patched = run(light, light.prepare(clips(), QUESTIONS))
    assert patched.shape != answer.shape or not torch.equal(patched, answer)
    assert torch.equal(run(light, light.prepare(mute, QUESTIONS)), silent)
    assert not alike(before, portrait(light)) and list(light.base_state_dict()) == list(before["state"])
    light.remove_patch("ears")
    assert alike(before, portrait(light))
    assert torch.equal(run(light, light.prepare(clips(), QUESTIONS)), answer)


def test_the_portrait_covers_every_bit_of_quantised_storage(light: PatchedModel) -> None:
    before = portrait(light)
    storage(linear(light)["model.language_model.layers.1.mlp.up_proj"])[0].view(-1)[7] ^= 1
    assert not alike(before, portrait(light))


def test_a_patch_trains_on_a_quantised_base(light: PatchedModel) -> None:
    """Also after an answer, which must not repack the weights into a form without gradients."""
    light.ask(clips()[0], QUESTIONS[0])
    before = portrait(light)
    light.attach("ears", make_config(light.host), trainable=True)
    inputs, labels, losses = light.prepare(clips(), QUESTIONS), torch.tensor([3, 250]), []
    parts = [weight for part in trainable(light.applied.module("ears")).values() for weight in part.values()]
    optimiser = torch.optim.AdamW(parts, lr=1e-2)
    with training(light.applied.module("ears")):
        for _ in range(6):
            loss = F.cross_entropy(light.forward(inputs).logits[:, -1].float(), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(weight.grad is not None for weight in parts)
    assert all(parameter.grad is None for parameter in light.base.parameters())
    light.remove_patch("ears")
    assert alike(before, portrait(light))


def test_features_cached_for_the_full_base_are_valid_for_the_quantised_one(
    whole: PatchedModel, folder: Path, kind: str, tmp_path: Path
) -> None:
    light = load(folder, quantize=kind)
    assert FeatureCache(light, [], tmp_path)._networks == FeatureCache(whole, [], tmp_path)._networks


# Dispatched to devices


def on_disk(model: nn.Module, but: Collection[str], above: str = "") -> dict[str, str]:
    """A device map with everything on disk, in parts as large as possible, but for the named and single weights."""
    places = {f"{above}{name}": "cpu" for name, _ in model.named_parameters(recurse=False)}
    for name, child in model.named_children():
        path = f"{above}{name}"
        inside = any(each.startswith(f"{path}.") for each in but)
        leaf = not any(child.children())
        places |= on_disk(child, but, f"{path}.") if inside and not leaf else {path: "cpu" if inside else "disk"}
    return places


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(tokenizer, family=request.param)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> PatchedModel:
    model = load(folder, frames=4, **options)
    if hasattr(model.host, "side"):
        model.host.side = SIDE  # type: ignore[attr-defined]
    return model


def test_every_family_has_equal_logits_when_offloaded_to_disk(saved: Path) -> None:
    whole = opened(saved)
    places = {**on_disk(whole.base, whole.host.read_apart), "lm_head": "cpu"}
    apart = opened(saved, device=places)
    assert {"disk", "cpu"} == set(places.values()) and any(weight.is_meta for weight in apart.base.parameters())
    assert torch.equal(logits(apart), logits(whole)) and apart.host.fingerprint() == whole.host.fingerprint()
    for name in whole.host.read_apart:
        with pytest.raises(BaseModelError, match=f"'model': 'disk' offloads {name}.*one by one"):
            opened(saved, device={"model": "disk", "lm_head": "cpu"})
    for name in places.keys() & whole.base.state_dict().keys():
        with pytest.raises(BaseModelError, match=f"offloads {name}.*keep this one on a device"):
            opened(saved, device={**places, name: "disk"})


@pytest.mark.parametrize("how", ["int8", "on disk"])
def test_every_family_keeps_laws_1_2_and_5(saved: Path, how: str) -> None:
    if how == "int8":
        pytest.importorskip(LIBRARIES["int8"])
        model = opened(saved, quantize="int8")
    else:
        whole = opened(saved)
        model = opened(saved, device={**on_disk(whole.base, whole.host.read_apart), "lm_head": "cpu"})
    mute = [make_clip(0, sound=False), make_clip(1, sound=False)]

    def run(given: list[Any]) -> Tensor:
        with torch.no_grad():
            return model.forward(model.prepare(given, QUESTIONS)).logits

    answer, silent = run(clips()), run(mute)
    before = portrait(model) if how == "int8" else {}  # weights on disk are loaded at every call
    model.attach("ears", config_for(model.host))
    assert torch.equal(run(clips()), answer)
    awaken(model, "ears")
    assert not torch.equal(run(clips()), answer) and torch.equal(run(mute), silent)
    model.remove_patch("ears")
    assert torch.equal(run(clips()), answer) and (not before or alike(before, portrait(model)))


def test_a_patch_has_equal_outputs_on_a_dispatched_base(whole: PatchedModel, folder: Path) -> None:
    apart = load(folder, device=on_disk(whole.base, whole.host.read_apart))
    assert apart.base.get_input_embeddings().weight.is_meta and apart.host.device.type == "cpu"
    patch, before = other_ears(whole), logits(apart)
    for model in (whole, apart):
        assert model.apply_patch(patch).base_match == "exact"
    for run in WAYS.values():
        expected, found = (run(model, model.prepare(clips(), QUESTIONS)) for model in (whole, apart))
        assert torch.equal(found, expected)
    assert not torch.equal(logits(apart), before)
    apart.remove_patch("ears")
    assert torch.equal(logits(apart), before)


def test_a_base_with_tied_embeddings_may_be_offloaded_in_parts() -> None:
    whole = load("playroom")
    places = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "model.image_newline": "cpu"}
    places |= {"model.language_model": "disk", "lm_head": "disk"}
    asked = (make_clip(0, 8), QUESTIONS[0])
    assert load("playroom", device=places).ask(*asked) == whole.ask(*asked)


def test_offloaded_files_are_deleted_with_the_base(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = load(folder, device={"model": "cpu", "lm_head": "disk"})
    assert any(tmp_path.rglob("lm_head.weight*"))
    del model
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_a_quantised_base_may_have_its_head_on_disk(folder: Path, kind: str) -> None:
    apart = load(folder, quantize=kind, device={"model": "cpu", "lm_head": "disk"})
    assert torch.equal(logits(apart), logits(load(folder, quantize=kind)))
    with pytest.raises(BaseModelError, match=r"'disk' offloads .*language_model\.layers.*quantised"):
        load(folder, quantize=kind, device={**on_disk(apart.base, apart.host.read_apart)})


def test_an_offloaded_vision_tower_cannot_cache_features_in_a_folder(
    whole: PatchedModel, folder: Path, tmp_path: Path
) -> None:
    apart = load(folder, device=on_disk(whole.base, whole.host.read_apart))
    with pytest.raises(BaseModelError, match=r"vision_tower.* is offloaded.*in memory only"):
        FeatureCache(apart, [], tmp_path)
    FeatureCache(apart, [])


def test_a_base_that_accelerate_has_dispatched_works_or_is_refused_in_words(whole: PatchedModel) -> None:
    accelerate, family = pytest.importorskip("accelerate"), type(whole.host)

    def wrapped(model: Any) -> PatchedModel:
        return PatchedModel(family(model, whole.host.tokenizer, frames=whole.host.frames))

    patch, apart = other_ears(whole), copy.deepcopy(whole.base)
    accelerate.cpu_offload(apart.get_decoder(), execution_device="cpu")
    accelerate.cpu_offload(apart.lm_head, execution_device="cpu")
    assert apart.get_input_embeddings().weight.is_meta and apart.lm_head.weight.is_meta
    offloaded = wrapped(apart)
    for model in (whole, offloaded):
        assert model.apply_patch(patch).base_match == "exact"
    assert torch.equal(logits(offloaded), logits(whole)) and offloaded.host.fingerprint() == whole.host.fingerprint()
    with pytest.raises(BaseModelError, match=r"image_newline is offloaded, but .*keep it on a device: pave\.load"):
        wrapped(accelerate.cpu_offload(copy.deepcopy(whole.base), execution_device="cpu"))
    with pytest.raises(BaseModelError, match=r"weight of the base has no values \(meta device\); load it with pave"):
        wrapped(copy.deepcopy(whole.base).to("meta")).apply_patch(patch)  # pyright: ignore[reportArgumentType]
    for given in (whole.base, whole, None, 3):
        with pytest.raises(BaseModelError, match=f"got a {type(given).__name__}, not the name of a base"):
            load(given)  # type: ignore[arg-type]


# Refused


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ({"model": "cpu", "lm_haed": "cpu"}, "no module 'lm_haed'; did you mean 'lm_head'"),
        ({"model": "cpu"}, r"has no entry for lm_head\.weight"),
        ({}, "has no entry for"),
        ({"model": "cpu", "lm_head": "cpu", "model.vision_tower": "disk"}, r"vision_tower.* in 2 entries"),
        ({"": "disk"}, "image_newline.*one by one"),
        ({"model": "cpu", "lm_head": "cuda:99"}, "'cuda:99'.*cannot use it"),
        ({"model": "cpu", "lm_head": 99}, "99.*cannot use it"),
        ({"model": "cpu", "lm_head": "dsik"}, "'dsik'.*cannot use it"),
    ],
)
def test_invalid_device_maps_are_refused(folder: Path, device: dict[str, Any], why: str) -> None:
    with pytest.raises(BaseModelError, match=why):
        load(folder, device=device)


def test_unknown_kinds_are_refused_by_name() -> None:
    with pytest.raises(BaseModelError, match=r"'4bit'.*'int8' or 'nf4'"):
        load("playroom", quantize="4bit")


def test_a_dtype_that_cannot_be_quantised_is_refused(folder: Path, kind: str) -> None:
    with pytest.raises(BaseModelError, match=r"float32, bfloat16, float16, not torch\.float64.*dtype='bfloat16'"):
        load(folder, dtype="float64", quantize=kind)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_missing_library_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[kind], None)
    with pytest.raises(BaseModelError, match=f"'{kind}' needs .*pip install {LIBRARIES[kind].partition('.')[0]}"):
        load("playroom", quantize=kind)


def test_a_device_map_without_accelerate_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BaseModelError, match=r"device map needs accelerate.*pip install accelerate"):
        load(folder, device={"": "cpu"})
