"""File names of patches: PAVE's own, PEFT's and those of the official release."""

from __future__ import annotations

import os
import re
from pathlib import Path

WEIGHTS = "patch.safetensors"
HUB_NAME = re.compile(
    r"(?:hf://)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)  # user/repo@revision


PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of a plain LoRA in PEFT's format
OFFICIAL_BASE = "llava_onevision"  # model_type of the base of all official checkpoints
OFFICIAL_FUSION = "non_lora_trainables.bin"  # next to PEFT's files in an official checkpoint


def is_peft(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no patch."""
    return os.path.isfile(folder / PEFT_CONFIG) and not os.path.exists(folder / WEIGHTS)


def is_half_peft(folder: Path) -> bool:
    """Whether a folder holds the weights of a PEFT adapter without its config."""
    weights = any(os.path.exists(folder / name) for name in (PEFT_WEIGHTS, "adapter_model.bin"))
    return weights and not os.path.exists(folder / PEFT_CONFIG)
