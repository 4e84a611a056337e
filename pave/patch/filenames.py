"""Names of the files that patches come in: our own, those of PEFT and those of the official release."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = "patch.safetensors"
HUB_NAME = re.compile(
    r"(?:hf://)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)  # user/repo@revision


PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of a plain LoRA, as PEFT writes it
OFFICIAL_BASE = "llava_onevision"  # what the authors of PAVE released theirs for


OFFICIAL_FUSION = "non_lora_trainables.bin"  # beside PEFT's files, in a checkpoint of PAVE's authors


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT and no patch."""
    return (folder / PEFT_CONFIG).is_file() and not (folder / WEIGHTS).exists()
