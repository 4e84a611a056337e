"""BEATs (Chen et al. 2022): general sounds, from masked prediction of acoustic tokens.

In: the sound of a clip at any rate; channels are averaged. Out: a time step per 0.16 s, of 8 tokens with 768 channels,
low frequencies first. The sound is encoded in consecutive windows of 9.92 s: BEATs was trained on ten seconds. Needs a
checkpoint of microsoft/unilm, which is loaded at the first sound; names, constants and maths are from there.

b windows, t frames of the spectrum, m mel bands, n tokens, h heads, d channels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Pass, Text, Weights, builder
from pave.errors import EncoderError, raised_as
from pave.files import pickled
from pave.media import Clip
from pave.senses.fbank import HOP, POVEY, SAMPLE_RATE, encode_patches, fbank, pieces_of
from pave.senses.weights import Release, fill, refuse_broken
from pave.sidechannel import SideTokens

PLACE = "PAVE_BEATS"  # environment variable: a folder with checkpoints, or one of them
SOURCE = "https://github.com/microsoft/unilm/tree/master/beats"
BANDS, FRAMES, PATCH = 128, 992, 16
ROWS = BANDS // PATCH
FULL_SCALE = 2**15  # Kaldi's samples are 16-bit integers
MEAN, DEVIATION = 15.41663, 2 * 6.55582  # of log mel power
KERNEL, GROUPS = 128, 16  # of the convolutional position embedding
BUCKETS, FARTHEST = 320, 800  # number of relative position buckets, and the distance at which they end
# Metadata of a checkpoint that its weights do not show; the same in all 15 checkpoints.
CONFIG = {"activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True, "max_distance": FARTHEST}


class Options(EncoderOptions):
    """What a recipe may say."""

    # The name of a checkpoint.
    release: Annotated[Text, Field(description="needs the name of a checkpoint for {key}")] = "BEATs_iter3_plus_AS2M"
    # The checkpoint, or a folder or Hub repository with a file of this name; default: PAVE_BEATS.
    weights: Weights = ""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; the defaults are those of all checkpoints."""

    patch: int = 512  # channels of a patch
    width: int = 768
    heads: int = 12
    layers: int = 12


class BeatsAudio(Encoder):
    """Frozen. Its spec includes the name of the checkpoint, but not the location of the weights."""

    pieces = pieces_of(FRAMES, PATCH)

    def __init__(self, options: Options, sizes: Sizes) -> None:
        self.options, self.sizes = options, sizes
        self.spec = EncoderSpec(
            name="beats-audio",
            sense="audio",
            dim=sizes.width,
            rate=SAMPLE_RATE / (PATCH * HOP),
            grid=(ROWS, 1),
            revision=options.release,
            licence="MIT",
            options=options.resolved,
        )

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 8 1 c); None for a clip without sound."""
        return encode_patches(clip, FRAMES, PATCH, self.tokens)

    @torch.no_grad()
    def tokens(self, sound: Tensor) -> Tensor:
        """Samples of one window to the tokens (τ 8 1 c) of its whole patches."""
        mel = spectrum(sound)[None].to(self.network.device)
        return rearrange(self.network(mel), "1 (τ h) d -> τ h 1 d", h=ROWS).cpu()

    def outline(self) -> Pass:
        with torch.device("meta"):
            return Pass(Beats(self.sizes), (torch.empty(1, FRAMES, BANDS),), FRAMES / PATCH)

    @cached_property
    def network(self) -> Beats:
        """The network with its weights."""
        file = f"{self.options.release}.pt"
        release = Release(given=self.options.weights, variable=PLACE, remedy=f"use {file} from {SOURCE}")
        source, remedy = release.source, release.remedy
        if not source:
            raise EncoderError(
                f"beats-audio has no weights; download {file} from {SOURCE}, and set the option weights or, in the "
                f"environment, {PLACE} to its path"
            )
        with raised_as(EncoderError, source):
            path = release.find(file)
            network = beats(*pickled.read_part(path, "model"), self.sizes, source, remedy)
        return network.to("cuda" if torch.cuda.is_available() else "cpu")


def beats(weights: Mapping[str, Tensor], metadata: Mapping[str, Any], sizes: Sizes, source: str, remedy: str) -> Beats:
    """The network of a checkpoint, from its weights and everything else in the file."""
    config = metadata.get("cfg")
    declared = {key: config.get(key) for key in CONFIG} if isinstance(config, dict) else None
    if declared != CONFIG:
        raise EncoderError(f"{source}: its config has {declared}, BEATs has {CONFIG}; {remedy}")
    # Without `predictor`, the classifier of 527 sounds in a fine-tuned checkpoint. Copies: the alignment of a weight in
    # a file would change the last bits of the outputs.
    own = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items() if "predictor." not in name}
    refuse_broken(own, source)
    with torch.device("meta"):
        network = Beats(sizes)
    return fill(network, own, source, remedy)


def spectrum(sound: Tensor) -> Tensor:
    """Samples (n,) to normalised log-mel power (t m)."""
    return (fbank(sound * FULL_SCALE, BANDS, POVEY) - MEAN) / DEVIATION


class Beats(nn.Module):
    """A transformer on patches of the spectrum. Parameters are named as in the checkpoints."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.ParameterDict({"weight": torch.empty(sizes.patch, 1, PATCH, PATCH)})
        self.layer_norm = nn.LayerNorm(sizes.patch)
        self.post_extract_proj = nn.Linear(sizes.patch, sizes.width)
        layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        positions, norm = nn.Sequential(ConvPositions(sizes.width)), nn.LayerNorm(sizes.width)
        self.encoder = nn.ModuleDict({"pos_conv": positions, "layer_norm": norm, "layers": layers})

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.patch_embedding["weight"].device

    def forward(self, mel: Tensor) -> Tensor:
        """Spectra (b t m) to tokens (b n d) of their whole patches, ordered by time, then by band."""
        mel = mel[:, : mel.shape[1] // PATCH * PATCH]
        patches = rearrange(mel, "b (t y) (m x) -> b (t m) (y x)", y=PATCH, x=PATCH)
        x = self.layer_norm(F.linear(patches, self.patch_embedding["weight"].flatten(1)))
        x = self.post_extract_proj(x)
        x = self.encoder["layer_norm"](x + self.encoder["pos_conv"](x))
        near = buckets(x.shape[1]).to(x.device)
        for layer in self.encoder["layers"].children():
            x = layer(x, near)
        return x


class ConvPositions(nn.Module):
    """Convolutional position embedding over 64 neighbours on each side; with weight norm, as length (g) and direction
    (v) per position of the kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(1, 1, KERNEL))
        self.weight_v = nn.Parameter(torch.empty(width, width // GROUPS, KERNEL))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_g * self.weight_v / self.weight_v.square().sum((0, 1), keepdim=True).sqrt()
        y = F.conv1d(x.mT, weight, self.bias, padding=KERNEL // 2, groups=GROUPS)
        return F.gelu(y[..., :-1].mT)


class Layer(nn.Module):
    """Attention, then an MLP, with post-norm; the residual's weight grows with the number of layers (DeepNorm, Wang et
    al. 2022)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes.width, sizes.heads)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.fc1, self.fc2 = nn.Linear(sizes.width, 4 * sizes.width), nn.Linear(4 * sizes.width, sizes.width)
        self.final_layer_norm = nn.LayerNorm(sizes.width)
        self.alpha = (2 * sizes.layers) ** 0.25

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, near))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    """Attention with gated relative position bias (WavLM, Chen et al. 2022, section III.A, on the projected query)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)
        self.grep_linear = nn.Linear(width // heads, 8)
        self.grep_a = nn.Parameter(torch.empty(1, heads, 1, 1))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        q, k, v = (
            rearrange(each(x), "b n (h d) -> b h n d", h=self.heads) for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        share, reset = (
            rearrange(self.grep_linear(q), "b h n (gate part) -> gate b h n 1 part", gate=2).sum(-1).sigmoid()
        )
        gate = share * (reset * self.grep_a - 1) + 2
        bias = gate * rearrange(self.relative_attention_bias(near), "n m h -> h n m")
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


def buckets(count: int) -> Tensor:
    """Relative position buckets (n n): half for each direction; of these, half for exact distances, the others
    logarithmic (T5, Raffel et al. 2020)."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    places = torch.arange(count)
    distance = places - places[:, None]
    far = (distance.abs().clamp(min=1).float() / exact).log() / math.log(FARTHEST / exact) * (half - exact)
    wide = (exact + far.long()).clamp(max=half - 1)
    return (distance > 0) * half + torch.where(distance.abs() < exact, distance.abs(), wide)


build = builder(Options, lambda options: BeatsAudio(options, Sizes()))
