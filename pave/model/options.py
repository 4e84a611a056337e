"""Hugging Face's options of forward() and generate() that a patched model passes on.

In: options by name. Out: the same, or a UsageError: Hugging Face ignores names that it does not know. Knows nothing of
patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from transformers import GenerationConfig

from pave.base import Host
from pave.errors import UsageError, nearest

# Options of forward(), and the field of its output that each one fills.
FORWARD = {
    "output_hidden_states": "hidden_states",
    "output_attentions": "attentions",
    "output_router_logits": "router_logits",
    "use_cache": "past_key_values",
    "return_dict": "logits",
}
# What Inputs hold, and what would run code of a repository.
NOT_OPTIONS = {"self", "kwargs", "inputs", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"}
LONGEST = 300  # characters of a list of names
POPPED = {"tokenizer", "assistant_tokenizer"}  # that generate() reads from its keyword arguments


def checked_forward(options: Mapping[str, bool | None]) -> dict[str, bool | None]:
    """Options of forward(), by name and type."""
    _refuse_unknown("forward", options, FORWARD)
    for name, value in options.items():
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"forward: {name}={value!r} must be True, False or None")
    return dict(options)


def refuse_ignored(options: Mapping[str, bool | None], outputs: Any) -> None:
    """UsageError for an option that this base has ignored."""
    for name, wanted in options.items():
        value = getattr(outputs, FORWARD[name], None)
        if wanted and (value is None or (isinstance(value, tuple) and not (value and None not in value))):
            remedy = "leave it out"
            if name == "output_attentions":
                remedy = 'call model.base.set_attn_implementation("eager") first: other kernels do not keep them'
            raise UsageError(f"forward: {name}=True has no effect in this base; {remedy}")


def checked_generate(options: Mapping[str, Any], host: Host) -> None:
    """UsageError for an option that generate() of this base does not have."""
    base: Any = host.model
    parameters = inspect.signature(base.generate).parameters.keys()
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    _refuse_unknown("generate", options, (parameters | settings | POPPED) - NOT_OPTIONS - {"transformers_version"})


def _refuse_unknown(verb: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            remedy = nearest(name, known)
            if len(remedy) > LONGEST:
                remedy = "it comes from the inputs, or does not exist: see transformers.GenerationConfig"
            raise UsageError(f"{verb}: no option {name!r}; {remedy}")
