"""Checkpoints as LLaVA-OneVision's authors write them (`lmms-lab/llava-onevision-qwen2-*`), opened as the very bases
that `llava-hf` made of them.

In: their config.json and tokenizer. Out: a Hugging Face config, and what Hugging Face's own loader must be told to read
their weights. Names and numbers are those of transformers' convert_llava_onevision_weights_to_hf.py, which made the
`llava-hf` checkpoints. Knows nothing of files and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, GenerationConfig, LlavaOnevisionConfig, PreTrainedTokenizerFast

from pave.errors import BaseModelError, nearest

ARCHITECTURE, FAMILY = "LlavaQwenForCausalLM", "llava_onevision"  # in their words, in those of Hugging Face

KEYS = {  # names of weights
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
}
UNUSED = re.compile(r"^model\.vision_tower\.(vision_model\.)?head\.")  # SigLIP's own pooling, which LLaVA cuts off

TOWERS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,  # of 27: LLaVA cuts off the last
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
TEXT = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
TEXT += ["num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout"]
TEXT += ["rope_theta", "rope_scaling", "use_sliding_window", "sliding_window", "max_window_layers"]
TEXT += ["tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"]  # what is Qwen2's in a flat config.json


def config_of(described: Mapping[str, Any], source: object) -> LlavaOnevisionConfig:
    """Their flat config.json as Hugging Face has it."""
    choices: dict[str, list[Any]] = {
        "mm_vision_tower": [*TOWERS],
        "mm_projector_type": ["mlp2x_gelu"],
        "mm_spatial_pool_mode": ["bilinear", None],  # of a key frame's tokens; unsaid, it is bilinear
    }
    for key, known in choices.items():
        if (value := described.get(key)) not in known:
            cause = f"its {key} is {value!r}, which no Hugging Face model of this family has"
            raise BaseModelError(f"{source}: {cause}; {nearest(str(value), filter(None, known))}")
    stored = described.get("torch_dtype")
    text = {key: described[key] for key in TEXT if key in described}
    tower = {"vision_use_head": False} | TOWERS[described["mm_vision_tower"]]
    return LlavaOnevisionConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=tower | {"model_type": "siglip_vision_model"},
        # llava-hf keeps the authors' bfloat16 as float16, which rounds what is smaller than 2^-17: of weights with a
        # deviation of 0.02 three in 10,000, enough for another fingerprint. What was done there is done here.
        dtype="float16" if stored == "bfloat16" else stored,
    )


def options(config: LlavaOnevisionConfig, tokenizer: PreTrainedTokenizerFast, source: object) -> dict[str, Any]:
    """What `from_pretrained` must be told. The tokenizer gets the placeholders that theirs does not have; the rows of
    the embedding that wait for them are there, since Qwen2 pads it."""
    places = [AddedToken(token, special=True, normalized=False) for token in ("<image>", "<video>")]
    tokenizer.add_tokens(places, special_tokens=True)
    known, text = tokenizer.get_vocab(), config.get_text_config()
    config.image_token_index, config.video_token_index = (known[place.content] for place in places)
    if len(tokenizer) > text.vocab_size:
        raise BaseModelError(
            f"{source}: with <image> and <video> its tokenizer has {len(tokenizer)} tokens, its embedding "
            f"{text.vocab_size} rows; fetch the checkpoint as its authors released it"
        )
    # Theirs would sample and punish repetition, also where the caller asks for neither.
    return {"config": config, "key_mapping": KEYS, "generation_config": GenerationConfig.from_model_config(config)}
