"""A small room seen by posed cameras, and scans of it as real files, in both layouts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from small import make_clip
from torch import Tensor

from pave.encoder import Encoder
from pave.media.rgbd import RGBD
from pave.sidechannel import SideTokens

COLOUR_K = torch.tensor([[70.0, 0, 31.5], [0, 72, 23.5], [0, 0, 1]]).double()  # of 64 x 48 pixels
DEPTH_K = torch.tensor(
    [[40.0, 0, 20.5], [0, 41, 14.0], [0, 0, 1]]
).double()  # of 40 x 30; not a scaled copy of the other
FLOOR = torch.tensor([0.0, 0.0, 1.0]).double()  # the world's floor is z = 0
WORLD = torch.tensor([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 2], [0, 0, 1, 0.5], [0, 0, 0, 1]]).double()


def pose(turn: float, tilt: float, place: tuple[float, float, float]) -> Tensor:
    """A camera at a place, turned about the vertical, looking `tilt` radians below the horizon."""
    forward = torch.tensor([math.cos(turn) * math.cos(tilt), math.sin(turn) * math.cos(tilt), -math.sin(tilt)]).double()
    right = torch.linalg.cross(forward, FLOOR)
    right = right / right.norm()
    matrix = torch.eye(4).double()
    matrix[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    matrix[:3, 3] = torch.tensor(place)
    return matrix


def floor_depth(k: Tensor, size: tuple[int, int], cam_to_world: Tensor) -> Tensor:
    """Depth (h w) of the floor, where each pixel's ray meets the plane z = 0."""
    rows, columns = torch.meshgrid(*(torch.arange(side).double() for side in size), indexing="ij")
    rays = torch.stack([columns, rows, torch.ones(size)], -1) @ torch.linalg.inv(k).T @ cam_to_world[:3, :3].T
    return -cam_to_world[2, 3] / (rays @ FLOOR)


def room(views: int = 4) -> RGBD:
    """Views of the floor from above, each from a different position."""
    draw = torch.Generator().manual_seed(0)
    poses = torch.stack([pose(0.7 * i, 1.0 + 0.1 * i, (i / 2, -i / 3, 1.5)) for i in range(views)])
    return RGBD.from_arrays(
        rgb=torch.randint(0, 256, (views, 3, 48, 64), generator=draw, dtype=torch.uint8),
        depth=torch.stack([floor_depth(DEPTH_K, (30, 40), each) for each in poses]).float(),
        depth_intrinsics=DEPTH_K,
        cam_to_world=poses,
        intrinsics=COLOUR_K,
        world=WORLD,
    )


def seen(encoder: Encoder, scan: object) -> SideTokens:
    """The side tokens of a scan next to a clip."""
    side = encoder.encode(replace(make_clip(sound=False), signals={"depth": scan}))
    assert side is not None
    return side


def write_scannet(folder: Path, scan: RGBD, *, step: int = 20, odin: bool = False) -> Path:
    """ScanNet's layout, with every `step`-th frame of a stream; or ODIN's, with the alignment in a separate file."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    for i in range(len(scan)):
        _write_view(folder / f"color/{i * step}.png", folder / f"depth/{i * step}.png", scan, i)
        np.savetxt(folder / f"pose/{i * step}.txt", scan.cam_to_world[i].numpy())
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", _whole(scan.intrinsics))
    np.savetxt(folder / "intrinsic/intrinsic_depth.txt", _whole(scan.depth_intrinsics))
    if odin:
        np.savetxt(folder / "axis_align_matrix.txt", scan.world.numpy())
    else:
        numbers = " ".join(str(value) for value in scan.world.flatten().tolist())
        (folder / f"{folder.name}.txt").write_text(f"appVersionId = 32\naxisAlignment = {numbers}\ncolorWidth = 64\n")
    return folder


def write_embodiedscan(folder: Path, scan: RGBD, name: str = "scannet/scene0000_00") -> str:
    """EmbodiedScan's layout; returns the text that names the scan."""
    dataset, scene = name.split("/")
    info: dict = {"intrinsic": _whole(scan.intrinsics).tolist(), "axis_align_matrix": scan.world.tolist()}
    info["depth_intrinsic"] = _whole(scan.depth_intrinsics).tolist()
    (folder / dataset / "posed_images" / scene).mkdir(parents=True)
    for i in reversed(range(len(scan))):  # in no order
        stem = f"{dataset}/posed_images/{scene}/{i * 10:05d}"
        _write_view(folder / f"{stem}.jpg", folder / f"{stem}.png", scan, i)
        info[f"{stem}.jpg"] = {"pose": scan.cam_to_world[i].tolist(), "depth": f"{stem}.png"}
    (folder / "infos.json").write_text(json.dumps({"scannet/other": {}, name: info}))
    return f"{folder / 'infos.json'}#{name}"


def _write_view(colour: Path, depth: Path, scan: RGBD, view: int) -> None:
    Image.fromarray(scan.rgb[view].permute(1, 2, 0).numpy()).save(colour)
    Image.fromarray((scan.depth[view].numpy() * 1000).round().astype(np.uint16)).save(depth)


def _whole(k: Tensor) -> np.ndarray:
    return torch.block_diag(k, torch.ones(1, 1)).numpy()
