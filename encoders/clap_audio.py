"""CLAP's ear (Wu et al. 2023; HTSAT, Chen et al. 2022): which sounds there are, in two halves of the spectrum.

In: the sound of a clip at any rate, of which CLAP hears what is below 14 kHz; several channels are mixed. Out: 3.2
steps per second of two tokens, the low half and the high half: the last hidden state over windows of ten seconds. A
shorter last window is repeated as CLAP learned it, and no token of a repetition is kept. Weights are fetched when the
first clip is heard.
"""

from __future__ import annotations

from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Pass, Pieces, Text, Weights, builder
from pave.media import Clip
from pave.senses.sound import hear
from pave.senses.weights import Release, opened
from pave.sidechannel import SideTokens

RELEASE = "laion/clap-htsat-unfused"
SAMPLE_RATE = 48_000  # Hz
STEPS = 32  # of a window
WINDOW = 10 * SAMPLE_RATE  # samples; the extractor would cut a longer sound at random
HOP = WINDOW // STEPS
LOWEST = 50  # Hz, as the release's preprocessor_config.json has it
PLACE = "PAVE_CLAP"  # environment: a folder or file with the weights


class Options(EncoderOptions):
    """What a recipe may say."""

    revision: Text = "main"  # of the repo; a commit makes it exact
    # A folder or file on this machine, or another repo of the Hub, that holds the release or what was trained from it;
    # without it, what PAVE_CLAP says; without that, the Hub.
    weights: Weights = ""


class ClapAudio(Encoder):
    """Frozen. A window of ten seconds is one pass, so that no token depends on how many windows a clip has."""

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
        """Samples to log-mel. Nothing is random as long as a sound is no longer than a window; "rand_trunc" only says
        that the filters are those of the releases without fusion."""
        return ClapFeatureExtractor(frequency_min=LOWEST, truncation="rand_trunc")

    def outline(self) -> Pass:
        with torch.device("meta"):
            mel = torch.empty(1, 1, 1 + WINDOW // 480, self.config.num_mel_bins)  # frames are 480 samples apart
            return Pass(ClapAudioModel(self.config), (mel,), STEPS)

    @cached_property
    def network(self) -> ClapAudioModel:
        """The audio half with its weights, before its projection; the other half is not loaded."""
        release = Release(
            given=self.options.weights,
            place=PLACE,
            repo=RELEASE,
            revision=self.options.revision,
            prefixes=("audio_model.", ""),
            others=r"text_model\.|(text|audio)_projection\.|logit_scale_[at]$",
            again=f"give {RELEASE}, or what was trained from it",
        )
        return opened(self.outline().run, release)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 2 1 c), the low half of the spectrum first."""
        return hear(clip, self.tokens, rate=SAMPLE_RATE, window=WINDOW, hop=HOP, centre=0.5)

    @torch.no_grad()
    def tokens(self, sound: Tensor) -> Tensor:
        """A window of up to ten seconds (n,) to the tokens of all ten (32 2 1 c)."""
        mel = self.spectrum(sound.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        x = self.network(mel.to(self.network.device)).last_hidden_state
        return rearrange(x, "1 c h τ -> τ h 1 c").cpu()


build = builder(Options, lambda options: ClapAudio(options, ClapAudioConfig()))
