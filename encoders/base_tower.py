"""The base's own vision tower, for more pictures than its key frames: no new weights.

In, for the sense `fast`: a clip of a file, which is read again at `rate` frames per second; or frames and times passed
as `fast`. In, for the sense `views`: a list of further cameras on the clip's clock, each a clip, a path or frames and
times, or None for a missing camera; they are encoded at the times of the key frames. Out: the projector's input,
averaged to a small grid; the grids of cameras are stacked vertically.

τ time steps (of two frames if the base encodes pairs), h w grid, c channels
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from pave.base import PASS, Host, last_again
from pave.encoder import Count, EncoderOptions, EncoderSpec, Groups, OnBase, Pass, builder
from pave.errors import EncoderError, MediaError, SignalError
from pave.media import Clip
from pave.senses import pictures
from pave.sidechannel import SideTokens

EDGE = 1e-6  # seconds: rounding error of an instant


class Options(EncoderOptions):
    """What a recipe may say."""

    sense: Annotated[Literal["fast", "views"], Field(description="encodes fast or views")] = "fast"
    rate: pictures.Rate = 2.0  # fast: frames per second
    # Rows and columns, at most those of the base; None: 2 x 2 for `fast`, those of the base for `views`.
    grid: Any = None
    # views: number of cameras besides the clip's own
    views: Annotated[Count, Field(le=64, description="encodes one further camera or more")] = 1


class BaseTower(OnBase):
    """Encodes pictures other than the key frames of its base."""

    def __init__(self, options: Options, host: Host | None = None) -> None:
        self.options, self.host = options, host

    def on(self, base: Host) -> BaseTower:
        grid = self.options.grid
        if grid is None:
            grid = (2, 2) if self.options.sense == "fast" else base.grid
        grid = pictures.grid_of(grid, base.grid, "base-tower")
        return BaseTower(self.options.model_copy(update={"grid": grid}), base)

    @cached_property
    def spec(self) -> EncoderSpec:
        fast, (h, w) = self.options.sense == "fast", self.grid
        return EncoderSpec(
            name="base-tower",
            sense=self.options.sense,
            dim=self.base.vision_dim,
            rate=self.options.rate / self.base.pair if fast else 0,
            grid=(h, w) if fast else (self.options.views * h, w),
            revision="1",
            options=self.options.resolved,
        )

    def outline(self) -> Pass:
        pictures = self.base.pair * (self.options.views if self.options.sense == "views" else 1)
        return Pass(self.base.look, (torch.empty(pictures, 3, *self.base.size, device="meta"),), 1)

    @property
    def groups(self) -> Groups | None:
        return Groups(self.options.rate, PASS) if self.options.sense == "fast" else None

    def encode(self, clip: Clip) -> SideTokens | None:
        """None for a clip without pictures, or without further cameras."""
        return self._fast(clip) if self.options.sense == "fast" else self._views(clip)

    def _fast(self, clip: Clip) -> SideTokens | None:
        dense = pictures.fast(clip)
        if dense is None:
            return None
        times = pictures.instants(dense, self.options.rate, self.base.pair)
        x = self._encode(dense, times)
        return self._tokens(x, times, torch.ones(x.shape[:3], dtype=torch.bool))

    def _views(self, clip: Clip) -> SideTokens | None:
        views: Any = clip.signals.get("views")
        if views is None or clip.times is None:
            return None
        if not isinstance(views, list | tuple):
            raise EncoderError(f"views= is a {type(views).__name__}; pass a list of cameras")
        if len(views) != self.options.views:
            cause = f"views= has {len(views)} cameras, this encoder needs {self.options.views}"
            raise SignalError(f"{cause}; pass all, in the same order, and None for a missing one")
        times = last_again(clip.times.double(), self.base.pair)
        x, valid = zip(*(self._view(view, f"views[{i}]", times) for i, view in enumerate(views)), strict=True)
        return self._tokens(torch.cat(x, 1), times, torch.cat(valid, 1))

    def _view(self, view: Any, name: str, times: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (τ h w c) of one camera, and a mask of those at times that it recorded."""
        steps = len(times) // self.base.pair
        if view is None:
            return torch.zeros(steps, *self.grid, self.spec.dim), torch.zeros(steps, *self.grid, dtype=torch.bool)
        camera = pictures.opened(view, name)
        if camera.frames is None or not len(camera.frames):
            raise MediaError(f"{name} has no pictures; pass a video, or None for a missing camera")
        first, last, near = camera.report.first, camera.report.last, camera.report.gap / 2 + EDGE
        recorded = (times >= first - near) & (times <= last + near)
        if not recorded.any():
            clocks = f"from {first:.2f} to {last:.2f} s, the key frames are from {times[0]:.2f} to {times[-1]:.2f} s"
            raise SignalError(f"{name} has pictures {clocks}: they do not overlap; put both on one clock")
        valid = rearrange(recorded, "(τ p) -> τ p", τ=steps).all(-1)
        return self._encode(camera, times.clamp(first, last)), valid[:, None, None].expand(-1, *self.grid)

    def _encode(self, clip: Clip, times: Tensor) -> Tensor:
        """The pictures on screen at these instants as tokens (τ h w c)."""
        parts = (self.base.watch(frames) for frames in pictures.groups(clip, times, PASS))
        return torch.cat([pictures.pooled(part, self.grid) for part in parts])

    def _tokens(self, x: Tensor, times: Tensor, valid: Tensor) -> SideTokens:
        clocks = rearrange(times, "(τ p) -> τ p", p=self.base.pair)
        return SideTokens(x, clocks.mean(-1), clocks[:, (0, -1)], valid)


build = builder(Options, BaseTower)
