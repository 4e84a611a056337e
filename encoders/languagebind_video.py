"""LanguageBind's video tower: motion between the key frames, as in the PAVE paper's features.

In: a clip of a file, which is read again at two frames per second; or frames and times passed as `fast`. Out: 2 x 2
tokens of 1024 channels per frame, in groups of eight frames that attend to each other: a token spans its group. Weights
are downloaded for the first clip. Without a GPU a group takes almost a minute.
"""

from __future__ import annotations

from functools import cached_property
from math import floor

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pave.encoder import Encoder, EncoderSpec, Groups, Pass, Text, builder
from pave.media import Clip
from pave.senses import languagebind, pictures
from pave.senses.languagebind import GROUP, VIT_L, Tower
from pave.senses.weights import Release
from pave.sidechannel import SideTokens

RATE = 2  # frames per second, as in the PAVE paper
SIDE = 224  # pixels
PATCHES, GRID = (16, 16), (2, 2)
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
STD = (0.26862954, 0.26130258, 0.27577711)
PLACE = "PAVE_LANGUAGEBIND_VIDEO"  # environment variable: a folder or file with the weights


class Options(languagebind.Options):
    """What a recipe may say."""

    release: Text = "LanguageBind/LanguageBind_Video_merge"  # that of the PAVE paper's features, which are in float16


class LanguageBindVideo(Encoder):
    """Frozen. The location of its weights is not part of its spec. Each group of eight frames is a separate pass, so
    that no token depends on the number of groups."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="languagebind-video",
            sense="fast",
            dim=VIT_L.hidden_size,
            rate=RATE,
            grid=GRID,
            revision=options.revision,
            licence="MIT",
            options=options.resolved,
        )

    def outline(self) -> Pass:
        with torch.device("meta"):
            return Pass(Tower(VIT_L, PATCHES, temporal=True), (torch.empty(GROUP, 3, SIDE, SIDE),), GROUP)

    @property
    def releases(self) -> tuple[Release, ...]:
        return (self.options.published(PLACE),)

    @cached_property
    def network(self) -> Tower:
        """The tower with its weights, on the GPU if there is one."""
        return self.options.open(PLACE, PATCHES, temporal=True)

    @property
    def groups(self) -> Groups:
        return Groups(RATE, GROUP)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 2 2 c) at the instants of `pictures.spread`; None for a clip without pictures."""
        dense = pictures.fast(clip)
        if dense is None:
            return None
        times = pictures.spread(dense, RATE, GROUP)
        x = torch.cat([self.tokens(frames) for frames in pictures.groups(dense, times, GROUP)])
        spans = rearrange(times, "(g t) -> g t", t=GROUP)[:, (0, -1)].repeat_interleave(GROUP, 0)
        return SideTokens(x, times, spans, torch.ones(x.shape[:3], dtype=torch.bool))

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """One group of frames uint8 (8 3 y x) to tokens (8 2 2 c) in float32."""
        weight = self.network.clip.embeddings.class_embedding
        return self.network.pooled(pixels(frames).to(weight), GRID).float().cpu()


def pixels(frames: Tensor) -> Tensor:
    """Frames uint8 (t 3 y x) to pixels (t 3 224 224) in LanguageBind's order: normalised, then scaled by plain bilinear
    interpolation to the shorter side, then cropped to the centre."""
    short = pictures.shorter(frames)
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in (MEAN, STD))
    size = [SIDE if side == short else floor(side / short * SIDE) for side in frames.shape[2:]]
    scaled = F.interpolate((frames.float() / 255 - mean) / std, size=size, mode="bilinear", align_corners=False)
    top, left = (round((side - SIDE) / 2) for side in size)
    return scaled[..., top : top + SIDE, left : left + SIDE]


build = builder(Options, LanguageBindVideo)
