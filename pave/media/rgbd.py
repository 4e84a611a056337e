"""Posed images with depth, and readers of the two layouts in which scans are published.

In: arrays; or a scan in ScanNet's layout (a folder with color/, depth/, pose/ and intrinsic/) or in EmbodiedScan's (a
JSON file of infos, which names images next to it). Out: a checked `RGBD` of the requested views. Views whose pose is
not finite, ScanNet's mark of lost tracking, are left out. Knows nothing of encoders and models.

v views, y x pixels of the images, h w pixels of their depth
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from struct import error as StructError
from typing import Any
from zlib import error as ZlibError

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from pave.ambient import neutral
from pave.errors import MediaError, SignalError, nearest
from pave.files.atomic import opened
from pave.media.arrays import pictures_of, tensor_of, times_of
from pave.media.folder import evenly as spaced

MILLIMETRES = 1000  # of a metre: the unit of depth in files
LARGEST = 1 << 26  # pixels of one image: larger ones are damaged or decompression bombs
MATRIX = 1 << 16  # bytes read from a file with one matrix
INFOS = 1 << 30  # most bytes of a file of infos; EmbodiedScan's covers five thousand scans
FAILURES = (OSError, SyntaxError, ValueError, EOFError, OverflowError, StructError, ZlibError)  # raised by Pillow
ALIGNMENT = re.compile(r"^\s*axisAlignment\s*=(.*)$", re.MULTILINE)
LAYOUTS = "give a folder with color/, depth/, pose/ and intrinsic/, or infos.json#scene of EmbodiedScan"

Pick = Callable[[int], Sequence[int]]  # from the number of views to the indices of those to read


@dataclass(frozen=True)
class RGBD:
    """Views of one scene. A camera looks along z, with x to the right and y down; pixel centres are integers."""

    rgb: Tensor  # uint8 (v 3 y x)
    depth: Tensor  # float32 (v h w), metres along z; 0: not measured
    intrinsics: Tensor  # float64 (3 3), of the pixels of `rgb`
    depth_intrinsics: Tensor  # the same for the pixels of `depth`, whose size may differ
    cam_to_world: Tensor  # float64 (v 4 4)
    world: Tensor  # float64 (4 4), from the poses' world frame to an upright one
    times: Tensor | None = None  # float64 (v,) seconds on the clip's clock; None: the views are a set

    def __len__(self) -> int:
        return len(self.rgb)

    def take(self, pick: Pick) -> RGBD:
        """Some of the views."""
        views = list(pick(len(self)))
        parts = {name: getattr(self, name)[views] for name in ("rgb", "depth", "cam_to_world")}
        return replace(self, **parts, times=None if self.times is None else self.times[views])

    @classmethod
    @neutral()
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
        """Views from arrays.

        rgb: as in `Clip.from_frames`. depth: floats (v h w) in metres; 0, negative or not finite where unknown.
        depth_intrinsics, intrinsics: (3 3), or that inside (4 4); without `intrinsics`, rgb has the pixels of depth.
        cam_to_world: (v 4 4). world: (4 4), needed if z of the poses is not up. times: seconds on the clip's clock.
        """
        rgb, depth, poses = pictures_of(rgb), tensor_of(depth), tensor_of(cam_to_world).double()
        if depth.ndim != 3 or not depth.is_floating_point() or 0 in depth.shape:
            raise SignalError(f"depth is {depth.dtype} {tuple(depth.shape)}; pass floats (v h w) in metres")
        if len(depth) != len(rgb) or poses.shape != (len(rgb), 4, 4):
            counts = f"{len(rgb)} images, {len(depth)} depth maps, poses of shape {tuple(poses.shape)}"
            raise SignalError(f"{counts}; pass a depth map and a pose (4 4) for every image")
        if intrinsics is None and rgb.shape[2:] != depth.shape[1:]:
            sizes = f"images are {_size(rgb)} and their depth is {_size(depth)}"
            raise SignalError(f"{sizes}; pass intrinsics as well as depth_intrinsics to relate them")
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
    @neutral()
    def read(
        cls, source: str | os.PathLike, pick: Pick | None = None, fps: float | None = None, alone: bool = False
    ) -> RGBD:
        """Read a scan: a folder in ScanNet's layout, or `infos.json#scene` in EmbodiedScan's.

        pick: which views to read, from the number of those with a pose; None: all. fps: rate of the stream whose frames
        the file numbers count; None: unknown, and the views are an unordered set. alone: the folder is the clip, too,
        in which each view is on screen for a second, whatever its number.
        """
        scan = _scan(os.fspath(source))
        try:
            known = posed(torch.stack([view.pose for view in scan.views]))
            places = list(pick(len(known)) if pick else range(len(known)))
            places = places if fps is None else sorted(places)
            chosen, times = [scan.views[known[place]] for place in places], None
            if fps is not None:
                seconds = places if alone else [view.number / fps for view in chosen]
                times = torch.tensor(seconds, dtype=torch.float64)
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
    """At most this many views, equally spaced, including the first and the last."""

    return partial(spaced, most=frames)


# ---------------------------------------------------------------- checks


def posed(poses: Tensor) -> list[int]:
    """Which poses (v 4 4) are finite; at least one must be."""
    known = poses.isfinite().all(-1).all(-1).nonzero()[:, 0].tolist()
    if not known:
        raise SignalError(
            f"none of the {len(poses)} poses is finite, so the cameras cannot be located; export the poses again"
        )
    return known


def rigid(poses: Tensor, name: str) -> Tensor:
    """Matrices (… 4 4), checked to be rotations with translations."""
    if poses.shape[-2:] != (4, 4):
        raise SignalError(f"{name} has shape {tuple(poses.shape)}; pass (4 4) with rows R t and 0 0 0 1")
    rotation, last = poses[..., :3, :3], torch.tensor([0, 0, 0, 1], dtype=torch.float64)
    off = (rotation.mT @ rotation - torch.eye(3)).abs().amax((-1, -2))
    last_off = (poses[..., 3, :] - last).abs().amax(-1)
    wrong = ~((off <= 1e-2) & (rotation.det() > 0) & (last_off <= 1e-6) & poses.isfinite().all(-1).all(-1))
    if wrong.any():
        raise SignalError(
            f"{name} has {int(wrong.sum())} of {wrong.numel()} matrices that are not rigid transforms (Rᵀ R "
            f"is off by up to {off.max().item():.3g}); pass rows R t and 0 0 0 1, from camera to world, in metres"
        )
    return poses


def camera(matrix: Any, pictures: Tensor, name: str) -> Tensor:
    """Intrinsics (3 3) of images (… y x), checked against the size of the images."""
    k = tensor_of(matrix).double()
    if k.shape not in ((3, 3), (4, 4)):
        raise SignalError(f"{name} has shape {tuple(k.shape)}; pass (3 3) or (4 4)")
    k = k[:3, :3].clone()
    (fx, skew, cx), (also, fy, cy), last = k.tolist()
    height, width = pictures.shape[-2:]
    plain = bool(k.isfinite().all()) and min(fx, fy) > 0 and not skew and not also and last == [0, 0, 1]
    if not plain or not 0 <= cx <= width or not 0 <= cy <= height:
        values = f"focal lengths {fx:g} and {fy:g}, centre ({cx:g}, {cy:g}), skew {skew or also:g}"
        raise SignalError(
            f"{name} does not fit images of {_size(pictures)}: {values}; pass the intrinsics for this image size"
        )
    return k


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[-1]}x{pictures.shape[-2]}"


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class View:
    """The files and the pose of a view."""

    number: int  # of its frame in the stream
    colour: Path
    depth: Path
    pose: Tensor  # (4 4)


@dataclass(frozen=True)
class Scan:
    """The metadata of a scan, read before any image is opened."""

    views: list[View]
    depth_intrinsics: Tensor
    intrinsics: Tensor | None
    world: Tensor | None


def _scan(source: str) -> Scan:
    if os.path.isdir(source):
        return _scannet(Path(source))
    file, _, scene = source.partition("#")
    if not os.path.exists(file):
        raise MediaError(f"{source}: no such folder or file; {LAYOUTS}")
    return _embodiedscan(Path(file), scene)


def _scannet(folder: Path) -> Scan:
    """ScanNet's own export, and that of ODIN, which stores images as PNG and the alignment as a matrix file."""
    colours = _numbered(folder / "color", ".jpg", ".jpeg", ".png")
    depths, poses = _numbered(folder / "depth", ".png"), _numbered(folder / "pose", ".txt")
    counts = {"color": colours, "depth": depths, "pose": poses}
    if lone := sorted(
        (colours.keys() | depths.keys() | poses.keys()) - (colours.keys() & depths.keys() & poses.keys())
    ):
        summary = ", ".join(f"{len(files)} of {name}" for name, files in counts.items())
        missing = " and ".join(name for name, files in counts.items() if lone[0] not in files)
        raise MediaError(f"{folder}: {summary}; view {lone[0]} has no {missing}; export all three for each view")
    aligned, intrinsics = folder / "axis_align_matrix.txt", folder / "intrinsic" / "intrinsic_color.txt"
    return Scan(
        views=[View(i, colours[i], depths[i], _matrix(poses[i])) for i in sorted(colours)],
        depth_intrinsics=_matrix(folder / "intrinsic" / "intrinsic_depth.txt"),
        intrinsics=_matrix(intrinsics) if intrinsics.exists() else None,
        world=_matrix(aligned) if aligned.exists() else _alignment(folder),
    )


def _numbered(folder: Path, *suffixes: str) -> dict[int, Path]:
    """Files by the number in their name."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read ({error.strerror}); {LAYOUTS}") from None
    numbered: dict[int, Path] = {}
    for path in sorted(files):
        if not path.stem.isdecimal() or int(path.stem) in numbered:
            raise MediaError(f"{path}: its name is not a unique number; name the files of each view 0, 1, 2 …")
        numbered[int(path.stem)] = path
    if not numbered:
        raise MediaError(f"{folder}: contains no {' or '.join(suffixes)}; {LAYOUTS}")
    return numbered


def _alignment(folder: Path) -> Tensor | None:
    """The matrix in the text file that ScanNet stores in the folder of a scan, if there is one."""
    path = folder / f"{folder.resolve().name}.txt"
    line = ALIGNMENT.search(_text(path)) if path.exists() else None
    return _numbers(path, line[1]) if line else None


def _matrix(path: Path) -> Tensor:
    return _numbers(path, _text(path))


def _text(path: Path) -> str:
    try:
        with opened(path) as file:
            return file.read(MATRIX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path}: cannot be read ({error}); it must be a text file with 16 numbers") from None


def _numbers(path: Path, text: str) -> Tensor:
    """A matrix (4 4), row by row."""
    try:
        return torch.tensor([float(word) for word in text.split()], dtype=torch.float64).view(4, 4)
    except (ValueError, RuntimeError):
        raise MediaError(f"{path}: contains no matrix of 4 x 4 numbers; write one, row by row") from None


def _embodiedscan(file: Path, scene: str) -> Scan:
    """One scan of a file of infos; its image paths are relative to the folder of that file."""
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
            raise ValueError("it names no images")
        matrices = (_nested(info[key]) for key in ("depth_intrinsic", "intrinsic", "axis_align_matrix"))
        return Scan(sorted(views, key=lambda view: view.number), *matrices)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise MediaError(
            f"{file}: {scene} is not in EmbodiedScan's format ({what}); it needs depth_intrinsic, intrinsic, "
            "axis_align_matrix, and images named by numbers with a pose and a depth each"
        ) from None


@lru_cache(maxsize=1)  # it takes seconds to read, and all scans of a training run are in the same one
def _infos(file: Path, changed: int) -> dict[str, Any]:
    try:
        with opened(file) as content:
            if os.fstat(content.fileno()).st_size > INFOS:
                raise ValueError(f"more than {INFOS:,} bytes")
            infos = json.loads(content.read())
    except (OSError, ValueError, RecursionError) as error:
        raise MediaError(f"{file}: cannot be read as JSON ({error}); {LAYOUTS}") from None
    if not isinstance(infos, dict):
        raise MediaError(f"{file}: contains a {type(infos).__name__}, not scans by name; {LAYOUTS}")
    return infos


def _nested(rows: Any) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"a matrix has shape {tuple(matrix.shape)}")
    return matrix


# ---------------------------------------------------------------- images


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
            raise SignalError(f"{path} and {paths[0].name} are {sizes}; all views of a scan must have the same size")
    return torch.stack(list(pictures))


def _pixels(path: Path, *, depth: bool) -> Tensor:
    """A PNG or JPEG as stored: poses and intrinsics refer to the stored pixels, so EXIF rotation is ignored."""
    try:
        with opened(path) as file, Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height}, more than {LARGEST:,} pixels")
            if not depth:
                return torch.from_numpy(np.array(image.convert("RGB")))
            if not image.mode.startswith("I"):  # I;16, or I in older versions of Pillow
                raise ValueError(f"its pixels have mode {image.mode}, but depth has 16 bits")
            return torch.from_numpy(np.array(image, dtype=np.int32))
    except (*FAILURES, Image.DecompressionBombError) as error:
        raise SignalError(f"{path}: cannot be read ({error}); give a PNG or JPEG, and a 16-bit PNG for depth") from None
