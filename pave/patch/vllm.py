"""Export for vLLM, which then runs the language model of a base, with the LoRA of a patch.

In: a patch and its base. Out: a folder with `decoder/`, the language model as transformers saves a text model; the LoRA
of each exported patch, as PEFT saves it; and README.md with the command that serves them. Prompts reach vLLM as
embeddings that are fused already (pave/serving/vllm.py), so it needs neither vision tower nor fusion. Knows nothing of
clips and prompts.

Names, ranks and flags are those of vLLM 0.33.0: vllm/lora/utils.py, peft_helper.py, config/lora.py.
"""

from __future__ import annotations

import json
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedModel

from pave.base import Host
from pave.config import LoraConfig
from pave.errors import BaseModelError, FileError, PatchMismatch
from pave.files.atomic import creating, write_text
from pave.patch.file import Patch
from pave.patch.filenames import PEFT_CONFIG
from pave.patch.peft import save_peft

DECODER, LORAS, README = "decoder", "loras", "README.md"
FINGERPRINT = "pave_fingerprint"  # of the base, in the decoder's config
# Text models that read prompt embeddings in vLLM as they read `inputs_embeds` in transformers, under the same names.
SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
TOGETHER = 8  # LoRAs in one batch, at most: each takes memory


def export_vllm(patch: Patch, host: Host, folder: str | Path) -> str:
    """Write a patch for vLLM into a folder, beside those of the same base that are there already; returns the command
    that serves them all. The decoder is written once.

    BaseModelError for a base whose language model vLLM cannot run alone; PatchMismatch for a LoRA of too high a
    rank."""
    folder, config = Path(folder), patch.config
    text_model(host)
    ranks = [] if config.lora is None else [config.lora.r, *config.lora.rank_pattern.values()]
    if max(ranks, default=0) > RANKS[-1]:
        cause = f"its LoRA has rank {max(ranks)}, vLLM takes at most {RANKS[-1]}"
        raise PatchMismatch(patch.source, cause, f"shrink it: pave patch shrink PATCH OUT --rank {RANKS[-1]}")
    save_decoder(host, folder / DECODER)
    if config.lora is not None:
        save_lora(patch, config.lora, folder / LORAS / config.name)
    command = serve_command(host, folder)
    write_text(folder / README, readme(host, command))
    return command


def text_model(host: Host) -> type[PreTrainedModel]:
    """The class of the base's language model as a model of its own; BaseModelError unless vLLM runs it alone."""
    config = host.model.config.get_text_config()
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if host.on_a_grid:  # vLLM counts prompt embeddings as text
        raise _refused(host, "gives visual tokens positions on a grid, and vLLM numbers prompt embeddings one by one")
    if kind is None or kind.__name__ not in SERVED:
        served = ", ".join(name.removesuffix("ForCausalLM") for name in SERVED)
        raise _refused(host, f"has a language model ({config.model_type}) that is not one of these: {served}")
    return kind


def _refused(host: Host, cause: str) -> BaseModelError:
    return BaseModelError(f"{served_name(host)}: {cause}; serve this base with pave serve")


def served_name(host: Host) -> str:
    """What a vLLM server calls the base."""
    return host.repo or Path(host.model.name_or_path or "").name or host.model_type


def save_decoder(host: Host, folder: Path) -> None:
    """Write the language model, unless the folder has it already: config, weights, tokenizer, and what ends an
    answer."""
    if folder.exists():
        _refuse_other(host, folder)
        return
    model: Any = _decoder(host)
    model.generation_config = GenerationConfig(eos_token_id=host.stops, pad_token_id=host.pad)
    setattr(model.config, FINGERPRINT, host.fingerprint())
    with creating(folder) as made:
        model.save_pretrained(made)
        host.tokenizer.save_pretrained(made)
        for file in made.glob("*.safetensors"):  # which safetensors lets their owner alone read
            file.chmod((made / "config.json").stat().st_mode)


def _refuse_other(host: Host, folder: Path) -> None:
    try:
        found = json.loads((folder / "config.json").read_text("utf-8")).get(FINGERPRINT)
    except (OSError, ValueError, AttributeError):
        found = None
    if found != host.fingerprint():
        raise FileError(folder, "holds something else than the language model of this base", "choose another folder")


def _decoder(host: Host) -> PreTrainedModel:
    """The base's language model and its output layer as one model, which shares their weights."""
    kind, embedding = text_model(host), host.model.get_input_embeddings()
    output: Any = (host.model.get_output_embeddings() or embedding).weight
    weights = {f"{kind.base_model_prefix}.{name}": each for name, each in host.language_model.state_dict().items()}
    weights["lm_head.weight"] = output.detach()
    if odd := [name for name, value in weights.items() if not _plain(value)]:
        cause = f"{odd[0]} is quantised or offloaded, as are {len(odd) - 1} more"
        raise BaseModelError(f"{served_name(host)}: {cause}; load the base without quantize= and device maps")
    config = deepcopy(host.model.config.get_text_config())
    config.tie_word_embeddings = output is embedding.weight
    with torch.device("meta"):
        model: Any = kind(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _plain(value: Tensor) -> bool:
    """Whether a weight holds its own numbers."""
    return type(value) in (Tensor, nn.Parameter) and value.is_floating_point() and not value.is_meta


def save_lora(patch: Patch, config: LoraConfig, folder: Path) -> None:
    """Write the LoRA with lora_alpha = r in every layer, the rest of its factor in B: earlier releases of vLLM read no
    rank_pattern and alpha_pattern, which would change the factors."""
    tensors = {name.removeprefix("lora."): each for name, each in patch.weights().items() if name.startswith("lora.")}
    scaled = {
        name: each * config.scaling_of(name.removesuffix(".B")) if name.endswith(".B") else each
        for name, each in tensors.items()
    }
    ranks = {name.removesuffix(".A"): len(each) for name, each in tensors.items() if name.endswith(".A")}
    even = config.model_copy(update={"lora_alpha": float(config.r), "use_rslora": False})
    save_peft(folder, even.with_layers(ranks, {layer: float(rank) for layer, rank in ranks.items()}), scaled, "model")


def serve_command(host: Host, folder: Path) -> str:
    """`vllm serve` for what a folder holds, to be run inside it."""
    ranks = {}
    for path in sorted(folder.glob(f"{LORAS}/*/{PEFT_CONFIG}")):
        facts = json.loads(path.read_text("utf-8"))
        ranks[path.parent.name] = max([facts["r"], *facts["rank_pattern"].values()])
    # By itself, vLLM runs float32 weights in 16 bits.
    dtype = json.loads((folder / DECODER / "config.json").read_text("utf-8"))["dtype"]
    parts = [f"vllm serve {DECODER}", f"--served-model-name {shlex.quote(served_name(host))}"]
    parts += [f"--dtype {dtype}", "--enable-prompt-embeds"]
    if ranks:
        rank = next(each for each in RANKS if each >= max(ranks.values()))
        parts.append(f"--enable-lora --max-lora-rank {rank} --max-loras {min(len(ranks), TOGETHER)}")
        parts.append(" ".join(["--lora-modules", *(f"{name}={LORAS}/{name}" for name in ranks)]))
    return " \\\n  ".join(parts)


def readme(host: Host, command: str) -> str:
    """README.md of the folder."""
    name = served_name(host)
    return f"""# {name} for vLLM

`{DECODER}/` is the language model of {name}, without the vision tower, as {text_model(host).__name__};
`{LORAS}/` has the LoRA of each patch. In this folder, run

```sh
{command}
```

vLLM gets prompts as embeddings (`prompt_embeds` of `/v1/completions`). PAVE computes them in a process of its own, with
the base and the patches:

```python
import pave
from pave.serving.vllm import Front

model = pave.load({name!r})
model.apply_patch(PATCH)
print(Front(model, "http://127.0.0.1:8000/v1").ask("clip.mp4", "What do you hear?"))
```

Export a patch again when it has been trained again. With `--enable-prompt-embeds`, embeddings of a wrong shape may
crash vLLM: let only trusted clients reach it.
"""
