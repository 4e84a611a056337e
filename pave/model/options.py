"""Hugging Face's options of forward() and generate() that a patched model passes on.

In: options by name. Out: the same, or a UsageError: Hugging Face ignores names that it does not know. Those of an
answer (`ask`, `stream`, `chat`) are the fields of GenerationConfig, without those that contradict what an answer is.
Knows nothing of patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from operator import index
from typing import Any

from transformers import GenerationConfig

from pave.base import Host
from pave.errors import UsageError, nearest
from pave.text.shown import quoted

MOST = 128  # tokens of an answer: several sentences
COLDEST = 1e-5  # temperatures below it are greedy, as in vLLM: logits divided by them overflow

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
SAMPLING = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
# Fields of GenerationConfig that an answer cannot have, by the reason.
REFUSED = {
    "an answer is one text; model.generate() returns more": (
        "num_return_sequences output_attentions output_hidden_states output_logits output_scores "
        "return_dict_in_generate"
    ),
    "it counts the prompt, too; use max_new_tokens or min_new_tokens": "max_length min_length",
    "the base's own tokens begin and end a prompt; use stop_strings to end an answer": (
        "bos_token_id decoder_start_token_id eos_token_id forced_bos_token_id pad_token_id token_healing"
    ),
    "the library keeps keys and values itself": (
        "cache_config cache_implementation continuous_batching_config low_memory max_cache_len prefill_chunk_size "
        "use_cache"
    ),
    "it would run the base without the clip, or run another model": (
        "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
        "guidance_scale is_assistant max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule "
        "prompt_lookup_num_tokens speculation_type target_lookbehind use_mtp"
    ),
    "transformers runs it only with code from a repository": (
        "constraints diversity_penalty dola_layers force_words_ids num_beam_groups penalty_alpha"
    ),
}
WHY = {name: why for why, names in REFUSED.items() for name in names.split()}
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
    _refuse_unknown("generate", options, (parameters | settings() | POPPED) - NOT_OPTIONS)


def settings() -> set[str]:
    """The fields of GenerationConfig."""
    return {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}


def answering(max_new_tokens: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generate() for an answer, complete and checked; UsageError for the first that is unknown, impossible
    or without effect. Without options: greedy. An option of sampling turns it on; a temperature of 0, or nearly, does
    not."""
    found: dict[str, Any] = {"do_sample": False, "num_beams": 1, **options, "max_new_tokens": most_of(max_new_tokens)}
    for name, value in options.items():
        if name in WHY:
            raise UsageError(f"{name}={quoted(value)} is no option of an answer: {WHY[name]}")
        if name not in settings():
            raise UsageError(f"no option {name!r}; {nearest(name, settings() - WHY.keys())}")
        if value is not None:
            found[name] = _checked(name, value)
    asked = [name for name in options if name in SAMPLING and options[name] is not None]
    if (heat := found.get("temperature")) is not None and heat < COLDEST:
        found = {name: value for name, value in found.items() if name not in SAMPLING}
    elif asked and options.get("do_sample") is False:
        raise UsageError(f"{asked[0]}={options[asked[0]]} has no effect with do_sample=False; leave one of them out")
    elif asked:
        found["do_sample"] = True
    return found


def most_of(max_new_tokens: object) -> int:
    """The most tokens of an answer, checked."""
    if _whole(max_new_tokens) and index(max_new_tokens) >= 1:  # pyright: ignore[reportArgumentType]
        return index(max_new_tokens)  # pyright: ignore[reportArgumentType]
    raise UsageError(
        f"max_new_tokens={quoted(max_new_tokens)} is no length of an answer; pass a whole number, 1 or more"
    )


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _words(value: object) -> bool:
    words = [value] if isinstance(value, str) else value
    return isinstance(words, list | tuple) and all(isinstance(word, str) and word for word in words) and bool(words)


# What a value must be. Hugging Face checks the others, but only when the clip has been read.
FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (lambda x: isinstance(x, bool), "True or False"),
    "num_beams": (lambda x: _whole(x) and x >= 1, "a whole number, 1 or more"),
    "min_new_tokens": (lambda x: _whole(x) and x >= 0, "a whole number, 0 or more"),
    "max_time": (lambda x: _number(x) and x > 0, "seconds, above 0"),
    "stop_strings": (_words, "a text or a list of texts, none of them empty"),
    "temperature": (lambda x: _number(x) and 0 <= x < 1e3, "0 (greedy) or a number above it; 1 is the base's own"),
    "top_k": (lambda x: _whole(x) and x >= 0, "a whole number, 0 (all tokens) or more"),
    "top_p": (lambda x: _number(x) and 0 < x <= 1, "a share above 0, at most 1"),
    "min_p": (lambda x: _number(x) and 0 <= x <= 1, "a share from 0 to 1"),
    "typical_p": (lambda x: _number(x) and 0 < x <= 1, "a share above 0, at most 1"),
    "repetition_penalty": (lambda x: _number(x) and 0 < x < 1e3, "a number above 0; 1 is none"),
    "no_repeat_ngram_size": (lambda x: _whole(x) and x >= 0, "a whole number, 0 (off) or more"),
}


def _checked(name: str, value: Any) -> Any:
    """A value, as Hugging Face takes it: it refuses whole numbers where it wants others."""
    right, form = FORMS.get(name, (None, ""))
    if right is not None and not right(value):
        raise UsageError(f"{name}={quoted(value)} must be {form}")
    return float(value) if name in SAMPLING | {"repetition_penalty"} and name != "top_k" and _number(value) else value


def _refuse_unknown(verb: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            remedy = nearest(name, known)
            if len(remedy) > LONGEST:
                remedy = "it comes from the inputs, or does not exist: see transformers.GenerationConfig"
            raise UsageError(f"{verb}: no option {name!r}; {remedy}")
