"""3-D geometry: pictures with depth and poses, as tokens of visual features with their points in the world.

In, for the sense `depth`: an `RGBD`, or the path of a scan in a format of `RGBD.read`. Out: a grid of tokens per view;
an unordered set, unless `fps` is given. Two presets. `base`: features of the base's vision tower, followed by the point
of each token; the patch trains its own position MLP: no weights but the base's. `llava3d`: as in the PAVE paper, CLIP's
features plus the position MLP of LLaVA-3D, whose weights are downloaded for the first scan and are not for commercial
use.

v views, h w grid, c channels
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from pave.base import PASS, Host, last_again
from pave.encoder import Count, Encoder, EncoderOptions, EncoderSpec, Number, OnBase, Pass, Weights, builder, consent
from pave.errors import EncoderError
from pave.fusion.reader import POINT, position_mlp
from pave.media import Clip, preprocess
from pave.media.folder import is_scan
from pave.media.rgbd import RGBD, Pick, evenly
from pave.media.unproject import at_centres, at_corners
from pave.senses import languagebind
from pave.senses.languagebind import VIT_L, Tower
from pave.senses.pictures import shorter
from pave.senses.weights import Release, opened
from pave.sidechannel import SideTokens

MOST = 1024  # views, rows or columns
CELLS, SIDE = 24, 336  # of llava3d: rows and columns of a view, pixels
LICENCE = "CC-BY-NC-SA-4.0"  # of LLaVA-3D, from its README; its model card says Apache-2.0
PLACE, CLIP_PLACE = "PAVE_LLAVA3D", "PAVE_CLIP_336"  # environment variables
LLAVA_3D, CLIP = "ChaimZhu/LLaVA-3D-7B", "openai/clip-vit-large-patch14-336"
HEADS = (  # prefixes of the MLP's names: in the whole model, and in its encoder alone
    "model.video_tower.video_tower.positional_embedding.position_embedding_head.",
    "positional_embedding.position_embedding_head.",
)
REMEDY = "use LLaVA-3D-7B, or safetensors of its position_embedding_head"
# OpenAI's ViT-L/14, which uses an approximation of GELU.
VIT_L_336 = CLIPVisionConfig(**{**VIT_L.to_dict(), "hidden_act": "quick_gelu", "image_size": SIDE})
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
STD = (0.26862954, 0.26130258, 0.27577711)


def _preset(name: Any) -> Any:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"has no preset {name!r}; known: {', '.join(PRESETS)}")
    return name


class Options(EncoderOptions):
    """What a recipe may say."""

    preset: Annotated[str, BeforeValidator(_preset)] = "base"
    # Views, at most.
    frames: Annotated[Count, Field(le=MOST, description="needs an integer number of frames")] = 32
    # For the preset llava3d, which views of a scan with more. steps: every (n // frames)-th from the first, as in
    # LLaVA-3D, which never sees the last ones and repeats too few; even: equally spaced from the first to the last, as
    # the preset base and the key frames of a scan that is a clip's video.
    sampling: Annotated[Literal["steps", "even"], Field(description="samples views by steps or even")] = "steps"
    # Frame rate of the stream; the numbers in a scan's file names are frame indices. None: views have no times. A
    # float, so that 30 and 30.0 share a cache.
    fps: Annotated[
        Annotated[Number, Field(gt=0, le=1e6), AfterValidator(float)] | None,
        Field(description="needs pictures per second, for example fps=30"),
    ] = None
    # Whether tokens without measured depth are invalid; else their point is the camera. None: only with the preset
    # base, since LLaVA-3D does not mask them.
    mask_holes: Annotated[
        bool | None, Field(strict=True, validate_default=True, description="needs {key}=true or false")
    ] = None
    # Rows and columns of points; None: those of the base's tokens.
    grid: Annotated[Any, Field(description=f"needs rows and columns up to {MOST}, for example grid=[14, 14]")] = None
    # For the preset llava3d: the position MLP, in LLaVA-3D-7B or a separate file, and CLIP's ViT-L/14 at 336 pixels;
    # default: PAVE_LLAVA3D and PAVE_CLIP_336, else the Hub, where the file with the MLP has 5 GB.
    weights: Weights = ""
    clip: Weights = ""

    @property
    def resolved(self) -> dict[str, Any]:  # hashes are older than `sampling`
        return {key: value for key, value in super().resolved.items() if key != "sampling" or value != "steps"}

    @field_validator("mask_holes", mode="before")
    @classmethod
    def _by_preset(cls, mask: Any, info: ValidationInfo) -> Any:
        return info.data.get("preset") == "base" if mask is None else mask

    @field_validator("grid")
    @classmethod
    def _counts(cls, grid: Any) -> Any:
        counts = [*grid] if grid and isinstance(grid, Iterable) else []
        if grid and (len(counts) != 2 or not all(type(count) is int and 0 < count <= MOST for count in counts)):
            raise ValueError
        return grid

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.preset == "llava3d" and self.grid is not None:
            raise ValueError(f"has {CELLS} x {CELLS} points with preset=llava3d, got grid={self.grid}; omit it")
        return self


class Geometry(Encoder):
    """Base class of the presets."""

    options: Options
    pick: Pick

    @abstractmethod
    def encode_views(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """Tokens (v h w c) of all views, and a mask (v h w) of known depth."""

    @torch.no_grad()
    def encode(self, clip: Clip) -> SideTokens | None:
        """None for a clip without `depth`. A clip that is a folder with a scan has its own."""
        place = clip.report.source
        depth: Any = clip.signals.get("depth", place if is_scan(place) else None)
        if depth is None:
            return None
        if isinstance(depth, str | os.PathLike):
            alone = is_scan(place) and os.path.exists(depth) and os.path.samefile(depth, place)
            scan = RGBD.read(depth, self.pick, self.options.fps, alone)
        elif isinstance(depth, RGBD):
            scan = depth.take(self.pick)
        else:
            raise EncoderError(f"depth= is a {type(depth).__name__}; pass an RGBD, the path of a scan, or None")
        x, known = self.encode_views(scan)
        valid = known if self.options.mask_holes else torch.ones_like(known)
        if scan.times is None:
            times, kind = torch.arange(len(scan), dtype=torch.float64), "set"
        else:
            times, kind = scan.times, "sequence"
        return SideTokens(x, times, times[:, None].expand(-1, 2), valid, kind)


class Placed(Geometry, OnBase):
    """The preset `base`."""

    def __init__(self, options: Options, host: Host | None = None) -> None:
        self.options, self.host = options, host
        self.pick = evenly(options.frames)

    def on(self, base: Host) -> Placed:
        return Placed(self.options.model_copy(update={"grid": list(self.options.grid or base.grid)}), base)

    @cached_property
    def spec(self) -> EncoderSpec:  # type: ignore[override]
        return EncoderSpec(
            name="rgbd-geometry",
            sense="depth",
            dim=self.base.vision_dim + POINT,
            rate=0,
            grid=self.grid,
            revision="1",
            options=self.options.resolved,
            points=True,
        )

    def outline(self) -> Pass:
        return Pass(self.base.look, (torch.empty(self.base.pair, 3, *self.base.size, device="meta"),), 1)

    def encode_views(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """A finer grid than the base's repeats its features, a coarser one averages them."""
        points, known = at_centres(scan, self.grid)
        features = rearrange(self.base.watch(scan.rgb.repeat_interleave(self.base.pair, 0)), "v h w c -> v c h w")
        features = rearrange(F.adaptive_avg_pool2d(features, self.grid), "v c h w -> v h w c")
        return torch.cat([features, points], -1), known


class Network(nn.Module):
    """CLIP's patch features plus LLaVA-3D's position embeddings."""

    def __init__(self, config: CLIPVisionConfig, cells: int) -> None:
        super().__init__()
        self.clip = Tower(config, (cells, cells), temporal=False)
        self.position = position_mlp(config.hidden_size)

    def forward(self, pixels: Tensor, points: Tensor) -> Tensor:
        """Tokens (v h w c) of pictures (v 3 y x) and points (v h w 3)."""
        features = rearrange(self.clip(pixels)[:, 1:], "v (h w) c -> v h w c", h=points.shape[1])
        return features + self.position(points)


class Llava3D(Geometry):
    """The preset `llava3d`. The location of its weights is not part of its spec."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="rgbd-geometry",
            sense="depth",
            dim=VIT_L_336.hidden_size,
            rate=0,
            grid=(CELLS, CELLS),
            revision="LLaVA-3D-7B",
            licence=LICENCE,
            options=options.resolved,
        )

    def pick(self, count: int) -> Sequence[int]:
        """Views at equal intervals; with sampling=steps, too few are repeated."""
        if self.options.sampling == "even":
            return evenly(self.options.frames)(count)
        return [i * max(1, count // self.options.frames) % count for i in range(self.options.frames)]

    def outline(self) -> Pass:
        with torch.device("meta"):
            inputs = torch.empty(1, 3, SIDE, SIDE), torch.empty(1, CELLS, CELLS, POINT)
            return Pass(Network(VIT_L_336, CELLS), inputs, 1)

    @property
    def releases(self) -> tuple[Release, ...]:
        return mlp_release(self.options.weights), clip_release(self.options.clip)

    @cached_property
    def network(self) -> Network:
        """The network with its weights."""
        consent(f"{self.spec.name} with preset=llava3d", LICENCE)
        built = self.outline().run
        built.position = position(self.options.weights)
        built.clip = languagebind.read(
            clip_release(self.options.clip), (CELLS, CELLS), temporal=False, config=VIT_L_336
        )
        return built.float().to("cuda" if torch.cuda.is_available() else "cpu")

    def encode_views(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """Passes of a fixed number of views, padded with the last one: the bits of a view do not depend on others."""
        points, known = at_corners(scan, SIDE, CELLS)
        device = next(self.network.parameters()).device
        passes = zip(*(last_again(each, PASS).split(PASS) for each in (scan.rgb, points)), strict=True)
        x = [self.network(pixels(rgb).to(device), part.to(device)).cpu() for rgb, part in passes]
        return torch.cat(x)[: len(scan)], known


def pixels(frames: Tensor) -> Tensor:
    """Pictures uint8 (v 3 y x) to CLIP's input (v 3 336 336): shorter side scaled to 336, cropped to the centre square,
    normalised."""
    short = shorter(frames)
    height, width = (side * SIDE // short for side in frames.shape[2:])
    scaled = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return preprocess(scaled[..., top : top + SIDE, left : left + SIDE], (SIDE, SIDE), MEAN, STD)


def position(weights: str) -> nn.Sequential:
    """The position MLP of LLaVA-3D, from its release."""
    with torch.device("meta"):
        built = position_mlp(VIT_L_336.hidden_size)
    return opened(built, mlp_release(weights))


def mlp_release(weights: str) -> Release:
    with torch.device("meta"):
        built = position_mlp(VIT_L_336.hidden_size)
    return Release(
        given=weights,
        variable=PLACE,
        repo=LLAVA_3D,
        prefixes=HEADS,
        others="",
        remedy=REMEDY,
        encoder="rgbd-geometry",
        what="LLaVA-3D's position MLP",
        licence=LICENCE,
        size="1,055,744 numbers of a release in files of 5 GB; only they are fetched and kept",
        inside=HEADS[1],
        shapes=built.state_dict,
    )


def clip_release(weights: str) -> Release:
    return Release(
        given=weights,
        variable=CLIP_PLACE,
        repo=CLIP,
        remedy=languagebind.REMEDY,
        encoder="rgbd-geometry",
        what="CLIP's ViT-L/14 at 336 pixels",
        licence="MIT",  # of the code of openai/CLIP; its model card calls deployment out of scope
        size="the whole release, whose size the Hub tells",
    )


PRESETS: dict[str, Callable[[Options], Geometry]] = {"base": Placed, "llava3d": Llava3D}
build = builder(Options, lambda options: PRESETS[options.preset](options))
