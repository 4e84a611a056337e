"""Scans read back as written, in both layouts; lost views are left out, inconsistent values are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scans import DEPTH_K, room, write_embodiedscan, write_scannet

from pave.errors import MediaError, SignalError
from pave.media.rgbd import RGBD, evenly

Damage = Callable[[Path], Any]


def same(found: RGBD, wanted: RGBD, pixels: int = 0) -> None:
    """Equal up to rounding to millimetres, and a mean JPEG error of `pixels` of 255."""
    assert found.rgb.shape == wanted.rgb.shape
    assert (found.rgb.float() - wanted.rgb.float()).abs().mean() <= pixels
    assert torch.allclose(found.depth, wanted.depth, rtol=0, atol=5.1e-4)
    for name in ("depth_intrinsics", "intrinsics", "cam_to_world", "world"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-12)


# Files


@pytest.mark.parametrize("odin", [False, True])
def test_a_scan_in_scannets_layout_reads_back_as_written(odin, tmp_path):
    scan = room()
    same(RGBD.read(write_scannet(tmp_path / "scene0000_00", scan, odin=odin)), scan)


def test_a_scan_in_embodiedscans_layout_reads_back_as_written(tmp_path):
    scan = room()
    found = RGBD.read(write_embodiedscan(tmp_path, scan))
    same(found, scan, pixels=60)  # noise is the worst case for JPEG
    assert found.times is None


def test_file_numbers_give_the_order_and_the_times_of_views(tmp_path):
    scan = room(12)
    found = RGBD.read(write_scannet(tmp_path / "scene", scan), fps=30)
    same(found, scan)  # 100.png comes before 20.png in a sorted folder
    assert found.times is not None and torch.allclose(found.times, torch.arange(12).double() * 20 / 30)


def test_only_the_views_that_are_picked_are_opened(tmp_path):
    scan, folder = room(5), tmp_path / "scene"
    write_scannet(folder, scan)
    for i in (1, 3):
        (folder / f"color/{20 * i}.png").write_bytes(b"")
    same(RGBD.read(folder, evenly(3)), scan.take(lambda count: [0, 2, 4]))
    with pytest.raises(MediaError, match=r"20.png: cannot be read"):
        RGBD.read(folder)


@pytest.mark.parametrize(
    ("count", "frames", "want"), [(3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (8, 8, [*range(8)])]
)
def test_views_are_picked_equally_spaced(count, frames, want):
    assert list(evenly(frames)(count)) == want


def test_without_alignment_the_world_is_that_of_the_poses_and_without_colour_intrinsics_sizes_must_agree(tmp_path):
    scan = room(2)
    folder = write_scannet(tmp_path / "scene", scan)
    (folder / "scene.txt").unlink()
    assert torch.equal(RGBD.read(folder).world, torch.eye(4).double())
    (folder / "intrinsic/intrinsic_color.txt").unlink()
    with pytest.raises(MediaError, match="images are 64x48 and their depth is 40x30; pass intrinsics"):
        RGBD.read(folder)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_views_that_were_lost_are_left_out_before_any_is_picked(value, tmp_path):
    scan, folder = room(4), tmp_path / "scene"
    write_scannet(folder, scan)
    (folder / "pose/0.txt").write_text(f"{value} " * 16)
    same(RGBD.read(folder, evenly(2)), scan.take(lambda count: [1, 3]))
    for i in range(4):
        (folder / f"pose/{20 * i}.txt").write_text(f"{value} " * 16)
    with pytest.raises(MediaError, match="scene: none of the 4 poses is finite"):
        RGBD.read(folder)


def bomb(path: Path) -> None:
    Image.new("1", (9_000, 9_000)).save(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "color/20.png").unlink(), "3 of color, 4 of depth, 4 of pose; view 20 has no color"),
        (lambda f: (f / "pose/20.txt").unlink(), "view 20 has no pose"),
        (lambda f: (f / "color/20.png").rename(f / "color/a.png"), "a.png: its name is not a unique number"),
        (lambda f: (f / "color/20.png").rename(f / "color/020.png"), None),
        (lambda f: (f / "color/40.JPG").write_bytes(b""), "40.png: its name is not a unique number"),
        (lambda f: (f / "depth").rename(f / "d"), "depth: cannot be read"),
        (lambda f: [each.unlink() for each in (f / "depth").iterdir()], "depth: contains no .png"),
        (lambda f: (f / "intrinsic/intrinsic_depth.txt").unlink(), "intrinsic_depth.txt: cannot be read"),
        (lambda f: (f / "intrinsic/intrinsic_depth.txt").write_text("1 2 x"), "contains no matrix of 4 x 4"),
        (lambda f: (f / "pose/20.txt").write_text("1 " * 9), "20.txt: contains no matrix of 4 x 4"),
        (lambda f: (f / "pose/20.txt").write_text("1 " * 100_000), "20.txt: contains no matrix"),
        (lambda f: (f / "pose/20.txt").write_bytes(b"\xff" * 64), "20.txt: cannot be read"),
        (
            lambda f: (f / "pose/20.txt").write_text("1 2 3 4 " * 4),
            "cam_to_world has 1 of 4 matrices that are not rigid",
        ),
        (lambda f: (f / "scene.txt").write_text("axisAlignment = 1 2"), "scene.txt: contains no matrix"),
        (lambda f: (f / "scene.txt").write_text("axisAlignment =" + " 2" * 16), "world has 1 of 1 matrices"),
        (lambda f: truncated(f / "color/20.png"), "20.png: cannot be read"),
        (lambda f: truncated(f / "depth/20.png"), "20.png: cannot be read"),
        (lambda f: bomb(f / "color/20.png"), "20.png: cannot be read"),
        (lambda f: Image.new("L", (40, 30)).save(f / "depth/20.png"), "mode L, but depth has 16 bits"),
        (lambda f: Image.new("RGB", (40, 30)).save(f / "depth/20.png"), "mode RGB, but depth has 16 bits"),
        (lambda f: Image.new("RGB", (9, 7)).save(f / "color/20.png"), "20.png and 0.png are 9x7 and 64x48"),
        (lambda f: Image.new("RGB", (64, 48)).save(f / "color/20.png", "GIF"), "20.png: cannot be read"),
    ],
)
def test_a_damaged_scan_is_refused(damage: Damage, message: str | None, tmp_path):
    folder = write_scannet(tmp_path / "scene", room(4))
    damage(folder)
    if message is None:
        return same(RGBD.read(folder), room(4))
    with pytest.raises(MediaError, match=message):
        RGBD.read(folder)


@pytest.mark.parametrize(
    ("damage", "scene", "message"),
    [
        (lambda info: None, "scannet/scene0000_01", "is not one of its 2; did you mean 'scannet/scene0000_00'"),
        (lambda info: None, "", "scene '' is not one of its 2"),
        (lambda info: info.pop("depth_intrinsic"), None, "KeyError: 'depth_intrinsic'"),
        (lambda info: info.update(intrinsic=[[1]]), None, r"a matrix has shape \(1, 1\)"),
        (lambda info: info.update(intrinsic="x"), None, "is not in EmbodiedScan's format"),
        (lambda info: info.update(intrinsic=[[10**400] * 4] * 4), None, "int too large"),
        (lambda info: info.update({"a/x.jpg": {"pose": [], "depth": "a"}}), None, "is not in EmbodiedScan's format"),
        (lambda info: [info.pop(key) for key in list(info) if "/" in key], None, "it names no images"),
        (
            lambda info: [view.update(depth="/dev/null") for view in info.values() if "depth" in view],
            None,
            r"infos\.json#scannet/scene0000_00: /dev/null: cannot be read",
        ),
    ],
)
def test_damaged_infos_are_refused(damage, scene, message, tmp_path):
    source = write_embodiedscan(tmp_path, room(2))
    infos = json.loads((tmp_path / "infos.json").read_text())
    damage(infos["scannet/scene0000_00"])
    (tmp_path / "infos.json").write_text(json.dumps(infos))
    with pytest.raises(MediaError, match=message):
        RGBD.read(source if scene is None else f"{tmp_path / 'infos.json'}#{scene}")


@pytest.mark.parametrize(("data", "message"), [(b"{", "read as JSON"), (b"[]", "a list"), (b"\xff", "read as JSON")])
def test_a_file_that_is_not_a_scan_is_refused(data, message, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(MediaError, match=message):
        RGBD.read(tmp_path / "file")
    with pytest.raises(MediaError, match=r"gone: no such folder or file; give a folder with color/"):
        RGBD.read(tmp_path / "gone")


# Values


def test_arrays_are_checked_and_lost_views_left_out():
    scan = room(3)
    poses = scan.cam_to_world.clone()
    poses[1, 0, 3] = float("nan")
    depth = scan.depth.numpy().copy()
    depth[0, :3, 0] = [np.nan, -1, np.inf]
    turned = scan.rgb.permute(0, 2, 3, 1).numpy()
    found = RGBD.from_arrays(turned, depth, _four(DEPTH_K), poses.numpy(), intrinsics=scan.intrinsics)
    assert torch.equal(found.rgb, scan.rgb[[0, 2]])
    assert torch.equal(found.cam_to_world, scan.cam_to_world[[0, 2]])
    assert not found.depth[0, :3, 0].any() and torch.equal(found.depth[1], scan.depth[2])


def _four(k: torch.Tensor) -> np.ndarray:
    return torch.block_diag(k, torch.ones(1, 1)).numpy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": torch.ones(3, 30, 40)}, r"4 images, 3 depth maps"),
        ({"depth": torch.ones(4, 30, 40, dtype=torch.int32)}, r"depth is torch.int32 \(4, 30, 40\); pass floats"),
        ({"depth": torch.ones(4, 30)}, r"depth is torch.float32 \(4, 30\)"),
        ({"cam_to_world": torch.eye(4)}, r"poses of shape \(4, 4\); pass a depth map and a pose"),
        ({"cam_to_world": torch.eye(4).expand(4, 4, 4).mT * 2}, "4 of 4 matrices .*off by up to 3"),
        ({"cam_to_world": torch.eye(4).diag().diag().expand(4, 4, 4) * torch.tensor([1, 1, -1, 1])}, "not rigid"),
        ({"cam_to_world": torch.full((4, 4, 4), float("nan"))}, "none of the 4 poses is finite"),
        ({"world": torch.full((4, 4), float("nan"))}, "world has"),
        ({"world": torch.eye(3)}, r"world has shape \(3, 3\)"),
        ({"intrinsics": torch.eye(2)}, r"intrinsics has shape \(2, 2\)"),
        (
            {"depth_intrinsics": room().intrinsics * 2},
            r"depth_intrinsics does not fit images of 40x30: .*centre \(63,",
        ),
        ({"depth_intrinsics": torch.tensor([[0, 0, 9.0], [0, 9, 9], [0, 0, 1]])}, "focal lengths 0 and 9"),
        ({"intrinsics": torch.tensor([[9, 2, 9.0], [0, 9, 9], [0, 0, 1]])}, "skew 2"),
        ({"intrinsics": torch.full((3, 3), float("nan"))}, "focal lengths nan"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(SignalError, match=message):
        RGBD.from_arrays(**vars(room()) | change)


def test_every_view_needs_a_time():
    with pytest.raises(MediaError, match="one per frame"):
        RGBD.from_arrays(**vars(room(3)) | {"times": [0.0, 1.0]})
    times = RGBD.from_arrays(**vars(room(3)) | {"times": [0, 1, 2]}).take(lambda count: [0, 2]).times
    assert times is not None and times.tolist() == [0, 2]
