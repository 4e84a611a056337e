"""Where things are: pictures with depth and poses, as tokens of features that know their points in the world.

In, as the sense `depth`: an `RGBD`, or the path of a scan that `RGBD.read` knows. Out: a grid of tokens for each view;
a set, unless somebody says how fast the views were taken. Two presets. `base`: the base's own eyes, with a point behind
the features of each token, and a position MLP that is learned inside the patch: no weights but the base's. `llava3d`:
what the authors of PAVE read, CLIP's features plus the position MLP of LLaVA-3D, whose weights are fetched when the
first scan is read and are not for commercial use.

v views, h w grid, c channels
"""

from __future__ import annotations

import math
import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from pave.base import PASS, Base, last_again
from pave.encoder import Encoder, EncoderSpec, OnBase, Pass, consent
from pave.errors import EncoderError
from pave.fusion.reader import POINT, position_mlp
from pave.media import Clip, preprocess
from pave.media.rgbd import RGBD, Pick, evenly
from pave.media.unproject import at_centres, at_corners
from pave.senses.languagebind import VIT_L, Tower, read
from pave.senses.pictures import shorter
from pave.senses.weights import opened
from pave.sidechannel import SideTokens

MOST = 1024  # views, rows or columns
CELLS, SIDE = 24, 336  # of llava3d: rows and columns of a view, pixels
LICENCE = "CC-BY-NC-SA-4.0"  # of LLaVA-3D: its README says so, its model card says Apache-2.0
PLACE, CLIP_PLACE = "PAVE_LLAVA3D", "PAVE_CLIP_336"  # in the environment
LLAVA_3D, CLIP = "ChaimZhu/LLaVA-3D-7B", "openai/clip-vit-large-patch14-336"
HEADS = (  # what stands before the names of the MLP: in the whole model, and in its encoder alone
    "model.video_tower.video_tower.positional_embedding.position_embedding_head.",
    "positional_embedding.position_embedding_head.",
)
AGAIN = "give LLaVA-3D-7B, or safetensors of its position_embedding_head"
# OpenAI's own ViT-L/14, which has an approximation of GELU.
VIT_L_336 = CLIPVisionConfig(**{**VIT_L.to_dict(), "hidden_act": "quick_gelu", "image_size": SIDE})
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a recipe may say."""

    frames: int = 32  # views, at most
    fps: float | None = None  # of the stream that the numbers of a scan's files count; None: views have no times
    mask_holes: bool = True  # whether a token whose depth was not measured is left out; else its point is the camera
    grid: Sequence[int] | None = None  # rows and columns of points; None: those of the base's own tokens

    def __post_init__(self) -> None:
        counts = [self.frames, *(self.grid or ())]
        if len(counts) not in (1, 3) or not all(type(count) is int and 0 < count <= MOST for count in counts):
            told = f"frames={self.frames!r} and grid={self.grid!r}"
            raise EncoderError(f"rgbd-geometry counts in whole numbers up to {MOST}, got {told}; as grid=[14, 14]")
        if type(self.mask_holes) is not bool:
            raise EncoderError(f"rgbd-geometry takes mask_holes=true or false, got {self.mask_holes!r}")
        if self.fps is not None:
            if not isinstance(self.fps, int | float) or not 0 < self.fps < math.inf:
                raise EncoderError(f"rgbd-geometry needs pictures per second, got fps={self.fps!r}; as fps=30")
            object.__setattr__(self, "fps", float(self.fps))  # 30 and 30.0 are one option, and one cache


class Geometry(Encoder):
    """What the presets have in common."""

    options: Options
    pick: Pick

    @abstractmethod
    def look(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """Tokens (v h w c) of all views, and where (v h w) their depth is known."""

    @torch.no_grad()
    def encode(self, clip: Clip) -> SideTokens | None:
        """None for a clip without `depth`."""
        given: Any = clip.signals.get("depth")
        if given is None:
            return None
        if isinstance(given, str | os.PathLike):
            scan = RGBD.read(given, self.pick, self.options.fps)
        elif isinstance(given, RGBD):
            scan = given.take(self.pick)
        else:
            raise EncoderError(f"depth= is a {type(given).__name__}; give an RGBD, the path of a scan, or None")
        x, known = self.look(scan)
        valid = known if self.options.mask_holes else torch.ones_like(known)
        if scan.times is None:
            times, kind = torch.arange(len(scan), dtype=torch.float64), "set"
        else:
            times, kind = scan.times, "sequence"
        return SideTokens(x, times, times[:, None].expand(-1, 2), valid, kind)


class Placed(Geometry, OnBase):
    """The preset `base`."""

    def __init__(self, options: Options, eyes: Base | None = None) -> None:
        self.options, self.eyes = options, eyes
        self.pick = evenly(options.frames)

    def on(self, base: Base) -> Placed:
        return Placed(replace(self.options, grid=list(self.options.grid or base.grid)), base)

    @cached_property
    def spec(self) -> EncoderSpec:  # type: ignore[override]
        return EncoderSpec(
            name="rgbd-geometry",
            sense="depth",
            dim=self.base.vision_dim + POINT,
            rate=0,
            grid=self.grid,
            revision="1",
            options={"preset": "base", **asdict(self.options)},
            points=True,
        )

    def outline(self) -> Pass:
        return Pass(self.base.look, (torch.empty(self.base.pair, 3, *self.base.size, device="meta"),), 1)

    def look(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """A finer grid than the base's repeats its features, a coarser one averages them."""
        points, known = at_centres(scan, self.grid)
        seen = rearrange(self.base.watch(scan.rgb.repeat_interleave(self.base.pair, 0)), "v h w c -> v c h w")
        features = rearrange(F.adaptive_avg_pool2d(seen, self.grid), "v c h w -> v h w c")
        return torch.cat([features, points], -1), known


class Network(nn.Module):
    """CLIP's patches, and what LLaVA-3D adds to them where their points are known."""

    def __init__(self, config: CLIPVisionConfig, cells: int) -> None:
        super().__init__()
        self.clip = Tower(config, (cells, cells), temporal=False)
        self.position = position_mlp(config.hidden_size)

    def forward(self, pixels: Tensor, points: Tensor) -> Tensor:
        """Tokens (v h w c) of pictures (v 3 y x) and points (v h w 3)."""
        features = rearrange(self.clip(pixels)[:, 1:], "v (h w) c -> v h w c", h=points.shape[1])
        return features + self.position(points)


class Llava3D(Geometry):
    """The preset `llava3d`. Where its weights lie is no part of what it is."""

    def __init__(self, options: Options, weights: str = "", clip: str = "") -> None:
        if options.grid is not None:
            raise EncoderError(
                f"rgbd-geometry has {CELLS} x {CELLS} points with preset=llava3d, got grid={options.grid}"
            )
        self.options, self.weights, self.clip = options, weights, clip
        self.spec = EncoderSpec(
            name="rgbd-geometry",
            sense="depth",
            dim=VIT_L_336.hidden_size,
            rate=0,
            grid=(CELLS, CELLS),
            revision="LLaVA-3D-7B",
            licence=LICENCE,
            options={"preset": "llava3d", **asdict(options)},
        )

    def pick(self, count: int) -> Sequence[int]:
        """Every so many views from the first, as upstream has it: the last ones may never be seen, and where there are
        too few, they come again."""
        return [i * max(1, count // self.options.frames) % count for i in range(self.options.frames)]

    def outline(self) -> Pass:
        with torch.device("meta"):
            inputs = torch.empty(1, 3, SIDE, SIDE), torch.empty(1, CELLS, CELLS, POINT)
            return Pass(Network(VIT_L_336, CELLS), inputs, 1)

    @cached_property
    def network(self) -> Network:
        """With its weights, as the first scan needs them."""
        consent(f"{self.spec.name} with preset=llava3d", LICENCE)
        built = self.outline().run
        built.position = position(self.weights or os.environ.get(PLACE) or LLAVA_3D)
        source = self.clip or os.environ.get(CLIP_PLACE) or CLIP
        built.clip = read(source, "main", (CELLS, CELLS), temporal=False, config=VIT_L_336)
        return built.float().to("cuda" if torch.cuda.is_available() else "cpu")

    def look(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """One pass for so many views, the last of them again where there are fewer: a view's bits hang on no other."""
        points, known = at_corners(scan, SIDE, CELLS)
        device = next(self.network.parameters()).device
        passes = zip(*(last_again(each, PASS).split(PASS) for each in (scan.rgb, points)), strict=True)
        x = [self.network(pixels(rgb).to(device), part.to(device)).cpu() for rgb, part in passes]
        return torch.cat(x)[: len(scan)], known


def pixels(frames: Tensor) -> Tensor:
    """Pictures uint8 (v 3 y x) as CLIP wants them: the shorter side scaled to 336, the square in the middle (v 3 336
    336), normalised."""
    short = shorter(frames)
    height, width = (side * SIDE // short for side in frames.shape[2:])
    scaled = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return preprocess(scaled[..., top : top + SIDE, left : left + SIDE], (SIDE, SIDE), MEAN, STD)


def position(source: str) -> nn.Sequential:
    """The position MLP of LLaVA-3D, out of its release."""
    with torch.device("meta"):
        built = position_mlp(VIT_L_336.hidden_size)
    return opened(built, source, "main", prefixes=HEADS, others=re.compile(""), again=AGAIN)


def build(
    preset: str = "base",
    frames: int = Options.frames,
    fps: float | None = Options.fps,
    mask_holes: bool | None = None,
    grid: Sequence[int] | None = Options.grid,
    weights: str | Path = "",
    clip: str | Path = "",
) -> Geometry:
    """The encoder `rgbd-geometry`. mask_holes: by default only the preset `base` does, since upstream does not.
    weights, clip: of the preset `llava3d`: the position MLP, in LLaVA-3D-7B or in a file of its own, and CLIP's
    ViT-L/14 at 336 pixels; without them, what PAVE_LLAVA3D and PAVE_CLIP_336 say; without these, the Hub, where
    the file with the MLP has 5 GB."""
    if preset not in ("base", "llava3d"):
        raise EncoderError(f"rgbd-geometry has no preset {preset!r}; known: base, llava3d")
    mask = preset == "base" if mask_holes is None else mask_holes
    options = Options(frames=frames, fps=fps, mask_holes=mask, grid=grid)
    return Placed(options) if preset == "base" else Llava3D(options, str(weights), str(clip))
