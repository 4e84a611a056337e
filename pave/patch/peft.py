"""PEFT adapters: export of a patch's LoRA for `PeftModel`, and import of a plain LoRA as a patch without senses.

In: a patch's LoRA, or a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: the other one. Ranks
and alphas by layer are kept. Every other option of PEFT is known to change no number, or is refused: nothing is dropped
in silence. Pickles are never opened.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import regex
from safetensors.torch import save_file
from torch import Tensor, nn

from pave.base import Host
from pave.config import BaseFacts, FusionConfig, LoraConfig, PatchConfig
from pave.errors import PatchDamaged, PatchFormatError, PatchMismatch, PatchNotFound
from pave.files import json_text, tensorfile
from pave.files.atomic import replacing
from pave.files.locks import scratch
from pave.patch.file import CONVERT, Patch, of_patch, parsed
from pave.patch.filenames import HUB_NAME, OFFICIAL_FUSION, PEFT_CONFIG, PEFT_WEIGHTS
from pave.patch.lora import to_peft

KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<leaf>[AB])(?:\.default)?\.weight")
DEFAULTS = {"r": 8, "lora_alpha": 8}  # of PEFT, where a config leaves them out
PATTERN_SECONDS, PATTERN_LENGTH = 2.0, 1 << 16  # bounds of regular expressions in a config, which are a stranger's

# What can be done with an adapter that no patch can hold.
TRAIN = "train a plain LoRA; PEFT's merge_and_unload is no way around, since it makes a new base"
ONLY_LAYERS = (
    "train with target_modules or exclude_modules that keep to the language model, or load the base it was made for"
)
CONVERTED = (
    "save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it a plain LoRA"
)

# Options of adapter_config.json that change no number: where an adapter came from, and which layers have one, which the
# weights show themselves. fan_in_fan_out is for layers that store their weight transposed; PEFT ignores it for others.
FREE = (
    *("task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),
)
KEPT = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
# Options that change outputs beyond B·A·x·scaling, unless they are off: what they do, and what helps.
REFUSED = {
    "use_dora": ("DoRA also scales the base's own weights", TRAIN),
    "bias": ("trains biases of the base", TRAIN),
    "lora_bias": ("adds a bias to the LoRA", TRAIN),
    "modules_to_save": ("replaces whole modules of the base", TRAIN),
    "trainable_token_indices": ("replaces rows of the base's embedding", TRAIN),
    "target_parameters": ("adapts bare parameters, such as fused experts, which patches do not reach", ONLY_LAYERS),
    "layer_replication": ("repeats layers of the base, which is another model", TRAIN),
    "megatron_config": ("is for the parallel layers of Megatron", "convert it to the Hugging Face names of the base"),
    "use_qalora": ("QALoRA pools its inputs", TRAIN),
    "velora_config": ("VeLoRA keeps further tensors", TRAIN),
    "alora_invocation_tokens": ("activated LoRA acts only after certain tokens", TRAIN),
    "monteclora_config": ("MonteCLoRA samples its weights", TRAIN),
    "kasa_config": ("KaSA truncates the base's own weights", TRAIN),
    "use_bdlora": ("BD-LoRA has block-diagonal weights", TRAIN),
    "arrow_config": ("Arrow chooses among several adapters for each token", TRAIN),
    "init_lora_weights": ("such a start changes the base's own weights", CONVERTED),
}
OFF = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica")}
# Tensors that are no LoRA pair of a layer, by their names.
OTHERS = (
    (".lora_embedding_", "adapts an embedding", ONLY_LAYERS),
    (".lora_magnitude_vector", "belongs to DoRA, which also scales the base's own weights", TRAIN),
    (".modules_to_save.", "replaces a whole module of the base", TRAIN),
    (".bias", "is a bias", TRAIN),
)


class Pairs(NamedTuple):
    """The tensors of a plain LoRA, under `<layer of the language model>.{A,B}`."""

    tensors: dict[str, Tensor]
    names: dict[str, str]  # of each layer in the file


def save_peft(
    folder: str | Path, config: LoraConfig, tensors: Mapping[str, Tensor], prefix: str, base: str = ""
) -> None:
    """Write `<path>.{A,B}` tensors as the two files of PeftModel.from_pretrained; `prefix`: path of the language model
    in the base; `base`: where PEFT finds it."""
    folder = Path(folder)
    renamed = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        renamed[f"base_model.model.{prefix}.{path}.lora_{leaf}.weight"] = tensor.detach().cpu().contiguous()
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    ranks, alphas = {layer: config.rank(layer) for layer in layers}, {layer: config.alpha(layer) for layer in layers}
    # By full path: PEFT takes the first pattern that matches, and its file sorts them.
    adapter = to_peft(config.with_layers(ranks, alphas), prefix)
    adapter.base_model_name_or_path = base or None
    with scratch() as made:
        save_file(renamed, made / PEFT_WEIGHTS, metadata={"format": "pt"})
        adapter.save_pretrained(str(made))
        for name in (PEFT_WEIGHTS, PEFT_CONFIG):
            with (made / name).open("rb") as whole, replacing(folder / name) as file:
                shutil.copyfileobj(whole, file)


def export_peft(patch: Patch, host: Host, folder: str | Path) -> None:
    """Export the LoRA of a patch for PEFT. The fusion, which reads the senses, cannot be exported."""
    if patch.config.lora is None:
        raise PatchMismatch(patch.source, "has no LoRA", "export a patch that has one")
    tensors = {name.removeprefix("lora."): value for name, value in patch.weights().items() if name.startswith("lora.")}
    base = host.repo or patch.config.base.repo or host.model.name_or_path or ""
    save_peft(folder, patch.config.lora, tensors, prefix_of(host), base)


def prefix_of(host: Host) -> str:
    """Path of the language model in the base."""
    return next(name for name, module in host.model.named_modules() if module is host.language_model)


@of_patch()
def load_peft(folder: str | Path, host: Host) -> Patch:
    """A plain PEFT LoRA as a patch for this base. PEFT records no hash of the base's weights, so `base_match` is
    "unknown"."""
    folder = Path(folder)
    if os.path.exists(folder / OFFICIAL_FUSION):
        raise PatchFormatError(folder, f"is not a plain LoRA: {OFFICIAL_FUSION} holds a fusion", CONVERT)
    adapter, path, prefix = plain_config(folder / PEFT_CONFIG), weights_of(folder), prefix_of(host)
    layers = {name for name, module in host.language_model.named_modules() if isinstance(module, nn.Linear)}
    starts = starts_of(prefix)

    def inside(name: str) -> str | None:
        found = (name.removeprefix(start) for start in starts if name.startswith(start))
        return next((layer for layer in found if layer in layers), None)

    pairs = named_pairs(path, tensorfile.read(path)[0], inside)
    names = {layer: (f"{prefix}.{layer}", stored) for layer, stored in pairs.names.items()}
    config = PatchConfig(
        name=name_of(folder.resolve().name),
        description="A LoRA of PEFT: no sense, it acts on every question.",
        base=BaseFacts(
            model_type=host.model_type,
            repo=repo_of(adapter),
            dim=host.dim,
            vision_dim=host.vision_dim,
            tokens_per_frame=host.tokens_per_frame,
            frames=host.frames,
            fingerprint="",
        ),
        newline=host.newlines[0],
        senses={},
        fusion=FusionConfig(),
        lora=lora_config(folder / PEFT_CONFIG, adapter, names, names),
        licence="",
    )
    return Patch(config, {f"lora.{name}": tensor for name, tensor in pairs.tensors.items()}, source=str(folder))


def name_of(text: str) -> str:
    """A valid patch name from a file or folder name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "lora"


def repo_of(adapter: Mapping[str, Any]) -> str:
    """The base that an adapter names; empty for a folder of the machine that trained it."""
    repo = adapter.get("base_model_name_or_path")
    return repo if isinstance(repo, str) and HUB_NAME.fullmatch(repo) else ""


def weights_of(folder: Path) -> Path:
    """The file of the weights."""
    path = folder / PEFT_WEIGHTS
    if os.path.isfile(path):
        return path
    if (folder / "adapter_model.bin").exists():
        remedy = "pickles are never opened: load it with PEFT and save it again, which writes safetensors"
        raise PatchNotFound(path, "file not found, only adapter_model.bin", remedy)
    if any(folder.glob("adapter_model*.safetensors*")):
        raise PatchNotFound(
            path, "file not found, only parts of it", "load it with PEFT and save it again, as one file"
        )
    raise PatchNotFound(path, "file not found", "download it again, or save it again with PEFT's save_pretrained")


def plain_config(path: Path) -> dict[str, Any]:
    """The adapter_config.json of a plain LoRA; PatchFormatError for any other adapter."""
    adapter = json_text.read_json(path)
    if adapter.get("peft_type") != "LORA":
        raise PatchFormatError(path, f"peft_type is {adapter.get('peft_type')!r}", "only a plain LoRA can be a patch")
    for key, value in adapter.items():
        if key in FREE or key in KEPT or not value or value in OFF.get(key, ()):
            continue
        effect, remedy = REFUSED.get(key, ("is unknown here, so it may change outputs", TRAIN))
        if value == "loftq":
            effect, remedy = "it was trained on a quantised copy of the base", TRAIN
        raise PatchFormatError(path, f"{key}={value!r} is not a plain LoRA: {effect}", remedy)
    return adapter


def lora_config(
    path: Path, adapter: Mapping[str, Any], targets: Iterable[str], names: Mapping[str, Iterable[str]]
) -> LoraConfig:
    """The LoRA of the adapter_config.json at `path`; `names`: those of each layer in PEFT."""
    options = DEFAULTS | {
        key: adapter[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora") if key in adapter
    }
    patterns = _Patterns(path, adapter)
    patterns.refuse_unchosen(names)
    values = {
        key: {layer: patterns.value(key, layer, own, options[other]) for layer, own in names.items()}
        for key, other in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    }
    config = parsed(LoraConfig, {**options, **values, "target_modules": sorted(targets)}, path)
    return config.with_layers(config.rank_pattern, config.alpha_pattern)


class _Patterns:
    """The patterns of an adapter_config.json: lists of names, or regular expressions, matched as PEFT does but in
    bounded time."""

    def __init__(self, path: Path, adapter: Mapping[str, Any]) -> None:
        self.path, self.adapter = path, adapter
        self._end = time.monotonic() + PATTERN_SECONDS

    def value(self, key: str, layer: str, names: Iterable[str], other: Any) -> Any:
        """The value of a layer in rank_pattern or alpha_pattern: of the first pattern that matches its end."""
        pattern = self.adapter.get(key) or {}
        if not isinstance(pattern, dict):
            raise PatchFormatError(self.path, f"{key}={pattern!r} is not a mapping", "save it again with PEFT")
        found = [
            next((value for end, value in pattern.items() if self._matches(key, rf"(.*\.)?({end})$", name)), other)
            for name in names
        ]
        if any(value != found[0] for value in found):
            cause = f"its {key} gives {layer} {' or '.join(map(repr, found))}, by its old and its new name"
            raise PatchFormatError(self.path, cause, "name the layer as in the base: " + next(iter(names)))
        return found[0]

    def refuse_unchosen(self, names: Mapping[str, Iterable[str]]) -> None:
        """Raise for a layer with weights that the config leaves out: PEFT would ignore them."""
        for layer, own in names.items():
            for key, chosen in (("target_modules", True), ("exclude_modules", False)):
                modules = self.adapter.get(key)
                if modules and modules != "all-linear" and all(self._named(key, modules, n) != chosen for n in own):
                    cause = f"its {key} leaves out {layer}, of which there are weights"
                    raise PatchFormatError(self.path, cause, f"correct {key}, or save the adapter again with PEFT")

    def _named(self, key: str, modules: Any, name: str) -> bool:
        if isinstance(modules, str):
            return self._matches(key, rf"(?:{modules})\Z", name)
        if not isinstance(modules, list) or not all(isinstance(each, str) for each in modules):
            raise PatchFormatError(self.path, f"{key}={modules!r} is no list of names", "save it again with PEFT")
        return any(f".{name}".endswith(f".{each}") for each in modules)

    def _matches(self, key: str, pattern: str, name: str) -> bool:
        try:
            left = self._end - time.monotonic()
            if len(pattern) > PATTERN_LENGTH or left <= 0:
                raise TimeoutError
            return regex.match(pattern, name, timeout=left) is not None
        except TimeoutError:
            cause = f"its {key} takes more than {PATTERN_SECONDS:g} s, or has more than {PATTERN_LENGTH:,} characters"
            raise PatchFormatError(self.path, cause, "name the layers instead of a pattern") from None
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise PatchFormatError(self.path, f"its {key} is no pattern ({error})", "save it again with PEFT") from None


def starts_of(prefix: str) -> list[str]:
    """What may come before a layer in an adapter of this base: the path of the language model there; or of a part of
    the base, if only that was trained, or under the names of older releases of transformers."""
    _, _, short = prefix.rpartition(".")
    return [f"{prefix}.", f"{short}.model.", f"{short}.", "model.", ""]


def named_pairs(path: Path, tensors: Mapping[str, Tensor], inside: Callable[[str], str | None]) -> Pairs:
    """The LoRA pairs of a file by layer; `inside` maps a module to its path in the language model, or None for
    others."""
    found, names, others = {}, {}, []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            cause, remedy = _no_pair(key)
            raise PatchDamaged(path, cause, remedy)
        name = match["path"]
        layer = inside(name)
        if layer is None:
            others.append(name)
        elif f"{layer}.{match['leaf']}" in found:
            cause = f"{key!r} and another weight are of one layer, {layer}: only one can be used"
            raise PatchFormatError(path, cause, "save each adapter alone, with the names of its base")
        else:
            found[f"{layer}.{match['leaf']}"], names[layer] = tensor, name
    if others:
        cause = f"{others[0]} is not a layer of the base's language model"
        more = len(set(others)) - 1
        raise PatchMismatch(path, cause + (f", nor are {more} more" if more else ""), ONLY_LAYERS)
    return Pairs(found, names)


def _no_pair(key: str) -> tuple[str, str]:
    """Why a tensor is not the weight of a LoRA pair, and the remedy."""
    if (named := re.search(r"\.lora_[AB]\.([^.]+)\.weight$", key)) is not None:
        return (
            f"{key!r} belongs to an adapter named {named[1]!r}",
            "save one adapter alone, with PEFT's save_pretrained",
        )
    if ".lora_" not in key and key.endswith(".weight"):
        return f"{key!r} is a weight of the base itself, which a patch never replaces", TRAIN
    effect, remedy = next(
        ((effect, remedy) for mark, effect, remedy in OTHERS if mark in key),
        ("is not known", "save it again with PEFT"),
    )
    return f"{key!r} is not the weight of a LoRA pair: it {effect}", remedy
