"""Bases that need less room: the language model in 8 or 4 bits, or the parts of a base on GPUs, CPU and disk.

In: a model that lies whole on the CPU. Out: the same model, of the same class, with smaller weights, or with its parts
where a device map says. torchao and bitsandbytes do the arithmetic, accelerate the moving. Knows nothing of patches.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pave.errors import BaseModelError, nearest

TAKES = (torch.float32, torch.bfloat16, torch.float16)  # what both libraries quantise


def quantiser(kind: str) -> Callable[[nn.Module], None]:
    """What makes the linear layers of a language model small, in place; all else stays as it is."""
    if kind not in KINDS:
        raise BaseModelError(f"quantize={kind!r}: there is no such kind; give {' or '.join(map(repr, KINDS))}")
    library, quantise = KINDS[kind]
    tools = _library(library, f"quantize={kind!r}")

    def run(language_model: nn.Module) -> None:
        dtype = next(language_model.parameters()).dtype
        if dtype not in TAKES:
            takes = ", ".join(str(each).removeprefix("torch.") for each in TAKES)
            raise BaseModelError(f"quantize={kind!r}: {library} takes {takes}, not {dtype}; give dtype='bfloat16'")
        quantise(tools, language_model)

    return run


def _int8(torchao: Any, language_model: nn.Module) -> None:
    """A byte per weight and a scale per row: symmetric int8 of the weights only."""
    # Its recommended settings of the compiler would be set for the whole process.
    torchao.quantize_(language_model, torchao.Int8WeightOnlyConfig(set_inductor_config=False))


def _nf4(bitsandbytes: Any, language_model: nn.Module) -> None:
    """Four bits per weight and a float32 scale per 64 of them: NF4 (QLoRA, Dettmers et al., NeurIPS 2023)."""
    words = {"compress_statistics": False, "quant_type": "nf4"}
    paths = [path for path, layer in language_model.named_modules() if isinstance(layer, nn.Linear)]
    for path in paths:  # each large layer is let go before the next one is looked at
        layer: Any = language_model.get_submodule(path)
        shape = {"input_features": layer.in_features, "output_features": layer.out_features}
        form = {"bias": layer.bias is not None, "compute_dtype": layer.weight.dtype, "device": "meta"}
        light = bitsandbytes.nn.Linear4bit(**shape, **form, **words)
        light.weight = bitsandbytes.nn.Params4bit(layer.weight.data, **words).to("cpu")
        light.bias = layer.bias
        # On CPUs that multiply bfloat16 it would repack its weights at the first answer. Then a pass without gradients
        # differs from one with them (a layer in float32 by 0.008), and no gradient comes through any more.
        light.support_avx512bf16_for_cpu = False
        language_model.set_submodule(path, light.requires_grad_(False).train(layer.training))


KINDS: dict[str, tuple[str, Callable[[Any, nn.Module], None]]] = {
    "int8": ("torchao.quantization", _int8),
    "nf4": ("bitsandbytes", _nf4),
}


def spread(model: PreTrainedModel, places: Mapping[str, str], read_apart: Collection[str]) -> None:
    """Put every part where the map says. What lies on "disk", or on "cpu" beside a GPU, is fetched when its module is
    called, which it never is for the weights `read_apart`. The files on disk are temporary and go with the model."""
    accelerate = _library("accelerate", "a device map")
    _refuse_misplaced(model, places, read_apart)
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in places:  # accelerate moves modules only
            weight.data = weight.data.to(places[name])
    folder = None
    if "disk" in places.values():
        folder = tempfile.mkdtemp(prefix="pave-base-")
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following device_map keys do not match")  # those of single weights
        words = {"offload_dir": folder, "skip_keys": model._skip_keys_device_placement}
        accelerate.dispatch_model(model, dict(places), **words)


def _refuse_misplaced(model: PreTrainedModel, places: Mapping[str, str], read_apart: Collection[str]) -> None:
    """Every weight has one entry; an entry that offloads holds nothing that could not be fetched again."""
    weights = model.state_dict(keep_vars=True)
    known = {name for name, _ in model.named_modules()} | weights.keys()
    for path in places:
        if path not in known:
            near = nearest(path, [name for name in known if name and name.count(".") < 2])
            raise BaseModelError(f"device: this base has no part {path!r}; {near}")
    offloads = {"disk", "cpu"} if set(places.values()) - {"disk", "cpu"} else {"disk"}
    for name, weight in weights.items():
        entries = [path for path in places if not path or f"{name}.".startswith(f"{path}.")]
        if len(entries) != 1:
            wrong = f"names {name} in {len(entries)} entries, {entries}" if entries else f"leaves out {name}"
            raise BaseModelError(f"device: the map {wrong}; name every part once")
        if places[entries[0]] not in offloads:
            continue
        why = ""
        if name in read_apart or name in places:
            why = "is read without a call of the module that would fetch it"
        elif isinstance(weight, nn.Parameter) and type(weight) is not nn.Parameter:
            why = "is quantised and could not be fetched again"
        if why:
            cause = f"{entries[0]!r}: {places[entries[0]]!r} offloads {name}, which {why}"
            raise BaseModelError(f"device: {cause}; name the parts one by one, with a device to stay on for this one")


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BaseModelError(f"{what} needs {package} ({error}); pip install {package}") from None
