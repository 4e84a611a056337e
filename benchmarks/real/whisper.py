"""Whisper tiny.en: a CTranslate2 model file to a folder of Hugging Face.

In: `model.bin` of CTranslate2 (version 6: names, shapes, dtypes and raw bytes, little-endian) and its tokenizer.json.
Out: config, safetensors, feature extractor and tokenizer. CTranslate2 fuses the query, key and value of self-attention
into `linear_0`, and key and value of cross-attention into `linear_1`; keys have no bias in Whisper.

c channels
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from pave.errors import DataError

VERSION = 6
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # CTranslate2's DataType, in its order
START, END, PLAIN = 50257, 50256, 50362  # tiny.en: start of a transcript, end of a text, no time stamps
LONGEST = 60  # tokens of a transcript
RATE = 16_000  # Hz


def read(file: Path) -> dict[str, Tensor]:
    """All tensors of a model file, in float32. DataError for another version, or a file cut short."""
    content, place = file.read_bytes(), 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return values

    def text() -> str:
        (raw,) = take(f"{take('H')[0]}s")
        return raw.rstrip(b"\0").decode()

    tensors = {}
    try:
        (version,) = take("I")
        if version != VERSION:
            raise DataError(f"{file}: is version {version} of CTranslate2's model files; only {VERSION} is read")
        text()  # the name of the specification
        _, count = take("II")
        for _ in range(count):
            name, (rank,) = text(), take("B")
            shape = take(f"{rank}I")
            kind, size = take("BI")
            (raw,) = take(f"{size}s")
            tensors[name] = torch.from_numpy(np.frombuffer(raw, DTYPES[kind]).reshape(shape).astype(np.float32))
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise DataError(f"{file}: is no whole model file of CTranslate2 ({error}); fetch it again") from None
    return tensors


def renamed(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The names that transformers gives the same weights."""
    found: dict[str, Tensor] = {}

    def norm(target: str, source: str) -> None:
        found[f"{target}.weight"], found[f"{target}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    def linear(target: str, source: str) -> None:
        found[f"{target}.weight"], found[f"{target}.bias"] = tensors[f"{source}/weight"], tensors[f"{source}/bias"]

    def fused(target: str, source: str, parts: str) -> None:
        weights = tensors[f"{source}/weight"].chunk(len(parts))
        biases = tensors[f"{source}/bias"].chunk(len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            found[f"{target}.{part}_proj.weight"] = weight
            if part != "k":
                found[f"{target}.{part}_proj.bias"] = bias

    for side in ("encoder", "decoder"):
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        found[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        for target, source in _layers(side, layers):
            fused(f"{target}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
            linear(f"{target}.fc1", f"{source}/ffn/linear_0")
            linear(f"{target}.fc2", f"{source}/ffn/linear_1")
    for target, source in _layers("decoder", layers):
        linear(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
        fused(f"{target}.encoder_attn", f"{source}/attention/linear_1", "kv")
        linear(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
        norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
    linear("model.encoder.conv1", "encoder/conv1")
    linear("model.encoder.conv2", "encoder/conv2")
    found["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    found["proj_out.weight"] = found["model.decoder.embed_tokens.weight"]
    return found


def _layers(side: str, layers: int) -> Iterator[tuple[str, str]]:
    return ((f"model.{side}.layers.{number}", f"{side}/layer_{number}") for number in range(layers))


def network(tensors: Mapping[str, Tensor], heads: int | None = None) -> WhisperForConditionalGeneration:
    """The whole network; every weight must be there. heads: None for the 64 channels each that Whisper has."""
    words, dim = tensors["decoder/embeddings/weight"].shape
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/weight") for name in tensors)
    heads, hidden = heads or dim // 64, tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    config = WhisperConfig(
        vocab_size=words,
        d_model=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        decoder_start_token_id=min(START, words - 1),
        bos_token_id=min(END, words - 1),
        eos_token_id=min(END, words - 1),
        pad_token_id=min(END, words - 1),
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict(renamed(tensors, layers))
    return model


def convert(package: Path, folder: Path) -> None:
    """Write the folder that `PAVE_WHISPER` may name."""
    (file,) = package.rglob("model.bin")
    model = network(read(file))
    model.save_pretrained(folder)
    WhisperFeatureExtractor(model.config.num_mel_bins).save_pretrained(folder)
    shutil.copy(file.with_name("tokenizer.json"), folder)


class Transcriber:
    """Whisper itself, greedy: the yardstick for a patch that reads its encoder."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.features = WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    @torch.no_grad()
    def text(self, sound: np.ndarray) -> str:
        """What is said in up to 30 seconds of sound (n,) at 16 kHz."""
        mel = self.features(sound, sampling_rate=RATE, return_tensors="pt").input_features
        seen = self.model.model.encoder(mel)
        ids, past = [START, PLAIN], None
        for _ in range(LONGEST):
            new = torch.tensor([ids if past is None else ids[-1:]])
            out = self.model(encoder_outputs=seen, decoder_input_ids=new, past_key_values=past, use_cache=True)
            past = out.past_key_values
            ids.append(int(out.logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        return str(self.tokenizer.decode([each for each in ids[2:] if each != END])).strip()
