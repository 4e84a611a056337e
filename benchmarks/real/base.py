"""The base: a language model of text behind a small tower and projector, in the form of LLaVA-OneVision.

In: a folder with a Llama, eyes. Out: a folder that `pave.load` opens. The language model's weights are as they were.
Knows nothing of clips.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tower import VISION, Eyes
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

FRAMES = 2  # key frames, unless a recipe says otherwise
# Two words of its vocabulary that its training reserved for notebooks stand for pictures and films.
IMAGE, VIDEO, LINE = "<jupyter_output>", "<empty_output>", "Ċ"


def config(language: LlamaForCausalLM, tokenizer: Any, vision: dict[str, Any] | None = None) -> LlavaOnevisionConfig:
    """Of the whole model."""
    image, video = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
    sizes = VISION if vision is None else vision
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**sizes).to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=image,
        video_token_index=video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[sizes["image_size"]] * 2],
        tie_word_embeddings=True,
    )


def words(language: LlamaForCausalLM, tokenizer: Any, names: list[str]) -> tuple[Tensor, Tensor]:
    """The mean embedding of each name's words (n d), and of all words (d)."""
    table = language.model.embed_tokens.weight.detach().float()
    ids = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in names]
    return torch.stack([table[each].mean(0) for each in ids]), table.mean(0)


def line(language: LlamaForCausalLM, tokenizer: Any) -> Tensor:
    """The embedding of a line's end (d), which closes the visual tokens."""
    return language.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(LINE)].detach()


def assemble(language: LlamaForCausalLM, tokenizer: Any, eyes: Eyes, folder: Path) -> None:
    """Write the folder, in bfloat16."""
    model: Any = LlavaOnevisionForConditionalGeneration(eyes.config)
    model.to(torch.bfloat16)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(eyes.tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(eyes.projector.state_dict())
    model.model.image_newline.data.copy_(line(language, tokenizer))
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pave.json").write_text(json.dumps({"frames": FRAMES}))


def opened(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """A language model in bfloat16, as it is stored, and its tokenizer."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval(), AutoTokenizer.from_pretrained(folder)
