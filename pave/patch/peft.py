"""PEFT's adapter folders, in and out: a patch's LoRA for `PeftModel`, and a plain LoRA as a patch without a sense.

In: a patch's LoRA, or a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: the other one. What
PEFT can say and a patch cannot (DoRA, biases, whole modules, ranks by layer) is refused, never left out in silence. A
pickle is never opened.

r ranks
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
# What changes the numbers beyond B·A·x·scaling, and the values at which it does not.
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base's weights as well
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"), (False,)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices", "alora_invocation_tokens"), ()),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "target_parameters", "exclude_modules"), ()),
}


def save_peft(folder: str | Path, config: LoraConfig, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Write `<path>.{A,B}` tensors as the two files that PeftModel.from_pretrained opens; `prefix` is the path of the
    language model inside the base."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        renamed[f"base_model.model.{prefix}.{path}.lora_{leaf}.weight"] = tensor.detach().cpu().contiguous()
    save_file(renamed, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    to_peft(config, prefix).save_pretrained(str(folder))


def export_peft(patch: Patch, host: Host, folder: str | Path) -> None:
    """The LoRA of a patch as a folder for PEFT. Its fusion, which is what perceives, has no place there."""
    if patch.config.lora is None:
        raise PatchMismatch(patch.source, "has no LoRA", "there is nothing that PEFT could load")
    tensors = {name.removeprefix("lora."): value for name, value in patch.weights().items() if name.startswith("lora.")}
    prefix = next(name for name, module in host.model.named_modules() if module is host.language_model)
    save_peft(folder, patch.config.lora, tensors, prefix)


@of_patch()
def load_peft(folder: str | Path, host: Host) -> Patch:
    """A plain LoRA of PEFT as a patch for this base. PEFT records no hash of the base's weights, so whether they are
    those that it was trained on cannot be told: `base_match` will say so."""
    folder = Path(folder)
    if (folder / OFFICIAL_FUSION).exists():
        raise PatchFormatError(folder, f"is more than a LoRA: {OFFICIAL_FUSION} holds a fusion", CONVERT)
    said, path = plain_config(folder / PEFT_CONFIG), folder / PEFT_WEIGHTS
    if not path.is_file():
        remedy = "save it again with safe_serialization=True: pickles are never opened"
        raise PatchNotFound(path, "no such file", remedy)
    layers = {name for name, module in host.language_model.named_modules() if isinstance(module, nn.Linear)}

    def inside(name: str) -> str | None:
        parts = [] if "vision" in name else name.split(".")
        return next((".".join(parts[i:]) for i in range(len(parts)) if ".".join(parts[i:]) in layers), None)

    pairs = named_pairs(path, tensorfile.read(path)[0], inside)
    lora = lora_config(folder / PEFT_CONFIG, said, {name.rpartition(".")[0] for name in pairs})
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
    """A patch's name from that of a file or folder."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "lora"


def plain_config(path: Path) -> dict[str, Any]:
    """What an adapter_config.json says, once it is known to be of a plain LoRA."""
    said = json_text.read_json(path)
    if said.get("peft_type") != "LORA":
        raise PatchFormatError(path, f"peft_type is {said.get('peft_type')!r}", "only plain LoRA can be a patch")
    for key, plain in PLAIN.items():
        if said.get(key) and said[key] not in plain:
            raise PatchFormatError(path, f"{key}={said[key]!r} is more than a plain LoRA", "merge it with PEFT instead")
    return said


def lora_config(path: Path, said: Mapping[str, Any], targets: Iterable[str]) -> LoraConfig:
    """The LoRA that adapter_config.json at `path` tells of, on these layers."""
    words = {key: said[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora") if key in said}
    return parsed(LoraConfig, {**words, "target_modules": sorted(targets)}, path)


def named_pairs(path: Path, tensors: Mapping[str, Tensor], inside: Callable[[str], str | None]) -> dict[str, Tensor]:
    """`<path inside the language model>.{A,B}` of every tensor; `inside` tells that path, or None for other modules."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise PatchDamaged(path, f"{key!r} is not the weight of a LoRA pair", "save it again with PEFT")
        layer = inside(match["path"])
        if layer is None:
            cause = f"{match['path']} is no layer of the base's language model"
            raise PatchMismatch(path, cause, "a patch changes only that, of the base it was made for")
        found[f"{layer}.{match['leaf']}"] = tensor
    return found
