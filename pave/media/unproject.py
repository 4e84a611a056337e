"""World points for the visual tokens of posed images with depth.

In: an `RGBD` and a grid. Out: points in metres and which of them have measured depth, for a grid over each whole image,
or over the square that CLIP's centre crop keeps. Computed in float64. Knows nothing of networks.

v views, y x pixels of an image, h w rows and columns of the grid
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from pave.media.rgbd import RGBD


def at_centres(scan: RGBD, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points (v h w 3) in float32 at the centres of the cells of a grid over each image, and where (v h w) their depth
    is known: that of the nearest pixel on the same ray, by the intrinsics of the depth image."""

    def along(cells: int, size: int, axis: int) -> tuple[Tensor, Tensor]:
        slopes = _slopes(scan.intrinsics, axis, (torch.arange(cells).double() + 0.5) * size / cells - 0.5)
        focal, centre = scan.depth_intrinsics[axis, axis], scan.depth_intrinsics[axis, 2]
        return slopes, (slopes * focal + centre + 0.5).floor().long()

    (down, rows), (right, columns) = along(grid[0], scan.rgb.shape[2], 1), along(grid[1], scan.rgb.shape[3], 0)
    depth, inside = _samples(scan.depth, rows, columns)
    return unproject(scan, down, right, depth), (depth > 0) & inside


def at_corners(scan: RGBD, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """The same as in LLaVA-3D (ZCMax/LLaVA-3D, video_processor.py), for `cells` x `cells` over a centre crop of `size`
    pixels of the depth, its shorter side resized to `size`: each cell takes its first pixel; the colour image is not
    used. For portrait images upstream shifts the principal point sideways; here it shifts as the crop does."""
    short = min(scan.depth.shape[1:])
    pixels = torch.arange(cells).double() * (size // cells)

    def along(side: int, axis: int) -> tuple[Tensor, Tensor]:
        scaled = side * size // short
        # Upstream shifts the principal point by half a pixel where an odd number is cropped, the image by one.
        offset = (scaled - size) / 2
        slopes = _slopes(scan.depth_intrinsics, axis, (pixels + offset) * side / scaled)
        return slopes, ((pixels + round(offset) + 0.5) * side / scaled).long()  # nearest, as Pillow resizes

    (down, rows), (right, columns) = along(scan.depth.shape[1], 1), along(scan.depth.shape[2], 0)
    depth, _ = _samples(scan.depth, rows, columns)
    return unproject(scan, down, right, depth), depth > 0


def unproject(scan: RGBD, down: Tensor, right: Tensor, depth: Tensor) -> Tensor:
    """Points (v h w 3) in float32 at depths (v h w), along rays with these slopes down (h) and right (w) per metre."""
    y, x = torch.meshgrid(down, right, indexing="ij")
    local = torch.stack([x, y, torch.ones_like(x)], -1) * depth.double()[..., None]
    rotation, shift = (scan.world @ scan.cam_to_world).split((3, 1), -1)
    points = torch.einsum("vij,vhwj->vhwi", rotation[:, :3], local) + rearrange(shift[:, :3], "v i 1 -> v 1 1 i")
    return points.float()


def _slopes(intrinsics: Tensor, axis: int, pixels: Tensor) -> Tensor:
    """Slopes of the rays through these columns (axis 0) or rows (axis 1): metres sideways per metre ahead."""
    return (pixels - intrinsics[axis, 2]) / intrinsics[axis, axis]


def _samples(depth: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Depth (v h w) at rows and columns, and which of these are inside the image (h w)."""
    height, width = depth.shape[1:]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return depth[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)], inside
