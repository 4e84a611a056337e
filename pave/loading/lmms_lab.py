"""Original LLaVA-OneVision checkpoints (`lmms-lab/llava-onevision-qwen2-*`), loaded bit for bit as their `llava-hf`
conversions.

In: their config.json and tokenizer. Out: a Hugging Face config, and the options with which from_pretrained reads their
weights. Names and numbers are from transformers' convert_llava_onevision_weights_to_hf.py, which made the `llava-hf`
checkpoints. Knows nothing of files and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, GenerationConfig, LlavaOnevisionConfig, PreTrainedTokenizerFast

from pave.errors import BaseModelError, nearest

ARCHITECTURE, FAMILY = "LlavaQwenForCausalLM", "llava_onevision"  # original name, model_type in transformers

KEYS = {  # original weight names -> those of transformers
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
}
UNUSED = re.compile(r"^model\.vision_tower\.(vision_model\.)?head\.")  # SigLIP's pooling head, which LLaVA drops

TOWERS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,  # of 27: LLaVA drops the last
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
TEXT = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
TEXT += ["num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout"]
TEXT += ["rope_theta", "rope_scaling", "use_sliding_window", "sliding_window", "max_window_layers"]
TEXT += ["tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"]  # keys of Qwen2 in config.json


def config_of(described: Mapping[str, Any], source: object) -> LlavaOnevisionConfig:
    """The Hugging Face config of an original, flat config.json."""
    choices: dict[str, list[Any]] = {
        "mm_vision_tower": [*TOWERS],
        "mm_projector_type": ["mlp2x_gelu"],
        "mm_spatial_pool_mode": ["bilinear", None],  # of a key frame's tokens; the default is bilinear
    }
    for key, known in choices.items():
        if (value := described.get(key)) not in known:
            cause = f"its {key} is {value!r}, which LlavaOnevision in transformers does not support"
            raise BaseModelError(f"{source}: {cause}; {nearest(str(value), filter(None, known))}")
    stored = described.get("torch_dtype")
    text = {key: described[key] for key in TEXT if key in described}
    tower = {"vision_use_head": False} | TOWERS[described["mm_vision_tower"]]
    return LlavaOnevisionConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=tower | {"model_type": "siglip_vision_model"},
        # llava-hf stores the original bfloat16 as float16, which rounds values below 2^-17 (3 in 10,000 weights of
        # standard deviation 0.02) and changes the fingerprint. Do the same here.
        dtype="float16" if stored == "bfloat16" else stored,
    )


def options(config: LlavaOnevisionConfig, tokenizer: PreTrainedTokenizerFast, source: object) -> dict[str, Any]:
    """Options of `from_pretrained`. Adds the missing placeholder tokens to the tokenizer; Qwen2's padded embedding
    already has rows for them."""
    placeholders = [AddedToken(token, special=True, normalized=False) for token in ("<image>", "<video>")]
    tokenizer.add_tokens(placeholders, special_tokens=True)
    known, text = tokenizer.get_vocab(), config.get_text_config()
    config.image_token_index, config.video_token_index = (known[token.content] for token in placeholders)
    if len(tokenizer) > text.vocab_size:
        raise BaseModelError(
            f"{source}: with <image> and <video> its tokenizer has {len(tokenizer)} tokens, its embedding "
            f"{text.vocab_size} rows; download the original checkpoint"
        )
    # Its generation_config.json would sample and penalise repetition even if the caller requests neither.
    return {"config": config, "key_mapping": KEYS, "generation_config": GenerationConfig.from_model_config(config)}
