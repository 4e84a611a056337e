"""Points have the right positions: on a floor that all cameras see, on the rays of their tokens, and equal to those of
LLaVA-3D."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from safetensors import safe_open
from scans import COLOUR_K, DEPTH_K, WORLD, floor_depth, room
from torch import Tensor

from pave.media.rgbd import RGBD
from pave.media.unproject import at_centres, at_corners

GOLDEN = GOLDEN_FOLDER / "llava3d_geometry.safetensors"


def golden() -> tuple[dict[str, Tensor], list[dict]]:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["intrinsic_cases"])


def fine(k: Tensor, scale: int) -> Tensor:
    """Intrinsics of a picture with `scale` times as many pixels a side."""
    k = k.clone()
    k[:2, 2] = (k[:2, 2] + 0.5) * scale - 0.5
    k[:2, :2] *= scale
    return k


@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (1, 1)])
def test_points_are_on_the_floor_and_on_the_ray_of_their_token(grid):
    scan, scale = room(), 16  # depth with so many pixels that the nearest one is on the ray
    k = fine(DEPTH_K, scale)
    depth = torch.stack([floor_depth(k, (30 * scale, 40 * scale), each) for each in scan.cam_to_world])
    points, known = at_centres(replace(scan, depth=depth, depth_intrinsics=k), grid)
    assert points.dtype == torch.float32 and known.all()
    home = torch.linalg.inv(WORLD @ scan.cam_to_world)
    at = torch.einsum("vij,vhwj->vhwi", home[:, :3, :3], points.double()) + home[:, None, None, :3, 3]
    seen = at @ COLOUR_K.T
    h, w = grid
    middles = torch.tensor([[[64 * (j + 0.5) / w - 0.5, 48 * (i + 0.5) / h - 0.5] for j in range(w)] for i in range(h)])
    assert torch.allclose(seen[..., :2] / seen[..., 2:], middles.double().expand(4, h, w, 2), rtol=0, atol=1e-4)
    # The nearest pixel is up to half a fine pixel off the ray, on a floor that is not perpendicular to it.
    assert (points[..., 2] - WORLD[2, 3]).abs().max() < 5e-3


def test_depth_is_that_of_the_pixel_on_the_same_ray():
    scan = room(1)
    depth = torch.zeros(1, 30, 40)
    depth[0, 14, 20] = 2.0  # the pixel nearest to the middle of the depth, (20.5, 14)
    depth[0, 14, 21] = 2.0
    points, known = at_centres(replace(scan, depth=depth), (15, 15))
    assert known[0].nonzero().tolist() == [[7, 7]]  # column (31.5 - 31.5) / 70 * 40 + 20.5, row 14
    home = torch.linalg.inv(WORLD @ scan.cam_to_world[0])
    assert torch.allclose((home[:3, :3] @ points[0, 7, 7].double() + home[:3, 3])[2], torch.tensor(2.0).double())


def test_points_without_measured_depth_are_not_known():
    scan = room(2)
    depth = scan.depth.clone()
    depth[0, :15] = 0
    narrow = torch.tensor([[80.0, 0, 20.5], [0, 41, 14.0], [0, 0, 1]]).double()  # sees half as far to the sides
    points, known = at_centres(replace(scan, depth=depth), (6, 8))
    assert points.isfinite().all()
    assert not known[0, :3].any() and known[0, 3:].all() and known[1].all()
    _, known = at_centres(replace(scan, depth_intrinsics=narrow), (6, 8))
    assert known[1].any(0).tolist() == [False, False, True, True, True, True, False, False]
    assert not at_centres(replace(scan, depth=torch.zeros(2, 30, 40)), (6, 8))[1].any()


def test_points_equal_those_of_llava3d():
    tensors, _ = golden()
    for view in range(2):
        depth, pose, k = (tensors[name][view, None] for name in ("depth", "cam_to_world", "intrinsics"))
        scan = RGBD.from_arrays(torch.zeros(1, 3, 336, 336, dtype=torch.uint8), depth, k[0], pose)
        points, known = at_corners(scan, 336, 24)
        assert torch.allclose(points[0], tensors["xyz"][view], rtol=0, atol=1e-5)
        assert torch.equal(known[0], depth[0, ::14, ::14] > 0) and not known.all()


def at_one_metre(size: list[int], k: Tensor) -> Tensor:
    """x and y of LLaVA-3D's points of a wall, one metre ahead of a camera at the origin."""
    width, height = size
    pictures, depth = torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.ones(1, height, width)
    return at_corners(RGBD.from_arrays(pictures, depth, k, torch.eye(4)[None]), 336, 24)[0][0, ..., :2]


@pytest.mark.parametrize("case", golden()[1], ids=lambda case: "x".join(map(str, case["size"])))
def test_the_crop_equals_that_of_llava3d_except_for_portraits_which_are_cropped_correctly(case):
    (width, height), k, expected = case["size"], torch.tensor(case["K"]), torch.tensor(case["K_out"])
    found = at_one_metre([width, height], k)
    corners = torch.arange(24) * 14
    x, y = ((corners - expected[axis, 2]) / expected[axis, axis] for axis in (0, 1))
    if width > height:
        want = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    else:  # upstream is wrong here: it crops left and right instead of top and bottom
        assert expected[0, 2] == pytest.approx(223.65)
        turned = torch.tensor([[k[1, 1], 0, k[1, 2]], [0, k[0, 0], k[0, 2]], [0, 0, 1]])
        want = at_one_metre([height, width], turned).transpose(0, 1).flip(-1)
    assert torch.allclose(found, want, rtol=0, atol=1e-5)


def test_depth_is_sampled_as_pillow_would_resize_and_crop_it():
    from PIL import Image

    depth = torch.arange(1.0, 1 + 97 * 131).view(97, 131)
    scan = RGBD.from_arrays(
        torch.zeros(1, 3, 97, 131, dtype=torch.uint8), depth[None], torch.eye(3), torch.eye(4)[None]
    )
    scaled = Image.fromarray(depth.numpy()).resize((336 * 131 // 97, 336), Image.Resampling.NEAREST)
    left = (scaled.width - 336) / 2
    square = scaled.crop((left, 0, left + 336, 336))  # type: ignore[arg-type]
    assert (
        left % 1
        and [square.getpixel((14 * i, 14 * i)) for i in range(24)]
        == at_corners(scan, 336, 24)[0][0, range(24), range(24), 2].tolist()
    )
