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
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pave.base import Base
from pave.encoder import Encoder, EncoderSpec
from pave.errors import EncoderError
from pave.fusion import POINT
from pave.media import Clip
from pave.rgbd import RGBD, Pick, evenly
from pave.sidechannel import SideTokens
from pave.unproject import at_centres

MOST = 1024  # views, rows or columns


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


class OnBase(Geometry):
    """The preset `base`. What it is hangs on the base: until it is `on` one, it cannot say."""

    def __init__(self, options: Options, eyes: Base | None = None) -> None:
        self.options, self.eyes = options, eyes
        self.pick = evenly(options.frames)

    def on(self, base: Base) -> OnBase:
        return OnBase(replace(self.options, grid=list(self.options.grid or base.grid)), base)

    @property
    def base(self) -> Base:
        """Whose eyes these are."""
        if self.eyes is None:
            raise EncoderError(
                "rgbd-geometry looks with the eyes of a base and has none yet; give it one by on(base), or take "
                "preset=llava3d, which has its own"
            )
        return self.eyes

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

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        h, w = self.options.grid or self.base.grid
        return h, w

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the base's eyes."""
        return self.base.eyes()

    def look(self, scan: RGBD) -> tuple[Tensor, Tensor]:
        """A finer grid than the base's repeats its features, a coarser one averages them."""
        points, known = at_centres(scan, self.grid)
        seen = rearrange(self.base.watch(scan.rgb.repeat_interleave(self.base.pair, 0)), "v h w c -> v c h w")
        features = rearrange(F.adaptive_avg_pool2d(seen, self.grid), "v c h w -> v h w c")
        return torch.cat([features, points], -1), known


def build(
    preset: str = "base",
    frames: int = Options.frames,
    fps: float | None = Options.fps,
    mask_holes: bool | None = None,
    grid: Sequence[int] | None = Options.grid,
) -> Geometry:
    """The encoder `rgbd-geometry`."""
    return OnBase(Options(frames=frames, fps=fps, mask_holes=mask_holes is not False, grid=grid))
