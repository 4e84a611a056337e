"""The towers of LanguageBind (Zhu et al., ICLR 2024; PKU-YuanGroup/LanguageBind, commit 7070c53): CLIP's ViT-L/14.

In: a release (FT, merge, or with a separate LoRA), as a Hub repository, a folder or a file. Out: a `Tower` with its
weights; every tensor must match. Knows nothing of clips.

b images, t frames of a group, n tokens of an image, d channels
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from einops import rearrange, reduce
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from pave.encoder import EncoderOptions, Text, Weights, name_of
from pave.errors import EncoderError, raised_as
from pave.files import json_text, pickled, tensorfile
from pave.senses.weights import WHOLE, Release, fill

GROUP = 8  # frames that attend to each other: num_frames of all releases
# ViT-L/14 as trained by LAION: with exact GELU, while OpenAI's uses an approximation.
VIT_L = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
    hidden_act="gelu",
)
OTHERS = re.compile(
    r"text_model\.|(visual|text)_projection\.weight$|logit_scale$|.*\.position_ids$"
)  # not of the tower
REMEDY = "use a release of LanguageBind (FT, merge, or with its LoRA) or of CLIP, whichever the encoder needs"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Options(EncoderOptions):
    """Release and precision of a tower."""

    release: Text  # a Hub repository
    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Field(description="runs in float32, bfloat16, float16")
    ] = "float32"
    weights: Weights = ""  # a folder or file with the release; default: the environment variable, else the Hub

    def open(self, variable: str, grid: tuple[int, int], *, temporal: bool) -> Tower:
        """The tower, on the GPU if there is one. variable: environment variable for the weights."""
        release = self.published(variable)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return read(release, grid, temporal=temporal).to(device, DTYPES[self.dtype])

    def published(self, variable: str) -> Release:
        """Its release."""
        return Release(
            given=self.weights,
            variable=variable,
            repo=self.release,
            revision=self.revision,
            remedy=REMEDY,
            encoder=name_of(type(self)),
            what=self.release,
            licence="MIT",
            size="the whole release, whose size the Hub tells",
        )


class Block(CLIPEncoderLayer):
    """A block of CLIP, preceded by attention along time between the tokens at each position of a group."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.temporal_embedding = nn.Parameter(torch.zeros(1, GROUP, config.hidden_size))
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attn = CLIPAttention(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor:
        """Tokens (b n d) of whole groups."""
        # The embedding stays in the residual stream: each block adds its own.
        x = rearrange(hidden_states, "(b t) n d -> (b n) t d", t=GROUP) + self.temporal_embedding
        x = x + self.temporal_attn(self.temporal_layer_norm1(x), attention_mask=None)[0]
        x = rearrange(x, "(b n) t d -> (b t) n d", n=hidden_states.shape[1])
        return super().forward(x, attention_mask, **kwargs)  # type: ignore[arg-type]


class Tower(nn.Module):
    """CLIP's vision model for grids of any shape, without its last block."""

    def __init__(self, config: CLIPVisionConfig, grid: tuple[int, int], *, temporal: bool) -> None:
        super().__init__()
        self.grid = grid
        self.clip = CLIPVisionModel(config)
        embeddings = self.clip.embeddings
        del embeddings.position_ids  # all positions are used
        embeddings.position_embedding = nn.Embedding(1 + math.prod(grid), config.hidden_size)
        if temporal:
            self.clip.encoder.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, images: Tensor) -> Tensor:
        """Images (b 3 y x) to hidden_states[-2] (b n d): the class token, then the grid row by row. Video-LLaVA reads
        this layer (mm_vision_select_layer), and so do PAVE's features."""
        embeddings = self.clip.embeddings
        patches = rearrange(embeddings.patch_embedding(images), "b d y x -> b (y x) d")
        first = embeddings.class_embedding.expand(len(images), 1, -1)
        x = self.clip.pre_layrnorm(torch.cat([first, patches], 1) + embeddings.position_embedding.weight)
        for block in self.clip.encoder.layers[:-1]:
            x = block(x, attention_mask=None)
        return x

    def pooled(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images to the means of `size` equal parts of the grid (b h w d), without the class token."""
        (y, x), (h, w) = self.grid, size
        tokens = self(images)[:, 1:]
        return reduce(tokens, "b (h y w x) d -> b h w d", "mean", h=h, w=w, y=y // h, x=x // w)


def tower(tensors: Mapping[str, Tensor], source: str, built: Tower, scale: float | None = None) -> Tower:
    """`built`, a tower on the meta device, with the weights of a release. scale: alpha / r of its LoRA."""
    fill(built.clip, _merged(_named(tensors), source, scale), source, REMEDY)
    return built


def read(release: Release, grid: tuple[int, int], *, temporal: bool, config: CLIPVisionConfig = VIT_L) -> Tower:
    """The tower of a release."""
    source = release.source
    with raised_as(EncoderError, source):
        path = release.find(*WHOLE)
        tensors = pickled.read(path) if path.suffix == ".bin" else tensorfile.read(path)[0]
        scale = None
        if any(".lora_A." in name for name in tensors):
            scale = _scale(json_text.read_json(release.beside("config.json")))
    with torch.device("meta"):
        built = Tower(config, grid, temporal=temporal)
    return tower(tensors, source, built, scale)


def _scale(config: Mapping[str, object]) -> float | None:
    """alpha / r of a release's LoRA; None if its config lacks them."""
    vision = config.get("vision_config")
    alpha, rank = (vision.get(key) for key in ("lora_alpha", "lora_r")) if isinstance(vision, dict) else (None, None)
    usable = all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in (alpha, rank))
    return alpha / rank if usable else None  # type: ignore[operator]


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's own tensors, under transformers' names; a release with LoRA has PEFT's names."""
    renamed = {}
    for name, tensor in tensors.items():
        if not OTHERS.match(name):
            name = name.removeprefix("vision_model.").replace("encoder.base_model.model.layers.", "encoder.layers.")
            renamed[name.replace(".base_layer.", ".")] = tensor
    return renamed


def _merged(tensors: dict[str, Tensor], source: str, scale: float | None) -> dict[str, Tensor]:
    """Every W with its LoRA added: W + alpha / r · B A."""
    merged = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name in sorted(tensors.keys() - merged.keys()):
        stem = re.sub(r"\.lora_[AB]\.default\.weight$", "", name)
        weight, a, b = (
            tensors.get(stem + end) for end in (".weight", ".lora_A.default.weight", ".lora_B.default.weight")
        )
        if weight is None or a is None or b is None:
            raise EncoderError(f"{source}: {name} lacks its base weight or the other LoRA factor; {REMEDY}")
        if name.endswith(".lora_B.default.weight"):
            continue
        if scale is None:
            raise EncoderError(f"{source}: its config.json has no lora_alpha and lora_r above 0; {REMEDY}")
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != len(a):
            shapes = " and ".join(str(tuple(half.shape)) for half in (a, b))
            raise EncoderError(f"{source}: {stem} is {tuple(weight.shape)}, its LoRA {shapes} does not fit; {REMEDY}")
        merged[f"{stem}.weight"] = (weight.double() + scale * b.double() @ a.double()).to(weight.dtype)
    return merged
