"""Perception Encoder's audio encoder (PE-AV, Vyas et al. 2025): speech, music and other sound, 25 times a second.

In: the sound of a clip at any rate, frequencies up to 24 kHz; channels are averaged. Out: `rate` tokens per second, the
last hidden state over windows of 30 seconds; the last window ends with the sound. Weights are downloaded for the first
clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from transformers import PeAudioEncoder, PeAudioEncoderConfig, PeAudioFeatureExtractor

from pave.encoder import Count, Encoder, EncoderOptions, EncoderSpec, Pass, Pieces, Text, Weights, builder, divides
from pave.media import Clip
from pave.senses.sound import encode_windows
from pave.senses.weights import Release, one_of, opened
from pave.sidechannel import SideTokens

SAMPLE_RATE = 48_000  # Hz
WINDOW = 30 * SAMPLE_RATE  # samples, our choice: the network accepts 400 s, but time and memory grow with it
HOP = 1920  # samples from token to token: the strides of the codec, 2 · 8 · 10 · 12
TOKENS = SAMPLE_RATE // HOP  # per second
PLACE = "PAVE_PE_AUDIO"  # environment variable: a folder or file with the weights


@dataclass(frozen=True)
class Sizes:
    """Sizes of the transformer after the codec, from config.json of the releases; its heads have 128 channels."""

    dim: int
    layers: int
    wide: int  # channels inside the MLP


SIZES = {"small": Sizes(768, 12, 2048), "base": Sizes(1024, 16, 2752), "large": Sizes(1792, 28, 4800)}
KINDS = ("pe-av-{}", "pe-av-{}-16-frame", "pe-a-frame-{}")
RELEASES = {f"facebook/{kind.format(name)}": sizes for name, sizes in SIZES.items() for kind in KINDS}


class Options(EncoderOptions):
    """What a recipe may say."""

    release: Annotated[str, one_of(RELEASES)] = "facebook/pe-av-base"  # a Hub repository
    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    # Tokens per second; fewer are means of the network's 25.
    rate: Annotated[Count, divides(TOKENS), Field(description="has 25, 5 or 1 tokens per second")] = TOKENS
    # A folder, file or Hub repository with a network of the release's size; default: PAVE_PE_AUDIO, else the release.
    weights: Weights = ""


class PEAudio(Encoder):
    """Frozen. Each window of 30 seconds is a separate pass, so that no token depends on the number of windows."""

    pieces = Pieces(WINDOW / SAMPLE_RATE, SAMPLE_RATE)

    def __init__(self, options: Options, config: PeAudioEncoderConfig) -> None:
        self.options, self.config = options, config
        self.spec = EncoderSpec(
            name="pe-audio",
            sense="audio",
            dim=config.hidden_size,
            rate=options.rate,
            revision=options.revision,
            licence="Apache-2.0",
            options=options.resolved,
        )

    def outline(self) -> Pass:
        with torch.device("meta"):
            sound = torch.empty(1, 1, WINDOW)
            return Pass(PeAudioEncoder(self.config), (sound,), WINDOW / SAMPLE_RATE * self.options.rate)

    @cached_property
    def network(self) -> PeAudioEncoder:
        """The audio encoder with its weights; the video, text and joint encoders are not loaded."""
        network = self.outline().run
        network.rotary_emb = type(network.rotary_emb)(self.config)  # computed, not learned: in no release
        release = Release(
            given=self.options.weights,
            variable=PLACE,
            repo=self.options.release,
            revision=self.options.revision,
            # In PE-AV, the first and second are tied and only one is saved; the third is PE-A-Frame's.
            prefixes=("audio_model.audio_encoder.", "audio_video_encoder.embedder.audio_encoder.", "audio_encoder."),
            others=r"(audio_model\.)?(text_model\.|\w+_head\.|\w+_logit_(scale|bias)$)|(video_model|audio_video_encoder)\.",
            remedy=f"use {self.options.release}, or a model trained from it",
        )
        return opened(network, release)

    @cached_property
    def extract(self) -> PeAudioFeatureExtractor:
        """Pads a sound by reflection to a whole number of tokens."""
        return PeAudioFeatureExtractor()

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 1 c)."""
        pool = TOKENS // self.options.rate
        return encode_windows(clip, self.tokens, rate=SAMPLE_RATE, window=WINDOW, hop=HOP, centre=0.5, pool=pool)

    @torch.no_grad()
    def tokens(self, sound: Tensor) -> Tensor:
        """A window of up to 30 seconds (n,) to its tokens (τ 1 1 c)."""
        # Not `.input_values`: the extractor shadows this tensor by an attribute of the same name.
        wave = self.extract(sound.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_values"]
        x = self.network(wave.to(self.network.device)).last_hidden_state
        return rearrange(x, "1 τ c -> τ 1 1 c").cpu()


def config_of(sizes: Sizes) -> PeAudioEncoderConfig:
    """All other values are the defaults of transformers, which match the releases."""
    return PeAudioEncoderConfig(
        hidden_size=sizes.dim,
        intermediate_size=sizes.wide,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.dim // 128,
    )


build = builder(Options, lambda options: PEAudio(options, config_of(RELEASES[options.release])))
