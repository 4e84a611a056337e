"""PEFT adapters: export of a patch's LoRA for `PeftModel`, and import of a plain LoRA as a patch without senses.

In: a patch's LoRA, or a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: the other one. PEFT
options that patches do not support (DoRA, biases, whole modules, ranks by layer) are refused, never silently dropped.
Pickles are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from pave.base import Host
from pave.config import BaseFacts, FusionConfig, LoraConfig, PatchConfig
from pave.errors import PatchDamaged, PatchFormatError, PatchMismatch, PatchNotFound
from pave.files import json_text, tensorfile
from pave.patch.file import CONVERT, Patch, of_patch, parsed
from pave.patch.filenames import OFFICIAL_FUSION, PEFT_CONFIG, PEFT_WEIGHTS
from pave.patch.lora import to_peft

KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<leaf>[AB])(?:\.default)?\.weight")
# Options that change outputs beyond B·A·x·scaling, and the values at which they do not.
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base's weights too
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"), (False,)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices", "alora_invocation_tokens"), ()),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "target_parameters", "exclude_modules"), ()),
}


def save_peft(
    folder: str | Path, config: LoraConfig, tensors: Mapping[str, Tensor], prefix: str, base: str = ""
) -> None:
    """Write `<path>.{A,B}` tensors as the two files of PeftModel.from_pretrained; `prefix`: path of the language model
    in the base; `base`: where PEFT finds it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        renamed[f"base_model.model.{prefix}.{path}.lora_{leaf}.weight"] = tensor.detach().cpu().contiguous()
    save_file(renamed, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    adapter = to_peft(config, prefix)
    adapter.base_model_name_or_path = base or None
    adapter.save_pretrained(str(folder))


def export_peft(patch: Patch, host: Host, folder: str | Path) -> None:
    """Export the LoRA of a patch for PEFT. The fusion, which reads the senses, cannot be exported."""
    if patch.config.lora is None:
        raise PatchMismatch(patch.source, "has no LoRA", "export a patch that has one")
    tensors = {name.removeprefix("lora."): value for name, value in patch.weights().items() if name.startswith("lora.")}
    prefix = next(name for name, module in host.model.named_modules() if module is host.language_model)
    base = host.repo or patch.config.base.repo or host.model.name_or_path
    save_peft(folder, patch.config.lora, tensors, prefix, base)


@of_patch()
def load_peft(folder: str | Path, host: Host) -> Patch:
    """A plain PEFT LoRA as a patch for this base. PEFT records no hash of the base's weights, so `base_match` is
    "unknown"."""
    folder = Path(folder)
    if (folder / OFFICIAL_FUSION).exists():
        raise PatchFormatError(folder, f"is not a plain LoRA: {OFFICIAL_FUSION} holds a fusion", CONVERT)
    adapter, path = plain_config(folder / PEFT_CONFIG), folder / PEFT_WEIGHTS
    if not path.is_file():
        remedy = "save it again with safe_serialization=True: pickles are never opened"
        raise PatchNotFound(path, "file not found", remedy)
    layers = {name for name, module in host.language_model.named_modules() if isinstance(module, nn.Linear)}

    def inside(name: str) -> str | None:
        parts = [] if "vision" in name else name.split(".")
        return next((".".join(parts[i:]) for i in range(len(parts)) if ".".join(parts[i:]) in layers), None)

    pairs = named_pairs(path, tensorfile.read(path)[0], inside)
    lora = lora_config(folder / PEFT_CONFIG, adapter, {name.rpartition(".")[0] for name in pairs})
    config = PatchConfig(
        name=name_of(folder.resolve().name),
        description="A LoRA of PEFT: no sense, it acts on every question.",
        base=BaseFacts(
            model_type=host.model_type,
            dim=host.dim,
            vision_dim=host.vision_dim,
            tokens_per_frame=host.tokens_per_frame,
            frames=host.frames,
            fingerprint="",
        ),
        newline=host.newlines[0],
        senses={},
        fusion=FusionConfig(),
        lora=lora,
        licence="",
    )
    return Patch(config, {f"lora.{name}": tensor for name, tensor in pairs.items()}, source=str(folder))


def name_of(text: str) -> str:
    """A valid patch name from a file or folder name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "lora"


def plain_config(path: Path) -> dict[str, Any]:
    """The adapter_config.json of a plain LoRA; PatchFormatError for any other adapter."""
    adapter = json_text.read_json(path)
    if adapter.get("peft_type") != "LORA":
        raise PatchFormatError(path, f"peft_type is {adapter.get('peft_type')!r}", "only a plain LoRA can be a patch")
    for key, plain in PLAIN.items():
        if adapter.get(key) and adapter[key] not in plain:
            raise PatchFormatError(path, f"{key}={adapter[key]!r} is not a plain LoRA", "merge it with PEFT instead")
    return adapter


def lora_config(path: Path, adapter: Mapping[str, Any], targets: Iterable[str]) -> LoraConfig:
    """The LoRA of the adapter_config.json at `path`, on these layers."""
    options = {key: adapter[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora") if key in adapter}
    return parsed(LoraConfig, {**options, "target_modules": sorted(targets)}, path)


def named_pairs(path: Path, tensors: Mapping[str, Tensor], inside: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Tensors under `<path in the language model>.{A,B}`; `inside` maps a module to that path, or None for others."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise PatchDamaged(path, f"{key!r} is not the weight of a LoRA pair", "save it again with PEFT")
        layer = inside(match["path"])
        if layer is None:
            cause = f"{match['path']} is not a layer of the base's language model"
            raise PatchMismatch(path, cause, "adapt only the language model, and load the base it was made for")
        found[f"{layer}.{match['leaf']}"] = tensor
    return found
