"""LanguageBind's audio tower: general sounds with their pitch, seven times a second.

In: the sound of a clip at any rate; channels are averaged. Out: a time step per 0.14 s, of 8 tokens with 1024 channels,
low frequencies first, or of fewer `rows`, which are means of these. The sound is encoded in consecutive windows of
10.36 s; the original samples three windows at random. Weights are downloaded for the first clip.

t frames of the spectrum, m mel bands, h w rows and columns of patches, d channels
"""

from __future__ import annotations

from functools import cached_property
from math import ceil
from typing import Annotated

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor

from pave.encoder import Encoder, EncoderSpec, Pass, Text, Whole, builder, divides
from pave.media import Clip
from pave.senses import languagebind
from pave.senses.fbank import HOP, SAMPLE_RATE, encode_patches, fbank, pieces_of
from pave.senses.languagebind import VIT_L, Tower
from pave.senses.weights import Release
from pave.sidechannel import SideTokens

# num_mel_bins, target_length, audio_mean and audio_std of LanguageBind_Audio_FT; the code divides by 2 std.
BANDS, FRAMES = 112, 1036
MEAN, DEVIATION = -4.2677393, 2 * 4.5689974
PATCH = 14  # bands and frames
PATCHES = (BANDS // PATCH, FRAMES // PATCH)
PLACE = "PAVE_LANGUAGEBIND_AUDIO"  # environment variable: a folder or file with the weights


class Options(languagebind.Options):
    """What a recipe may say."""

    release: Text = "LanguageBind/LanguageBind_Audio_FT"
    # Tokens per time step: the patches of all frequencies, or means of neighbours.
    rows: Annotated[Whole, Field(description="has 8, 4, 2 or 1 rows of tokens"), divides(PATCHES[0])] = PATCHES[0]


class LanguageBindAudio(Encoder):
    """Frozen. The location of its weights is not part of its spec."""

    pieces = pieces_of(FRAMES, PATCH)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="languagebind-audio",
            sense="audio",
            dim=VIT_L.hidden_size,
            rate=SAMPLE_RATE / (PATCH * HOP),
            grid=(options.rows, 1),
            revision=options.revision,
            licence="MIT",
            options=options.resolved,
        )

    def outline(self) -> Pass:
        with torch.device("meta"):
            return Pass(Tower(VIT_L, PATCHES, temporal=False), (torch.empty(1, 3, BANDS, FRAMES),), PATCHES[1])

    @property
    def releases(self) -> tuple[Release, ...]:
        return (self.options.published(PLACE),)

    @cached_property
    def network(self) -> Tower:
        """The tower with its weights, on the GPU if there is one."""
        return self.options.open(PLACE, PATCHES, temporal=False)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ rows 1 c); None for a clip without sound."""
        return encode_patches(clip, FRAMES, PATCH, self.tokens)

    def tokens(self, sound: Tensor) -> Tensor:
        """Samples of one window to the tokens (τ rows 1 c) of its complete patches."""
        mel = fbank(sound, BANDS)
        return self.encode_image(as_image(mel))[: len(mel) // PATCH]

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """An image (1 3 m t) to the tokens (74 rows 1 c) of all its columns, in float32."""
        weight = self.network.clip.embeddings.class_embedding
        x = self.network.pooled(image.to(weight), (self.options.rows, PATCHES[1]))
        return rearrange(x, "1 h w d -> w h 1 d").float().cpu()


def as_image(mel: Tensor) -> Tensor:
    """The spectrum (t m) of a window as LanguageBind's input (1 3 m t): normalised, repeated in three channels, and, if
    shorter than a window, repeated along time."""
    full = ((mel - MEAN) / DEVIATION).repeat(ceil(FRAMES / len(mel)), 1)[:FRAMES]
    return repeat(full, "t m -> 1 c m t", c=3)


build = builder(Options, LanguageBindAudio)
