"""CLAP's audio encoder (Wu et al. 2023; HTSAT, Chen et al. 2022): general sounds, in two halves of the spectrum.

In: the sound of a clip at any rate, of which CLAP uses frequencies below 14 kHz; channels are averaged. Out: 3.2 steps
per second of two tokens, the low half and the high half: the last hidden state over windows of ten seconds. A shorter
last window is repeated, as in CLAP's training; tokens of repetitions are dropped. Weights are downloaded for the first
clip.
"""

from __future__ import annotations

from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Pass, Pieces, Text, Weights, builder
from pave.media import Clip
from pave.senses.sound import encode_windows
from pave.senses.weights import Release, opened
from pave.sidechannel import SideTokens

RELEASE = "laion/clap-htsat-unfused"
SAMPLE_RATE = 48_000  # Hz
STEPS = 32  # of a window
WINDOW = 10 * SAMPLE_RATE  # samples; the extractor would cut a longer sound at random
HOP = WINDOW // STEPS
LOWEST = 50  # Hz, from the release's preprocessor_config.json
PLACE = "PAVE_CLAP"  # environment variable: a folder or file with the weights


class Options(EncoderOptions):
    """What a recipe may say."""

    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    # A folder, file or Hub repository: the release, or a model trained from it; default: PAVE_CLAP, else the release.
    weights: Weights = ""


class ClapAudio(Encoder):
    """Frozen. Each window of ten seconds is a separate pass, so that no token depends on the number of windows."""

    pieces = Pieces(WINDOW / SAMPLE_RATE, SAMPLE_RATE)

    def __init__(self, options: Options, config: ClapAudioConfig) -> None:
        self.options, self.config = options, config
        self.spec = EncoderSpec(
            name="clap-audio",
            sense="audio",
            dim=config.hidden_size,
            rate=SAMPLE_RATE / HOP,
            grid=(2, 1),
            revision=options.revision,
            licence="Apache-2.0",
            options=options.resolved,
        )

    @cached_property
    def spectrum(self) -> ClapFeatureExtractor:
        """Samples to log-mel. Not random, since no input is longer than a window; "rand_trunc" only selects the filters
        of releases without fusion."""
        return ClapFeatureExtractor(frequency_min=LOWEST, truncation="rand_trunc")

    def outline(self) -> Pass:
        with torch.device("meta"):
            mel = torch.empty(1, 1, 1 + WINDOW // 480, self.config.num_mel_bins)  # frames are 480 samples apart
            return Pass(ClapAudioModel(self.config), (mel,), STEPS)

    @cached_property
    def network(self) -> ClapAudioModel:
        """The audio encoder with its weights, without its projection; the text encoder is not loaded."""
        release = Release(
            given=self.options.weights,
            variable=PLACE,
            repo=RELEASE,
            revision=self.options.revision,
            prefixes=("audio_model.", ""),
            others=r"text_model\.|(text|audio)_projection\.|logit_scale_[at]$",
            remedy=f"use {RELEASE}, or a model trained from it",
        )
        return opened(self.outline().run, release)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 2 1 c), the low half of the spectrum first."""
        return encode_windows(clip, self.tokens, rate=SAMPLE_RATE, window=WINDOW, hop=HOP, centre=0.5)

    @torch.no_grad()
    def tokens(self, sound: Tensor) -> Tensor:
        """A window of up to ten seconds (n,) to the tokens of all ten (32 2 1 c)."""
        mel = self.spectrum(sound.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        x = self.network(mel.to(self.network.device)).last_hidden_state
        return rearrange(x, "1 c h τ -> τ h 1 c").cpu()


build = builder(Options, lambda options: ClapAudio(options, ClapAudioConfig()))
