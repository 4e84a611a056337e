"""A small random model of every family of bases, with the special tokens of its prompts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma4Config,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    VideoLlama3Config,
    VideoLlavaConfig,
)

from pave.base import Host

FRAMES, SIDE = 4, 56  # key frames of a clip; pixels a side: a 4 x 4 patch grid, pooled to 2 x 2 visual tokens
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
VISION: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}  # of 8 pairs of a head's channels
Ids = Callable[[str], int]


def llava_onevision(ids: Ids, rows: int) -> Any:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=14, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, vocab_size=rows),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[SIDE, SIDE]],
    )


def video_llava(ids: Ids, rows: int) -> Any:
    return VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=14),
        text_config=LlamaConfig(**TEXT, vocab_size=rows),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
    )


def llava_next_video(ids: Ids, rows: int) -> Any:
    return LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=14),
        text_config=LlamaConfig(**TEXT, vocab_size=rows),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE]],
    )


def qwen_tokens(ids: Ids) -> dict[str, Any]:
    names = ("vision_start", "vision_end")
    marks = {f"{name}_token_id": ids(f"<|{name}|>") for name in names}
    return {"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"), **marks}


def qwen2_vl(ids: Ids, rows: int) -> Any:
    vision = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2}
    text = {**TEXT, "vocab_size": rows, "rope_parameters": ROPE}
    return Qwen2VLConfig(vision_config=vision, text_config=text, **qwen_tokens(ids))


def qwen2_5_vl(ids: Ids, rows: int) -> Any:
    vision = {"depth": 2, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "patch_size": 14}
    vision |= {"intermediate_size": 96, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    text = {**TEXT, "vocab_size": rows, "rope_parameters": ROPE}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **qwen_tokens(ids))


def qwen3_vl(ids: Ids, rows: int) -> Any:
    vision = {"depth": 3, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "patch_size": 14}
    vision |= {"intermediate_size": 96, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    text = {**TEXT, "vocab_size": rows, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    return Qwen3VLConfig(vision_config=vision, text_config=text, **qwen_tokens(ids))


def glm(kind: Any, ids: Ids, rows: int, **beyond: Any) -> Any:
    vision = {"depth": 2, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "patch_size": 14}
    vision |= {"intermediate_size": 96, "image_size": SIDE}
    text = {**TEXT, **beyond, "vocab_size": rows, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
    tokens: dict[str, Any] = {"image_token_id": ids("<|image|>"), "video_token_id": ids("<|video|>")}
    for name in ("image", "video"):
        tokens |= {
            f"{name}_start_token_id": ids(f"<|begin_of_{name}|>"),
            f"{name}_end_token_id": ids(f"<|end_of_{name}|>"),
        }
    return kind(vision_config=vision, text_config=text, **tokens)


def glm4v(ids: Ids, rows: int) -> Any:
    return glm(Glm4vConfig, ids, rows)


def glm46v(ids: Ids, rows: int) -> Any:
    return glm(Glm46VConfig, ids, rows)


def glm4v_moe(ids: Ids, rows: int) -> Any:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return glm(Glm4vMoeConfig, ids, rows, **experts)


def video_llama_3(ids: Ids, rows: int) -> Any:
    return VideoLlama3Config(
        vision_config={**VISION, "patch_size": 14},
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": rows},
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
    )


def internvl(ids: Ids, rows: int) -> Any:
    return InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [14, 14]},
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": rows},
        image_token_id=ids("<IMG_CONTEXT>"),
    )


def smolvlm(ids: Ids, rows: int) -> Any:
    return SmolVLMConfig(
        vision_config={**VISION, "image_size": SIDE, "patch_size": 14},
        text_config={**TEXT, "model_type": "llama", "vocab_size": rows, "pad_token_id": 0},
        image_token_id=ids("<image>"),
        scale_factor=2,
    )


def gemma4(ids: Ids, rows: int) -> Any:
    vision = {**VISION, "num_key_value_heads": 4, "head_dim": 12, "global_head_dim": 12, "patch_size": 14}
    vision |= {"pooling_kernel_size": 2, "position_embedding_size": 64}
    text = {**TEXT, "vocab_size": rows, "head_dim": 16, "global_head_dim": 32, "sliding_window": 1024}
    text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": rows, "pad_token_id": 0}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "use_bidirectional_attention": "vision"}
    return Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        image_token_id=ids("<|image_soft|>"),
        video_token_id=ids("<|video|>"),
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
    )


FAMILIES = {
    each.__name__: each
    for each in (
        llava_onevision,
        video_llava,
        llava_next_video,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        glm4v,
        glm46v,
        glm4v_moe,
        video_llama_3,
        internvl,
        smolvlm,
        gemma4,
    )
}
# Special tokens of the templates and around the key frames that the test tokenizer does not have.
MARKS = """<s> </s> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> [gMASK] <sop> <|user|> <|assistant|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|image|> <|video|> <img> </img> <IMG_CONTEXT>
<fake_token_around_image> <global-img> <end_of_utterance> <bos> <|turn> <turn|> <|image> <image|> <|image_soft|>
<|channel> <channel|>"""


def with_marks(tokenizer: PreTrainedTokenizerFast, without: str = "") -> PreTrainedTokenizerFast:
    """The same tokenizer with the special tokens of all families except one."""
    grown: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )
    grown.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS.split() if mark != without])
    return grown


def make_base(
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    family: str = "llava_onevision",
    side: int = SIDE,
) -> Host:
    """A base whose visual tokens affect the logits: with the usual initial scale the effect would be tiny."""
    if family != "llava_onevision":
        tokenizer = with_marks(tokenizer)
    # padding rows after the vocabulary, as in Qwen2's checkpoints
    config = FAMILIES[family](tokenizer.get_added_vocab().__getitem__, len(tokenizer) + 12)
    if side != SIDE and hasattr(config.vision_config, "image_size"):
        config.vision_config.image_size = [side, side] if family == "internvl" else side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    base: Host = import_module(f"pave.bases.{family}").BASE(model.to(dtype=dtype), tokenizer, frames=FRAMES)
    if hasattr(base, "side"):
        base.side = side  # type: ignore[attr-defined]  # only of families that take frames of any size
    return base
