"""A model with patches: its inputs, patches with an effect, and the state of the base that must not change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from families import make_base
from small import awaken, make_clip, make_config
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.config import FusionConfig, LoraConfig, PatchConfig, ResamplerConfig, SenseFacts
from pave.encoder import load_encoder
from pave.media.clip import Clip
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.patch.file import Patch

QUESTIONS = ("What do you hear?", "And now, at the end of the clip?")
WAYS: dict[str, Callable[[PatchedModel, Inputs], Tensor]] = {
    "forward": lambda model, inputs: model.forward(inputs).logits.detach(),
    "greedy": lambda model, inputs: model.generate(inputs, max_new_tokens=6, do_sample=False),
    "beams": lambda model, inputs: model.generate(inputs, max_new_tokens=6, do_sample=False, num_beams=3),
}
RESAMPLER: dict[str, Any] = {"slots": 5, "window": 4, "queries": 3, "width": 16, "heads": 2}
# Read-outs of a resampler: overrides of its config, and of the fusion's.
READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "residual": ({}, {}),
    "official": ({}, {"kind": "official"}),
    "finer": ({"queries": 4, "finer": (1, 2)}, {}),
    "overlapping": ({"stride": 2}, {}),
    "states": ({"readout": "states", "queries": 32}, {}),
    "prefix": ({}, {"combine": "prefix"}),
    "interleave": ({}, {"combine": "interleave"}),
}


def clips() -> list[Clip]:
    return [make_clip(0), make_clip(1)]


def logits(model: PatchedModel, **how: Any) -> Tensor:
    with torch.no_grad():
        return model.forward(model.prepare(clips(), QUESTIONS, **how)).logits


def config_for(base: Host, **changes: Any) -> PatchConfig:
    """The config of a sound patch for any family, with its newline and the names of its layers."""
    layers = {name.rpartition(".")[2] for name, _ in base.language_model.named_modules()}
    words = [word for word in ("q_proj", "v_proj", "gate_proj", "gate_up_proj", "down_proj") if word in layers]
    changes = {"newline": base.newlines[0], "lora": LoraConfig(r=4, target_modules=tuple(words)), **changes}
    return make_config(base, **changes)


def hears(model: PatchedModel, name: str = "ears", **changes: Any) -> None:
    """Apply a sound patch with an effect."""
    model.attach(name, make_config(model.host, name, **changes), trainable=False)
    awaken(model, name)


def two_patches(tokenizer: PreTrainedTokenizerFast, family: str) -> PatchedModel:
    """A base of a family with the sound patches `ears` and `more`, which have an effect."""
    model = PatchedModel(make_base(tokenizer, family=family))
    for seed, name in enumerate(("ears", "more")):
        model.attach(name, config_for(model.host, name=name), trainable=False)
        awaken(model, name, seed=seed)
    return model


def sense(**options: Any) -> SenseFacts:
    return load_encoder("logmel", **options).spec.facts("time")


def favor_config(base: Host, way: str = "residual") -> PatchConfig:
    """Two senses, 10 and 2 tokens per second, on one clock of 2 steps per second; a window is 4 steps, or 2 s."""
    resampler, fusion = READ[way]
    return make_config(
        base,
        "favor",
        senses={"slow": sense(bands=8, rate=2), "fast": sense(bands=16, rate=10)},
        resampler=ResamplerConfig.model_validate(RESAMPLER | resampler),
        fusion=FusionConfig.model_validate({"width": 32, "heads": 2} | fusion),
    )


def favors(model: PatchedModel, way: str = "residual") -> None:
    """Apply a patch with a resampler that has an effect."""
    model.attach("favor", favor_config(model.host, way), trainable=False)
    awaken(model, "favor")


def other_ears(one: PatchedModel, **changes: Any) -> Patch:
    """A patch with the shapes of that of `hears`, and other weights."""
    donor = PatchedModel(one.host)
    donor.attach("ears", make_config(one.host, **changes), trainable=False)
    awaken(donor, "ears", seed=5)
    patch = donor.export("ears")
    donor.remove_patch("ears")
    return patch


def portrait(model: PatchedModel) -> dict[str, Any]:
    """All state of the base that a patch could leave changed."""
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
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if hasattr(one, "__tensor_flatten__"):  # torchao's tensors keep their bits in inner tensors
        (names, facts), (_, others) = one.__tensor_flatten__(), other.__tensor_flatten__()
        return facts == others and all(alike(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    return one == other


@contextmanager
def hooked(layer: torch.nn.Module, call: Callable[..., None]) -> Iterator[None]:
    def before(*each: object) -> None:  # returns None: a returned value would replace the layer's input
        call(*each)

    handle = layer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
