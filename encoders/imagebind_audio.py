"""ImageBind's audio encoder (Girdhar et al. 2023): embeddings of two seconds of sound, in a space shared with images.

In: the sound of a clip at any rate; channels are averaged, or the first one is taken. Out: one token per second of 1024
channels and norm 20, each of the two seconds that start there. Needs the audio branch of `imagebind_huge.pth`, which is
loaded at the first sound, if the user has consented to its non-commercial licence; `pave weights get` fetches it. Names
and constants are from that checkpoint (facebookresearch/ImageBind); the spectrum is Kaldi's.

b windows, n samples, t frames of the spectrum, m mel bands, p patches, c channels
"""

from __future__ import annotations

import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Pass, Pieces, Weights, builder, consent
from pave.errors import EncoderError, raised_as
from pave.files import pickled
from pave.media import Clip
from pave.media.arrays import Channel
from pave.senses.fbank import SAMPLE_RATE, fbank
from pave.senses.sound import mono
from pave.senses.weights import Release, whole
from pave.sidechannel import SideTokens

LICENCE = "CC-BY-NC-SA-4.0"  # of the weights; the file LICENSE and the model card agree, the README says CC-BY-NC 4.0
PLACE = "PAVE_IMAGEBIND"  # environment variable
SOURCE = "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
REMEDY = "use imagebind_huge.pth, or safetensors of its audio branch"
ON_HUB = re.compile(r"hf://(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w.-]+))?/(?P<file>[\w./-]+)")
BRANCH = ".audio."  # in the names of the audio branch's weights

SECONDS = 2  # of sound in a window; windows start one second apart, as in the PAVE paper
BANDS = 128
WIDE = 204  # input frames of the trunk; a window has 198, padded with zeros before the normalisation
MEAN, DEVIATION = -4.268, 9.138  # of log mel power
PATCH, STRIDE = 16, 10  # mel bands and frames
PART = 16  # windows per batch


class Options(EncoderOptions):
    """What a recipe may say."""

    # `imagebind_huge.pth` or safetensors of its audio branch, as a path or, on the Hub, as
    # `hf://user/repo@revision/file`; default: PAVE_IMAGEBIND.
    weights: Weights = ""
    # What is heard of a sound with several channels. first: as the PAVE paper's authors, whose features and released
    # patches are of channel 0 (torchaudio's fbank in tools/audio/extract_imagebind_audio_feature.py).
    channel: Annotated[Channel, Field(description="hears mean or first")] = "mean"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the trunk; the defaults are those of `imagebind_huge`."""

    width: int = 768
    heads: int = 12
    layers: int = 12
    dim: int = 1024  # channels of a token


class ImageBindAudio(Encoder):
    """Frozen. Its spec needs no weights and does not include their location."""

    pieces = Pieces(PART, SAMPLE_RATE, before=1, after=1)  # PART windows; a token's time is the middle of its window

    def __init__(self, weights: str, sizes: Sizes, channel: Channel = "mean") -> None:
        self.weights, self.sizes, self.channel = weights, sizes, channel
        self.spec = EncoderSpec(
            name="imagebind-audio",
            sense="audio",
            dim=sizes.dim,
            rate=1.0,
            revision="imagebind_huge",
            licence=LICENCE,
            options={} if channel == "mean" else {"channel": channel},  # hashes are older than the option
        )

    @property
    def releases(self) -> tuple[Release, ...]:
        return (
            Release(
                given=self.weights,
                variable=PLACE,
                remedy=REMEDY,
                encoder=self.spec.name,
                what="ImageBind's audio branch",
                licence=LICENCE,
                address=SOURCE,
                size="4.8 GB, of which 345 MB are fetched and kept",
                inside=BRANCH,
                shapes=lambda: self.outline().run.state_dict(),
            ),
        )

    @torch.no_grad()
    def encode(self, clip: Clip) -> SideTokens | None:
        """Token i spans the seconds [i, i + 2) after the clip's first sample, for whole windows only; a sound shorter
        than two seconds is padded with silence, and becomes one token that spans the sound."""
        sound = mono(clip, SAMPLE_RATE, self.channel)
        if sound is None:
            return None
        seconds = len(sound) / SAMPLE_RATE
        sound = F.pad(sound, (0, max(0, SECONDS * SAMPLE_RATE - len(sound))))
        windows = sound.unfold(0, SECONDS * SAMPLE_RATE, SAMPLE_RATE)  # views, not copies
        x = torch.cat([self.network(spectra(part.to(self.device))).cpu() for part in windows.split(PART)])
        first = torch.arange(len(x), dtype=torch.float64)
        spans = clip.audio_start + torch.stack([first, (first + SECONDS).clamp(max=seconds)], dim=-1)
        valid = torch.ones(len(x), 1, 1, dtype=torch.bool)
        return SideTokens(rearrange(x, "b c -> b 1 1 c"), spans.mean(-1), spans, valid)

    @property
    def device(self) -> torch.device:
        """Device of the trunk."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def outline(self) -> Pass:
        with torch.device("meta"):
            return Pass(Trunk(self.sizes), (torch.empty(1, BANDS, WIDE),), 1)

    @cached_property
    def network(self) -> Trunk:
        """The trunk with its weights."""
        consent(self.spec.name, LICENCE)
        (release,) = self.releases
        source = release.source
        if not source:
            raise EncoderError(
                "imagebind-audio has no weights; run `pave weights get imagebind-audio` (345 MB), or download "
                f"{SOURCE} (4.8 GB), and set the option weights or, in the environment, {PLACE} to its path"
            )
        trunk, weights = self.outline().run, _read(source, release)
        if problem := _problem(weights, trunk.state_dict()):
            raise EncoderError(f"{source}: {problem}; {release.remedy}")
        # Copies: the alignment of a weight in a memory-mapped file would change the last bits of the outputs.
        own = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}
        trunk.load_state_dict(own, assign=True)
        return trunk.requires_grad_(False).eval().to(self.device)


def spectra(sound: Tensor) -> Tensor:
    """Windows (b n) to normalised log-mel pictures (b m t)."""
    mel = fbank(sound, BANDS)
    mel = F.pad(mel, (0, 0, 0, WIDE - mel.shape[1]))
    return rearrange((mel - MEAN) / DEVIATION, "b t m -> b m t")


class Trunk(nn.Module):
    """A vision transformer on spectra. Parameters are named as in the checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        blocks = nn.Sequential(*(Block(width, sizes.heads) for _ in range(sizes.layers)))
        head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Identity(), nn.Linear(width, sizes.dim, bias=False))
        self.modality_preprocessors = nn.ModuleDict({"audio": Stem(width)})
        self.modality_trunks = nn.ModuleDict({"audio": nn.Sequential(OrderedDict(blocks=blocks))})
        self.modality_heads = nn.ModuleDict({"audio": head})
        self.modality_postprocessors = nn.ModuleDict({"audio": nn.Sequential(nn.Identity(), Scale())})

    def forward(self, mel: Tensor) -> Tensor:
        """Pictures (b m t) to tokens (b c)."""
        x = self.modality_trunks["audio"](self.modality_preprocessors["audio"](mel))
        return self.modality_postprocessors["audio"](self.modality_heads["audio"](x[:, 0]))


class Stem(nn.Module):
    """Class token and overlapping patches (b p c), with learned positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        places = 1 + math.prod((side - PATCH) // STRIDE + 1 for side in (BANDS, WIDE))
        proj = nn.ParameterDict({"weight": torch.empty(width, 1, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.rgbt_stem = nn.ModuleDict({"proj": proj, "norm_layer": nn.LayerNorm(width, eps=1e-5)})
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": torch.empty(1, places, width)})

    def forward(self, mel: Tensor) -> Tensor:
        # A convolution as a matrix product: by default, a GPU computes convolutions in TF32, with 10 bits of mantissa.
        patches = rearrange(mel.unfold(1, PATCH, STRIDE).unfold(2, PATCH, STRIDE), "b m t y x -> b (m t) (y x)")
        x = self.rgbt_stem["norm_layer"](F.linear(patches, self.get_parameter("rgbt_stem.proj.weight").flatten(1)))
        x = torch.cat([self.cls_token.expand(len(mel), -1, -1), x], dim=1)
        return x + self.pos_embedding_helper["pos_embed"]


class Block(nn.Module):
    """Attention with an additional learned key and value, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class Scale(nn.Module):
    """Scales all tokens to the norm in the checkpoint: 20."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.log_logit_scale.exp().clamp(max=100)


def _read(source: str, release: Release) -> dict[str, Tensor]:
    """The audio branch, as `pave weights get` kept it, from a local file or from the Hub."""
    try:
        with raised_as(EncoderError, source):
            path = _locate(source)
            if path == release.kept:
                return whole(path, release)
            if path.suffix != ".safetensors":
                return pickled.read(path, inside=BRANCH)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if BRANCH in name}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{source}: cannot be read ({error}); download it again") from None


def _locate(source: str) -> Path:
    if os.path.isfile(source):
        return Path(source)
    name = ON_HUB.fullmatch(source)
    if name is None:
        raise EncoderError(f"{source}: no such file; use a local file, or hf://user/repo/file for a file on the Hub")
    from pave.hub.locate import fetch  # importing its client takes half a second

    return fetch(name["repo"], name["file"], name["revision"])


def _problem(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Why these are not the expected weights; empty when they are."""
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            return f"{len(names)} weights of its audio branch are {what}, the first is {min(names)}"
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            return f"{name} is {tuple(tensor.shape)}, and must be {tuple(expected[name].shape)}"
        if not tensor.isfinite().all():
            return f"{name} has values that are not finite"
    return ""


build = builder(Options, lambda options: ImageBindAudio(options.weights, Sizes(), options.channel))
