"""V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985): motion, from self-supervised learning on videos.

In: a clip of a file, which is read again at `rate` frames per second; or frames and times passed as `fast`. Out: a
small grid of tokens of 1024 channels per pair of frames, in windows of frames that attend to each other: a token spans
its window. Weights are downloaded for the first clip. Without a GPU a window of 16 frames takes half a minute.

t frames, τ pairs of frames, y x patches, h w grid, c channels
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import BeforeValidator, Field
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from pave.encoder import Count, Encoder, EncoderOptions, EncoderSpec, Groups, Pass, Text, Weights, builder
from pave.media import Clip, preprocess
from pave.senses import pictures
from pave.senses.weights import Release, opened
from pave.sidechannel import SideTokens

VIT_L = VJEPA2Config()  # its defaults are the sizes of facebook/vjepa2-vitl-fpc64-256
PAIR = VIT_L.tubelet_size  # frames of a token
SIDE = VIT_L.crop_size  # pixels
EDGE = SIDE * 256 // 224  # pixels of the shorter side before the crop
PATCHES = (16, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
LONGEST = 64  # frames of a window: the network was not trained on longer ones
PLACE = "PAVE_VJEPA2"  # environment variable: a folder or file with the weights


def _grid(grid: Any) -> tuple[int, int]:
    return pictures.grid_of(grid, PATCHES, "vjepa2-video")


class Options(EncoderOptions):
    """What a recipe may say. Rate and window are those of the first phase of training (facebookresearch/vjepa2,
    configs/train/vitl16)."""

    release: Text = "facebook/vjepa2-vitl-fpc64-256"  # a Hub repository, with a ViT-L
    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    rate: pictures.Rate = 4.0  # frames per second
    # Per window.
    frames: Annotated[
        Count, Field(le=LONGEST, multiple_of=PAIR, description=f"needs windows of 2, 4, … {LONGEST} frames")
    ] = 16
    grid: Annotated[tuple[int, int], BeforeValidator(_grid)] = (2, 2)  # rows and columns of tokens
    weights: Weights = ""  # a folder or file with the release; default: PAVE_VJEPA2, else the Hub


class VJepa2Video(Encoder):
    """Frozen. Each window is a separate pass, so that no token depends on the number of windows; the last one may be
    shorter. The location of the weights is not part of its spec."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="vjepa2-video",
            sense="fast",
            dim=VIT_L.hidden_size,
            rate=options.rate / PAIR,
            grid=options.grid,
            revision=options.revision,
            licence="MIT",
            options=options.resolved,
        )

    def outline(self) -> Pass:
        """One window."""
        frames = self.options.frames
        with torch.device("meta"):
            return Pass(VJEPA2Model(VIT_L).encoder, (torch.empty(1, frames, 3, SIDE, SIDE),), frames / PAIR)

    @cached_property
    def network(self) -> VJEPA2Encoder:
        """The encoder with its weights; the predictor is not loaded."""
        release = Release(
            given=self.options.weights,
            variable=PLACE,
            repo=self.options.release,
            revision=self.options.revision,
            prefixes=("encoder.",),
            others=r"predictor\.",
            remedy="use facebook/vjepa2-vitl-fpc64-256, or a model trained from it",
        )
        return opened(self.outline().run, release)

    @property
    def groups(self) -> Groups:
        return Groups(self.options.rate, self.options.frames)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ h w c) at the middle of each pair; None for a clip without pictures."""
        dense = pictures.fast(clip)
        if dense is None:
            return None
        times = pictures.instants(dense, self.options.rate, PAIR)
        x = torch.cat([self.tokens(frames) for frames in pictures.groups(dense, times, self.options.frames)])
        windows = times.split(self.options.frames)
        spans = torch.cat([window[[0, -1]].expand(len(window) // PAIR, 2) for window in windows])
        centres = rearrange(times, "(τ p) -> τ p", p=PAIR).mean(-1)
        return SideTokens(x, centres, spans, torch.ones(x.shape[:3], dtype=torch.bool))

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """One window of frames uint8 (t 3 y x) to tokens (τ h w c)."""
        weight = next(self.network.parameters())
        x = self.network(pixels(frames)[None].to(weight)).last_hidden_state
        x = rearrange(x, "1 (τ y x) c -> τ y x c", y=PATCHES[0], x=PATCHES[1]).cpu()
        return pictures.pooled(x, self.spec.grid)


def pixels(frames: Tensor) -> Tensor:
    """Frames uint8 (t 3 y x) to pixels (t 3 256 256) as in transformers' VJEPA2VideoProcessor: the shorter side is
    scaled to 292, bilinear with antialias on uint8, then cropped to the centre."""
    short = pictures.shorter(frames)
    size = [EDGE * side // short for side in frames.shape[2:]]
    scaled = F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
    top, left = ((side - SIDE) // 2 for side in size)
    return preprocess(scaled[..., top : top + SIDE, left : left + SIDE], (SIDE, SIDE), MEAN, STD)


build = builder(Options, VJepa2Video)
