"""BEATs' ear (Chen et al. 2022): general sounds, as tokens that were learned by guessing each other.

In: the sound of a clip at any rate; several channels are mixed. Out: a time step for each 0.16 s, of 8 tokens with 768
channels, low frequencies first. The sound is heard in windows of 9.92 s, one after the other: the original learned from
ten seconds. Needs one of the checkpoints of microsoft/unilm, which is opened at the first sound; names, numbers and
maths are theirs.

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
from pave.senses.fbank import HOP, POVEY, SAMPLE_RATE, fbank, listen, pieces_of
from pave.senses.weights import Release, fill, refuse_broken
from pave.sidechannel import SideTokens

PLACE = "PAVE_BEATS"  # environment: a folder with checkpoints, or one of them
SOURCE = "https://github.com/microsoft/unilm/tree/master/beats"
BANDS, FRAMES, PATCH = 128, 992, 16
ROWS = BANDS // PATCH
FULL_SCALE = 2**15  # Kaldi's samples are of 16 bits
MEAN, DEVIATION = 15.41663, 2 * 6.55582  # of log mel power
KERNEL, GROUPS = 128, 16  # of the convolution that tells tokens their places
BUCKETS, FARTHEST = 320, 800  # distances between tokens that are told apart, and the last of them
# What a checkpoint says of itself and its weights do not show; all 15 say the same.
CONFIG = {"activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True, "max_distance": FARTHEST}


class Options(EncoderOptions):
    """What a recipe may say."""

    # The name of a checkpoint.
    release: Annotated[Text, Field(description="needs the name of a checkpoint for {key}")] = "BEATs_iter3_plus_AS2M"
    # The checkpoint, or a folder or a repo of the Hub that holds it under this name; without it, what PAVE_BEATS says.
    weights: Weights = ""


@dataclass(frozen=True)
class Sizes:
    """Of the network; the defaults are those of all checkpoints."""

    patch: int = 512  # channels of a patch
    width: int = 768
    heads: int = 12
    layers: int = 12


class BeatsAudio(Encoder):
    """Frozen. Where its weights lie is no part of what it is, which of the checkpoints they are is."""

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
        return listen(clip, FRAMES, PATCH, self.tokens)

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
        """With its weights, as the first sound needs them."""
        file = f"{self.options.release}.pt"
        release = Release(given=self.options.weights, place=PLACE, again=f"give {file} of {SOURCE}")
        source, again = release.source, release.again
        if not source:
            raise EncoderError(
                f"beats-audio has no weights; {again} by the option weights, or in the environment by {PLACE}"
            )
        with raised_as(EncoderError, source):
            path = release.find(file)
            network = beats(*pickled.read_part(path, "model"), self.sizes, source, again)
        return network.to("cuda" if torch.cuda.is_available() else "cpu")


def beats(weights: Mapping[str, Tensor], told: Mapping[str, Any], sizes: Sizes, source: str, again: str) -> Beats:
    """The network of a checkpoint. told: what the checkpoint holds beside its weights."""
    config = told.get("cfg")
    said = {key: config.get(key) for key in CONFIG} if isinstance(config, dict) else None
    if said != CONFIG:
        raise EncoderError(f"{source}: says of itself {said}, a BEATs {CONFIG}; {again}")
    # What a checkpoint that was trained further makes of its tokens, the names of 527 sounds, is left out. Copies:
    # where a weight lies in a file would change the last bits of what is computed with it.
    own = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items() if "predictor." not in name}
    refuse_broken(own, source)
    with torch.device("meta"):
        network = Beats(sizes)
    return fill(network, own, source, again)


def spectrum(sound: Tensor) -> Tensor:
    """Samples (n,) to normalised log-mel power (t m)."""
    return (fbank(sound * FULL_SCALE, BANDS, POVEY) - MEAN) / DEVIATION


class Beats(nn.Module):
    """A transformer on patches of sound. Its parameters have the names that they have in the checkpoints."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.ParameterDict({"weight": torch.empty(sizes.patch, 1, PATCH, PATCH)})
        self.layer_norm = nn.LayerNorm(sizes.patch)
        self.post_extract_proj = nn.Linear(sizes.patch, sizes.width)
        layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        places, norm = nn.Sequential(Places(sizes.width)), nn.LayerNorm(sizes.width)
        self.encoder = nn.ModuleDict({"pos_conv": places, "layer_norm": norm, "layers": layers})

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patch_embedding["weight"].device

    def forward(self, mel: Tensor) -> Tensor:
        """Spectra (b t m) to tokens (b n d) of their whole patches, all bands of one time before those of the next."""
        mel = mel[:, : mel.shape[1] // PATCH * PATCH]
        patches = rearrange(mel, "b (t y) (m x) -> b (t m) (y x)", y=PATCH, x=PATCH)
        x = self.layer_norm(F.linear(patches, self.patch_embedding["weight"].flatten(1)))
        x = self.post_extract_proj(x)
        x = self.encoder["layer_norm"](x + self.encoder["pos_conv"](x))
        near = buckets(x.shape[1]).to(x.device)
        for layer in self.encoder["layers"].children():
            x = layer(x, near)
        return x


class Places(nn.Module):
    """What a token hears of its 64 neighbours on both sides, by their place; its weights are kept as length (g) and
    direction (v) of each place of the kernel."""

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
    """Attention, then an MLP; each is normalised together with what it is added to, which counts for more the more
    layers there are (DeepNorm, Wang et al. 2022)."""

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
    """Attention to tokens and to distances; how much distances count is up to the token that asks (the gated relative
    position bias of WavLM, Chen et al. 2022, section III.A, on the projected query)."""

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
    """The bucket (n n) of the distance from each token to each: half of them behind and half before, of either half the
    first half for each distance, the others wider and wider (T5, Raffel et al. 2020)."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    places = torch.arange(count)
    distance = places - places[:, None]
    far = (distance.abs().clamp(min=1) / exact).log() / math.log(FARTHEST / exact) * (half - exact)
    wide = (exact + far.long()).clamp(max=half - 1)
    return (distance > 0) * half + torch.where(distance.abs() < exact, distance.abs(), wide)


build = builder(Options, lambda options: BeatsAudio(options, Sizes()))
