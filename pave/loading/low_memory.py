"""Bases in less memory: the language model in 8 or 4 bits, or parts of a base dispatched to GPUs, CPU and disk.

In: a model on the CPU. Out: the same model, of the same class, with quantised weights, or with its parts placed by a
device map. torchao and bitsandbytes quantise, accelerate dispatches. Knows nothing of patches.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pave.errors import BaseModelError, nearest
from pave.files.locks import scratch

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)  # by both libraries


def quantiser(kind: str) -> Callable[[nn.Module], None]:
    """A function that quantises the linear layers of a language model in place, and nothing else."""
    if kind not in KINDS:
        raise BaseModelError(f"quantize={kind!r}: unknown kind; use {' or '.join(map(repr, KINDS))}")
    library, quantise = KINDS[kind]
    tools = _library(library, f"quantize={kind!r}")

    def run(language_model: nn.Module) -> None:
        dtype = next(language_model.parameters()).dtype
        if dtype not in SUPPORTED:
            supported = ", ".join(str(each).removeprefix("torch.") for each in SUPPORTED)
            raise BaseModelError(
                f"quantize={kind!r}: {library} supports {supported}, not {dtype}; use dtype='bfloat16'"
            )
        quantise(tools, language_model)

    return run


def _int8(torchao: Any, language_model: nn.Module) -> None:
    """One byte per weight and one scale per row: symmetric, weight-only int8."""
    # Its recommended inductor settings would apply to the whole process.
    torchao.quantize_(language_model, torchao.Int8WeightOnlyConfig(set_inductor_config=False))


def _nf4(bitsandbytes: Any, language_model: nn.Module) -> None:
    """Four bits per weight and a float32 scale per 64 of them: NF4 (QLoRA, Dettmers et al., NeurIPS 2023)."""
    form = {"compress_statistics": False, "quant_type": "nf4"}
    paths = [path for path, layer in language_model.named_modules() if isinstance(layer, nn.Linear)]
    for path in paths:  # frees each large layer before the next one is converted
        layer: Any = language_model.get_submodule(path)
        shape = {"input_features": layer.in_features, "output_features": layer.out_features}
        options = {"bias": layer.bias is not None, "compute_dtype": layer.weight.dtype, "device": "meta"}
        light = bitsandbytes.nn.Linear4bit(**shape, **options, **form)
        light.weight = bitsandbytes.nn.Params4bit(layer.weight.data, **form).to("cpu")
        light.bias = layer.bias
        # On CPUs with AVX512-BF16 it would repack its weights in the first inference pass. Then passes with and without
        # gradients differ (a float32 layer by 0.008), and gradients no longer flow.
        light.support_avx512bf16_for_cpu = False
        language_model.set_submodule(path, light.requires_grad_(False).train(layer.training))


KINDS: dict[str, tuple[str, Callable[[Any, nn.Module], None]]] = {
    "int8": ("torchao.quantization", _int8),
    "nf4": ("bitsandbytes", _nf4),
}


def dispatch(model: PreTrainedModel, places: Mapping[str, str], read_apart: Collection[str]) -> None:
    """Place every part as the device map says. Weights on "disk", or on "cpu" next to a GPU, are loaded when their
    module is called, which never happens for those in `read_apart`. Files on disk are deleted with the model."""
    accelerate = _library("accelerate", "a device map")
    _refuse_misplaced(model, places, read_apart)
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in places:  # accelerate moves whole modules only
            weight.data = weight.data.to(places[name])
    folder = None
    if "disk" in places.values():
        stack = ExitStack()
        folder = str(stack.enter_context(scratch()))
        weakref.finalize(model, stack.close)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following device_map keys do not match")  # the keys of single weights
        options = {"offload_dir": folder, "skip_keys": model._skip_keys_device_placement}
        accelerate.dispatch_model(model, dict(places), **options)


def _refuse_misplaced(model: PreTrainedModel, places: Mapping[str, str], read_apart: Collection[str]) -> None:
    """Raise unless every weight has exactly one entry and every offloaded weight can be reloaded."""
    weights = model.state_dict(keep_vars=True)
    known = {name for name, _ in model.named_modules()} | weights.keys()
    for path in places:
        if path not in known:
            near = nearest(path, [name for name in known if name and name.count(".") < 2])
            raise BaseModelError(f"device: this base has no module {path!r}; {near}")
    offloads = {"disk", "cpu"} if set(places.values()) - {"disk", "cpu"} else {"disk"}
    for name, weight in weights.items():
        entries = [path for path in places if not path or f"{name}.".startswith(f"{path}.")]
        if len(entries) != 1:
            wrong = f"has {name} in {len(entries)} entries, {entries}" if entries else f"has no entry for {name}"
            raise BaseModelError(f"device: the map {wrong}; list every part once")
        if places[entries[0]] not in offloads:
            continue
        why = ""
        if name in read_apart or name in places:
            why = "is read without calling its module, which would reload it"
        elif isinstance(weight, nn.Parameter) and type(weight) is not nn.Parameter:
            why = "is quantised and cannot be reloaded"
        if why:
            cause = f"{entries[0]!r}: {places[entries[0]]!r} offloads {name}, which {why}"
            raise BaseModelError(f"device: {cause}; list the parts one by one and keep this one on a device")


def _library(name: str, feature: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BaseModelError(f"{feature} needs {package} ({error}); pip install {package}") from None
