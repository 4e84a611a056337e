"""Small random models that caption: BLIP for pictures, AST for sounds; and one that chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [DEC]"
WORDS = "a red blue green ball drum bell on the floor moves left right up toy block car near door wall and then"
HEARD = ("bell", "drum", "beep", "whistle")
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LOUD = 8.0
CHAT = "{% for each in messages %}[CLS] {{ each.content }} [SEP] {% endfor %}[DEC]"


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: place for place, word in enumerate(f"{SPECIAL} {WORDS}".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    named = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[DEC]", "eos": "[SEP]"}
    special: dict[str, Any] = {f"{name}_token": token for name, token in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def write_of_pictures(folder: Path) -> Path:
    """A BLIP that talks about a picture."""
    torch.manual_seed(0)
    text = {"vocab_size": len(f"{SPECIAL} {WORDS}".split()), "encoder_hidden_size": 32, "projection_dim": 32, **SMALL}
    text |= {"bos_token_id": 4, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.02, "projection_dim": 32, **SMALL}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=32))
    _speak_up(model)
    model.generation_config.update(suppress_tokens=[*range(len(SPECIAL.split()))])
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), make_tokenizer()).save_pretrained(folder)
    return folder


def write_of_sounds(folder: Path) -> Path:
    """An AST that knows four sounds."""
    torch.manual_seed(0)
    named: dict[str, Any] = {
        "label2id": {name: place for place, name in enumerate(HEARD)},
        "id2label": dict(enumerate(HEARD)),
    }
    size: dict[str, Any] = {"max_length": 64, "num_mel_bins": 32}
    model = ASTForAudioClassification(ASTConfig(**size, **SMALL, **named))
    _speak_up(model)
    model.save_pretrained(folder)
    ASTFeatureExtractor(**size).save_pretrained(folder)
    return folder


def _speak_up(model: torch.nn.Module) -> None:
    """Larger weights: with those that it begins with, it says the same of everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(LOUD if parameter.ndim > 1 else 1)


def write_chat(folder: Path, template: str | None = CHAT) -> Path:
    """A Llama that talks at random."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(f"{SPECIAL} {WORDS}".split()), **SMALL, bos_token_id=4, eos_token_id=3, pad_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
