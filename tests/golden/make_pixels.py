"""Make pixels_llava_onevision.safetensors: what transformers' LlavaOnevisionVideoProcessor gives for seeded noise.

The processor needs torchvision, which is no dependency of ours (its CUDA wheel breaks CPU installs), so this runs in an
environment of its own, with the torch and transformers of constraints.txt:

    python -m venv /tmp/pixels && /tmp/pixels/bin/pip install -c constraints.txt torch transformers pillow
    /tmp/pixels/bin/pip install --no-deps torchvision==0.28.0
    /tmp/pixels/bin/python tests/golden/make_pixels.py

Kept per case: a corner, a coarse grid over the last frame, and the sha256 of all bytes in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HALF = (0.5, 0.5, 0.5)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # the class's own default
CASES = {  # name: (t, y, x), size, mean, std
    "up": ((2, 48, 80), (64, 96), HALF, HALF),
    "camera": ((2, 240, 320), (384, 384), HALF, HALF),
    "wide": ((2, 720, 1280), (384, 384), HALF, HALF),
    "clip": ((2, 240, 320), (384, 384), *CLIP),
}


def noise(name: str) -> np.ndarray:
    """The input of a case (t 3 y x): noise is the hardest picture to resize."""
    (t, y, x), *_ = CASES[name]
    return np.random.default_rng(len(name)).integers(0, 256, (t, 3, y, x), dtype=np.uint8)


def digest(pixels: torch.Tensor) -> str:
    """sha256 of the float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(pixels.numpy()).tobytes()).hexdigest()


def main() -> None:
    # torchvision's compiled operators do not load beside CPU torch; two schemas are all that its import asks for.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # pyright: ignore[reportMissingImports]
    import transformers

    kept, sums = {}, {}
    for name, (_, (height, width), mean, std) in CASES.items():
        processor = transformers.LlavaOnevisionVideoProcessor(
            size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std)
        )
        video = torch.from_numpy(noise(name))
        pixels = processor(videos=[video], return_tensors="pt")["pixel_values_videos"][0]
        assert pixels.shape == (len(video), 3, height, width) and pixels.dtype == torch.float32
        kept[f"{name}.corner"] = pixels[0, :, :12, :12].contiguous()
        kept[f"{name}.grid"] = pixels[-1, :, ::16, ::16].contiguous()
        sums[name] = digest(pixels)
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, transformers)}
    facts = {"sha256": json.dumps(sums), "versions": json.dumps(versions)}
    save_file(kept, Path(__file__).with_name("pixels_llava_onevision.safetensors"), facts)


if __name__ == "__main__":
    main()
