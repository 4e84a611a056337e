"""Whisper's encoder (Radford et al. 2022): speech, fifty times a second, without transcription.

In: the sound of a clip at any rate; channels are averaged. Out: `rate` tokens per second, the last hidden state of the
encoder over windows of 30 seconds; the last window is padded with silence, whose tokens are dropped. Weights are
downloaded for the first clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pave.encoder import Count, Encoder, EncoderOptions, EncoderSpec, Pass, Pieces, Text, Weights, builder, divides
from pave.media import Clip
from pave.senses.sound import encode_windows
from pave.senses.weights import Release, one_of, opened
from pave.sidechannel import SideTokens

SAMPLE_RATE = 16_000  # Hz
WINDOW = 30 * SAMPLE_RATE  # samples; the network has no more position embeddings
HOP = 320  # samples from token to token: the hop of the spectrum is 160, and the second convolution has stride 2
TOKENS = SAMPLE_RATE // HOP  # per second
PLACE = "PAVE_WHISPER"  # environment variable: a folder or file with the weights


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder (table 1 of the paper; heads have 64 channels, MLPs four times the width)."""

    dim: int
    layers: int
    bands: int = 80


SMALL = {"tiny": Sizes(384, 4), "base": Sizes(512, 6), "small": Sizes(768, 12), "medium": Sizes(1024, 24)}
LARGE = {"large": Sizes(1280, 32), "large-v2": Sizes(1280, 32)}
FINER = {"large-v3": Sizes(1280, 32, bands=128), "large-v3-turbo": Sizes(1280, 32, bands=128)}
ENGLISH = {f"{name}.en": sizes for name, sizes in SMALL.items()}
RELEASES = {f"openai/whisper-{name}": sizes for name, sizes in (SMALL | ENGLISH | LARGE | FINER).items()}


class Options(EncoderOptions):
    """What a recipe may say."""

    release: Annotated[str, one_of(RELEASES)] = "openai/whisper-large-v2"  # a Hub repository
    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    # Tokens per second; fewer are means of the network's 50.
    rate: Annotated[Count, divides(TOKENS), Field(description="has 50, 25, 10, 5, 2 or 1 tokens per second")] = TOKENS
    # A folder, file or Hub repository with a network of the release's size; default: PAVE_WHISPER, else the release.
    weights: Weights = ""


class WhisperSpeech(Encoder):
    """Frozen. Each window of 30 seconds is a separate pass, so that no token depends on the number of windows."""

    pieces = Pieces(WINDOW / SAMPLE_RATE, SAMPLE_RATE)

    def __init__(self, options: Options, sizes: Sizes) -> None:
        self.options, self.sizes = options, sizes
        self.spec = EncoderSpec(
            name="whisper-speech",
            sense="audio",
            dim=sizes.dim,
            rate=options.rate,
            revision=options.revision,
            licence="MIT",  # of code and weights, according to openai/whisper
            options=options.resolved,
        )

    @cached_property
    def spectrum(self) -> WhisperFeatureExtractor:
        """Samples to log-mel: exact for a window, but silently truncates longer input."""
        return WhisperFeatureExtractor(self.sizes.bands)

    def outline(self) -> Pass:
        with torch.device("meta"):
            mel = torch.empty(1, self.sizes.bands, WINDOW // (HOP // 2))
            return Pass(outline(self.sizes), (mel,), WINDOW / SAMPLE_RATE * self.options.rate)

    @cached_property
    def network(self) -> WhisperEncoder:
        """The encoder with its weights; the decoder is not loaded."""
        release = Release(
            given=self.options.weights,
            variable=PLACE,
            repo=self.options.release,
            revision=self.options.revision,
            prefixes=("model.encoder.", "encoder."),
            others=r"(model\.)?decoder\.|proj_out\.",
            remedy=f"use {self.options.release}, or a model trained from it",
        )
        return opened(self.outline().run, release)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 1 c). Token k is centred at sample 320 k: that is frame 2 k of the spectrum, the middle of the
        three that its convolution reads."""
        pool = TOKENS // self.options.rate
        return encode_windows(clip, self.tokens, rate=SAMPLE_RATE, window=WINDOW, hop=HOP, centre=0, pool=pool)

    @torch.no_grad()
    def tokens(self, sound: Tensor) -> Tensor:
        """A window of up to 30 seconds (n,) to the tokens of all 30 (1500 1 1 c)."""
        mel = self.spectrum(sound.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        x = self.network(mel.to(self.network.device)).last_hidden_state
        return rearrange(x, "1 τ c -> τ 1 1 c").cpu()


def outline(sizes: Sizes) -> WhisperEncoder:
    """The network, with random weights."""
    config = WhisperConfig(
        d_model=sizes.dim,
        encoder_layers=sizes.layers,
        encoder_attention_heads=sizes.dim // 64,
        encoder_ffn_dim=4 * sizes.dim,
        num_mel_bins=sizes.bands,
    )
    return WhisperEncoder(config)


build = builder(Options, lambda options: WhisperSpeech(options, RELEASES[options.release]))
