"""Small sound encoders with seeded weights, their inputs, and streaming compared with encoding the whole sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from places import GOLDEN
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    CLIPVisionConfig,
    PeAudioConfig,
    PeAudioEncoderConfig,
    PeAudioFrameLevelModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from pave.encoder import Encoder, load_encoder, module_of
from pave.media.clip import Clip
from pave.senses.languagebind import VIT_L, Tower, tower
from pave.sidechannel import SideTokens
from pave.streaming.chunks import Chunk
from pave.streaming.encoders import streaming_encoder

BEATS = module_of("beats-audio").Sizes(patch=32, width=48, heads=4, layers=3)
IMAGEBIND = module_of("imagebind-audio").Sizes(width=96, heads=6, layers=3, dim=64)


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of the original implementation, and its weights."""
    tensors = load_file(GOLDEN / f"{name}_tiny.safetensors")
    return tensors, {key[8:]: tensor for key, tensor in tensors.items() if key.startswith("weights.")}


def whisper_speech(folder: Path) -> Any:
    ears = module_of("whisper-speech")
    config = WhisperConfig(
        d_model=128,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=512,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return ears.WhisperSpeech(ears.Options(weights=str(folder)), ears.Sizes(dim=128, layers=2))


def clap_audio(folder: Path) -> Any:
    ears = module_of("clap-audio")
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=16, hidden_size=128, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    )
    few = dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim"), 16)
    text = ClapTextConfig(vocab_size=64, num_hidden_layers=1, num_attention_heads=1, **few)
    torch.manual_seed(0)
    model: Any = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16))
    norm = model.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-30)  # about the mean of decibels of sound
    norm.running_var.fill_(400)
    model.save_pretrained(folder)
    return ears.ClapAudio(ears.Options(weights=str(folder)), audio)


def pe_audio(folder: Path) -> Any:
    ears = module_of("pe-audio")
    audio: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "dac_config": {"encoder_hidden_size": 4, "codebook_dim": 8},
    }
    text = {
        "model_type": "modernbert",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
        **{f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    }
    torch.manual_seed(0)
    PeAudioFrameLevelModel(PeAudioConfig(text_config=text, audio_config=audio)).save_pretrained(folder)
    return ears.PEAudio(ears.Options(weights=str(folder)), PeAudioEncoderConfig(**audio))


def beats_audio(folder: Path) -> Any:
    """With the network set directly: loading a checkpoint would start another process."""
    ears = module_of("beats-audio")
    encoder = ears.BeatsAudio(ears.Options(), BEATS)
    encoder.network = ears.beats(golden("beats")[1], {"cfg": ears.CONFIG}, BEATS, "a release", "")
    return encoder


def imagebind_audio(folder: Path) -> Any:
    """Needs PAVE_NONCOMMERCIAL=1 to load its weights."""
    save_file(golden("imagebind_audio")[1], folder / "audio.safetensors")
    return module_of("imagebind-audio").ImageBindAudio(str(folder / "audio.safetensors"), IMAGEBIND)


def languagebind_audio(folder: Path) -> Any:
    """With the network set directly."""
    with safe_open(GOLDEN / "languagebind_audio_tiny.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()["cfg"])
    with torch.device("meta"):
        config = CLIPVisionConfig(**{key: recorded[key] for key in recorded if hasattr(VIT_L, key)})
        outline = Tower(config, (8, 74), temporal=False)
    encoder: Any = load_encoder("languagebind-audio")
    encoder.network = tower(golden("languagebind_audio")[1], "a release", outline)
    return encoder


EARS: dict[str, Callable[[Path], Any]] = {
    each.__name__.replace("_", "-"): each
    for each in (whisper_speech, clap_audio, pe_audio, beats_audio, imagebind_audio, languagebind_audio)
} | {"logmel": lambda folder: load_encoder("logmel")}


def listener(encoder: Encoder) -> Callable[..., SideTokens]:
    """A function that encodes a sound (c n), by default at the encoder's sampling rate."""

    def tokens(sound: Tensor, rate: int = 0, start: float = 0.0) -> SideTokens:
        own = module_of(encoder.spec.name).SAMPLE_RATE
        side = encoder.encode(Clip(audio=sound, rate=rate or own, audio_start=start))
        assert side is not None
        return side

    return tokens


def noise(rate: int, seconds: float, channels: int = 1) -> Tensor:
    return torch.rand(channels, round(seconds * rate), generator=torch.Generator().manual_seed(0)) - 0.5


def hear_in_pieces(encoder: Encoder, sound: Tensor, rate: int, start: float = 0.4) -> int:
    """Assert that streaming a sound (c n) in pieces gives the tokens of the whole sound; returns how many of the tokens
    were finished before the end."""
    whole = encoder.encode(Clip(audio=sound, rate=rate, audio_start=start))
    ear, parts, known = streaming_encoder(encoder, "ears"), [], start
    for some in sound.split(round(1.3 * rate), dim=-1):
        for tokens, until in ear.feed(Chunk(None, None, some, rate, start)):
            assert tokens is not None and known <= tokens.times.min() and tokens.times.max() < until
            parts.append(tokens)
            known = until
    finished, rest = sum(len(part.times) for part in parts), ear.unfinished()
    heard = SideTokens.cat([*parts, *([] if rest is None else [rest])])
    assert whole is not None and len(parts) > 1 and heard.x.shape == whole.x.shape
    assert torch.allclose(heard.times, whole.times, rtol=0, atol=1e-9)
    assert torch.allclose(heard.spans, whole.spans, rtol=0, atol=1e-9)
    assert (heard.x - whole.x).abs().max() <= 1e-5 * whole.x.abs().max()
    return finished
