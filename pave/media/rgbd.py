"""Posed pictures with depth: a value, and readers of the two layouts in which scans are published.

In: arrays; or a scan in ScanNet's layout (a folder with color/, depth/, pose/ and intrinsic/) or in EmbodiedScan's (a
JSON file of infos, which names pictures beside it). Out: an `RGBD` of as many views as are asked for, checked. Views
whose pose is not finite, as ScanNet marks frames that were lost, are left out. Knows nothing of encoders and models.

v views, y x pixels of the pictures, h w pixels of their depth
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from struct import error as StructError
from typing import Any
from zlib import error as ZlibError

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from pave.errors import MediaError, SignalError, nearest
from pave.media.arrays import pictures_of, tensor_of, times_of

MILLIMETRES = 1000  # of a metre: the unit of depth in files
LARGEST = 1 << 26  # pixels of one picture: more are damage, or made to fill the memory
MATRIX = 1 << 16  # bytes of a file with one matrix, at most
INFOS = 1 << 30  # bytes of a file of infos, at most; EmbodiedScan's has those of five thousand scans
FAILURES = (OSError, SyntaxError, ValueError, EOFError, OverflowError, StructError, ZlibError)  # of Pillow
ALIGNMENT = re.compile(r"^\s*axisAlignment\s*=(.*)$", re.MULTILINE)
LAYOUTS = "give a folder with color/, depth/, pose/ and intrinsic/, or infos.json#scene of EmbodiedScan"

Pick = Callable[[int], Sequence[int]]  # which of so many views


@dataclass(frozen=True)
class RGBD:
    """Views of one world. A camera looks along z, with x to the right and y down; pixel centres are whole numbers."""

    rgb: Tensor  # uint8 (v 3 y x)
    depth: Tensor  # float32 (v h w), metres along z; 0: nothing was measured
    intrinsics: Tensor  # float64 (3 3), of the pixels of `rgb`
    depth_intrinsics: Tensor  # the same of those of `depth`, which may be more or fewer
    cam_to_world: Tensor  # float64 (v 4 4)
    world: Tensor  # float64 (4 4), from the world of the poses to an upright one
    times: Tensor | None = None  # float64 (v,) seconds on the clip's clock; None: the views are a set

    def __len__(self) -> int:
        return len(self.rgb)

    def take(self, pick: Pick) -> RGBD:
        """Some of the views."""
        views = list(pick(len(self)))
        parts = {name: getattr(self, name)[views] for name in ("rgb", "depth", "cam_to_world")}
        return replace(self, **parts, times=None if self.times is None else self.times[views])

    @classmethod
    def from_arrays(
        cls,
        rgb: Any,
        depth: Any,
        depth_intrinsics: Any,
        cam_to_world: Any,
        *,
        intrinsics: Any = None,
        world: Any = None,
        times: Any = None,
    ) -> RGBD:
        """Views from what the user already has.

        rgb: as in `Clip.from_frames`. depth: floats (v h w) in metres; 0, below 0 or not finite where there is none.
        depth_intrinsics, intrinsics: (3 3), or that inside (4 4); without the second, rgb has the pixels of the depth.
        cam_to_world: (v 4 4). world: (4 4), where z of the poses is not upwards. times: seconds on the clip's clock.
        """
        rgb, depth, poses = pictures_of(rgb), tensor_of(depth), tensor_of(cam_to_world).double()
        if depth.ndim != 3 or not depth.is_floating_point() or 0 in depth.shape:
            raise SignalError(f"depth is {depth.dtype} {tuple(depth.shape)}; give floats (v h w) in metres")
        if len(depth) != len(rgb) or poses.shape != (len(rgb), 4, 4):
            counts = f"{len(rgb)} pictures, {len(depth)} of depth, poses of shape {tuple(poses.shape)}"
            raise SignalError(f"{counts}; give a depth and a pose (4 4) for every picture")
        if intrinsics is None and rgb.shape[2:] != depth.shape[1:]:
            sizes = f"pictures are {_size(rgb)} and their depth is {_size(depth)}"
            raise SignalError(f"{sizes}; say how they lie on each other by intrinsics as well as depth_intrinsics")
        depth_k, known = camera(depth_intrinsics, depth, "depth_intrinsics"), posed(poses)
        return cls(
            rgb=rgb[known],
            depth=torch.where(depth.isfinite() & (depth > 0), depth, 0).float()[known],
            intrinsics=depth_k if intrinsics is None else camera(intrinsics, rgb, "intrinsics"),
            depth_intrinsics=depth_k,
            cam_to_world=rigid(poses[known], "cam_to_world"),
            world=rigid(tensor_of(torch.eye(4) if world is None else world).double(), "world"),
            times=None if times is None else times_of(times, len(rgb))[known],
        )

    @classmethod
    def read(cls, source: str | os.PathLike, pick: Pick | None = None, fps: float | None = None) -> RGBD:
        """Read a scan: a folder in ScanNet's layout, or `infos.json#scene` in EmbodiedScan's.

        pick: which views to read, of as many as have a pose; None: all. fps: pictures per second of the stream that the
        numbers of the files count; None: nobody knows, and the views are a set.
        """
        scan = _scan(os.fspath(source))
        try:
            known = posed(torch.stack([view.pose for view in scan.views]))
            chosen = [scan.views[known[i]] for i in (pick(len(known)) if pick else range(len(known)))]
            times = None
            if fps is not None:
                chosen = sorted(chosen, key=lambda view: view.number)
                times = torch.tensor([view.number / fps for view in chosen], dtype=torch.float64)
            return cls.from_arrays(
                rgb=_colours([view.colour for view in chosen]),
                depth=_depths([view.depth for view in chosen]),
                depth_intrinsics=scan.depth_intrinsics,
                cam_to_world=torch.stack([view.pose for view in chosen]),
                intrinsics=scan.intrinsics,
                world=scan.world,
                times=times,
            )
        except SignalError as error:
            raise MediaError(f"{source}: {error}") from None


def evenly(frames: int) -> Pick:
    """At most so many views at equal distances, the first and the last among them."""

    def pick(count: int) -> Sequence[int]:
        return range(count) if count <= frames else torch.linspace(0, count - 1, frames).round().int().tolist()

    return pick


# ---------------------------------------------------------------- checks


def posed(poses: Tensor) -> list[int]:
    """Which poses (v 4 4) are finite; at least one must be."""
    known = poses.isfinite().all(-1).all(-1).nonzero()[:, 0].tolist()
    if not known:
        raise SignalError(f"not one of {len(poses)} poses is finite, so nobody knows where the cameras were")
    return known


def rigid(poses: Tensor, name: str) -> Tensor:
    """Matrices (… 4 4), once they are known to turn and shift, and nothing else."""
    if poses.shape[-2:] != (4, 4):
        raise SignalError(f"{name} has shape {tuple(poses.shape)}; give (4 4) with rows R t and 0 0 0 1")
    turn, last = poses[..., :3, :3], torch.tensor([0, 0, 0, 1], dtype=torch.float64)
    off = (turn.mT @ turn - torch.eye(3)).abs().amax((-1, -2))
    last_off = (poses[..., 3, :] - last).abs().amax(-1)
    wrong = ~((off <= 1e-2) & (turn.det() > 0) & (last_off <= 1e-6) & poses.isfinite().all(-1).all(-1))
    if wrong.any():
        raise SignalError(
            f"{name} has {int(wrong.sum())} of {wrong.numel()} matrices that do not turn and shift rigidly (Rᵀ R is "
            f"off by up to {off.max().item():.3g}); give rows R t and 0 0 0 1, from the camera to the world, in metres"
        )
    return poses


def camera(matrix: Any, pictures: Tensor, name: str) -> Tensor:
    """Intrinsics (3 3) of pictures (… y x), once they are known to fit each other."""
    k = tensor_of(matrix).double()
    if k.shape not in ((3, 3), (4, 4)):
        raise SignalError(f"{name} has shape {tuple(k.shape)}; give (3 3) or (4 4)")
    k = k[:3, :3].clone()
    (fx, skew, cx), (also, fy, cy), last = k.tolist()
    height, width = pictures.shape[-2:]
    plain = bool(k.isfinite().all()) and min(fx, fy) > 0 and not skew and not also and last == [0, 0, 1]
    if not plain or not 0 <= cx <= width or not 0 <= cy <= height:
        told = f"focal lengths {fx:g} and {fy:g}, centre ({cx:g}, {cy:g}), skew {skew or also:g}"
        raise SignalError(f"{name} cannot be of pictures of {_size(pictures)}: {told}; give those of these pixels")
    return k


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[-1]}x{pictures.shape[-2]}"


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class View:
    """Where a view lies."""

    number: int  # in the stream
    colour: Path
    depth: Path
    pose: Tensor  # (4 4)


@dataclass(frozen=True)
class Scan:
    """What a scan says of itself before a picture is opened."""

    views: list[View]
    depth_intrinsics: Tensor
    intrinsics: Tensor | None
    world: Tensor | None


def _scan(source: str) -> Scan:
    if os.path.isdir(source):
        return _scannet(Path(source))
    file, _, scene = source.partition("#")
    if not os.path.isfile(file):
        raise MediaError(f"{source}: no such folder or file; {LAYOUTS}")
    return _embodiedscan(Path(file), scene)


def _scannet(folder: Path) -> Scan:
    """ScanNet's own export, and that of ODIN, which has pictures as PNG and the alignment as a matrix."""
    colours = _numbered(folder / "color", ".jpg", ".jpeg", ".png")
    depths, poses = _numbered(folder / "depth", ".png"), _numbered(folder / "pose", ".txt")
    counts = {"color": colours, "depth": depths, "pose": poses}
    if lone := sorted(
        (colours.keys() | depths.keys() | poses.keys()) - (colours.keys() & depths.keys() & poses.keys())
    ):
        told = ", ".join(f"{len(files)} of {name}" for name, files in counts.items())
        lacks = " and ".join(name for name, files in counts.items() if lone[0] not in files)
        raise MediaError(f"{folder}: {told}; number {lone[0]} lacks its {lacks}; each view needs all three")
    aligned, intrinsics = folder / "axis_align_matrix.txt", folder / "intrinsic" / "intrinsic_color.txt"
    return Scan(
        views=[View(i, colours[i], depths[i], _matrix(poses[i])) for i in sorted(colours)],
        depth_intrinsics=_matrix(folder / "intrinsic" / "intrinsic_depth.txt"),
        intrinsics=_matrix(intrinsics) if intrinsics.exists() else None,
        world=_matrix(aligned) if aligned.exists() else _alignment(folder),
    )


def _numbered(folder: Path, *suffixes: str) -> dict[int, Path]:
    """Files by the number that they are called by."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read ({error.strerror}); {LAYOUTS}") from None
    found: dict[int, Path] = {}
    for path in sorted(files):
        if not path.stem.isdecimal() or int(path.stem) in found:
            raise MediaError(f"{path}: is called by no number of its own; call the files of a view 0, 1, 2 …")
        found[int(path.stem)] = path
    if not found:
        raise MediaError(f"{folder}: holds no {' or '.join(suffixes)}; {LAYOUTS}")
    return found


def _alignment(folder: Path) -> Tensor | None:
    """The matrix in the text that ScanNet has in the folder of a scan, where there is one."""
    path = folder / f"{folder.resolve().name}.txt"
    line = ALIGNMENT.search(_text(path)) if path.exists() else None
    return _numbers(path, line[1]) if line else None


def _matrix(path: Path) -> Tensor:
    return _numbers(path, _text(path))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MATRIX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path}: cannot be read ({error}); give a text with 16 numbers") from None


def _numbers(path: Path, text: str) -> Tensor:
    """A matrix (4 4), row by row."""
    try:
        return torch.tensor([float(word) for word in text.split()], dtype=torch.float64).view(4, 4)
    except (ValueError, RuntimeError):
        raise MediaError(f"{path}: holds no matrix of 4 x 4 numbers; give one, row by row") from None


def _embodiedscan(file: Path, scene: str) -> Scan:
    """One scan of a file of infos; its pictures have names relative to the folder of that file."""
    infos = _infos(file, file.stat().st_mtime_ns)
    scene = scene or (min(infos) if len(infos) == 1 else "")
    if not isinstance(infos.get(scene), Mapping):
        raise MediaError(f"{file}: scene {scene!r} is not one of its {len(infos)}; {nearest(scene, infos)}; {LAYOUTS}")
    info, views = infos[scene], []
    try:
        for name, view in info.items():
            if isinstance(view, Mapping) and "pose" in view:
                colour = file.parent / name
                views.append(View(int(colour.stem), colour, file.parent / view["depth"], _nested(view["pose"])))
        if not views:
            raise ValueError("it names no pictures")
        matrices = (_nested(info[key]) for key in ("depth_intrinsic", "intrinsic", "axis_align_matrix"))
        return Scan(sorted(views, key=lambda view: view.number), *matrices)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise MediaError(
            f"{file}: {scene} is not told as EmbodiedScan does ({what}); it needs depth_intrinsic, intrinsic, "
            "axis_align_matrix, and pictures called by numbers with a pose and a depth each"
        ) from None


@lru_cache(maxsize=1)  # it takes seconds to read, and every scan of a training run is in the same one
def _infos(file: Path, changed: int) -> dict[str, Any]:
    try:
        if file.stat().st_size > INFOS:
            raise ValueError(f"more than {INFOS:,} bytes")
        infos = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MediaError(f"{file}: cannot be read as JSON ({error}); {LAYOUTS}") from None
    if not isinstance(infos, dict):
        raise MediaError(f"{file}: holds a {type(infos).__name__}, and no scans by name; {LAYOUTS}")
    return infos


def _nested(rows: Any) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"a matrix has shape {tuple(matrix.shape)}")
    return matrix


# ---------------------------------------------------------------- pictures


def _colours(paths: Sequence[Path]) -> Tensor:
    """(v 3 y x)"""
    return rearrange(_stack([_pixels(path, depth=False) for path in paths], paths), "v y x c -> v c y x")


def _depths(paths: Sequence[Path]) -> Tensor:
    """(v h w) in metres."""
    return _stack([_pixels(path, depth=True) for path in paths], paths).float() / MILLIMETRES


def _stack(pictures: Sequence[Tensor], paths: Sequence[Path]) -> Tensor:
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sizes = " and ".join(f"{each.shape[1]}x{each.shape[0]}" for each in (picture, pictures[0]))
            raise MediaError(f"{path} and {paths[0].name} are {sizes}; all views of a scan have one size")
    return torch.stack(list(pictures))


def _pixels(path: Path, *, depth: bool) -> Tensor:
    """A PNG or JPEG as it is stored: poses and intrinsics mean its own pixels, whatever its EXIF says of turns."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height}, more than {LARGEST:,} pixels")
            if not depth:
                return torch.from_numpy(np.array(image.convert("RGB")))
            if not image.mode.startswith("I"):  # I;16, or I before Pillow knew the other
                raise ValueError(f"its pixels are of kind {image.mode}, where depth has 16 bits")
            return torch.from_numpy(np.array(image, dtype=np.int32))
    except (*FAILURES, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be read ({error}); give a PNG or JPEG, of depth a PNG of 16 bits") from None
