"""Small random models that caption: BLIP for pictures, AST for sounds; and one that chats."""

from __future__ import annotations

import json
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
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [DEC]"
WORDS = "a red blue green ball drum bell on the floor moves left right up toy block car near door wall and then"
HEARD = ("bell", "drum", "beep", "whistle")
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LOUD = 8.0
PICTURE = {"image_size": 32, "patch_size": 8, "projection_dim": 32}
SEEING = (
    "{% for turn in messages %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
)
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


def write_seeing_chat(folder: Path) -> Path:
    """A LLaVA that answers a question about a picture."""
    torch.manual_seed(0)
    words = f"{SPECIAL} <image> {WORDS}".split()
    text, vision = LlamaConfig(vocab_size=len(words), **SMALL), CLIPVisionConfig(**PICTURE, **SMALL)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=words.index("<image>"), vision_feature_layer=-1
        )
    )
    _speak_up(model)
    model.save_pretrained(folder)
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[SEP]", "bos_token": "[DEC]"}
    own = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, Any] = {**named, "extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, **special)
    size = {"height": 32, "width": 32}
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size)
    LlavaProcessor(pictures, tokenizer, chat_template=SEEING, **options).save_pretrained(folder)
    return folder


def write_of_speech(folder: Path) -> Path:
    """A wav2vec 2.0 that writes down letters."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({each: place for place, each in enumerate(["<pad>", *"abcdefg|"])}))
    layers = {"conv_dim": (32, 32), "conv_stride": (16, 20), "conv_kernel": (16, 20), "num_feat_extract_layers": 2}
    groups = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=9, **layers, **groups, **SMALL))
    _speak_up(model)
    model.save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="<pad>", pad_token="<pad>")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
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
