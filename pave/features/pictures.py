"""Pictures of a clip as the vision tower reads them, in few bytes: without loss, so that no feature changes by a bit.

In: key frames at their final size. Out: tensors of bytes, and the key frames again. Knows nothing of models and files.

t key frames, y x pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

# Lossless WebP takes fewer bytes than PNG. This is its fastest setting: the slowest one takes a third fewer, and thirty
# times as long.
WEBP = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}


def packed(pictures: Tensor) -> dict[str, Tensor]:
    """Key frames uint8 (t 3 y x) as bytes."""
    with ThreadPoolExecutor() as pool:  # Pillow encodes and decodes without Python's lock
        files = list(pool.map(_webp, rearrange(pictures, "t c y x -> t y x c").numpy()))
    return {"pictures": torch.cat(files), "sizes": torch.tensor([len(file) for file in files])}


def unpacked(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The key frames (t 3 y x) of `packed`; None: these tensors have none."""
    if "pictures" not in tensors:
        return None
    files = tensors["pictures"].split(tensors["sizes"].tolist())
    pictures = np.stack([np.asarray(Image.open(BytesIO(file.numpy().data))) for file in files])
    return rearrange(torch.from_numpy(pictures), "t y x c -> t c y x").contiguous()


def _webp(picture: np.ndarray) -> Tensor:
    """A picture (y x 3) as the bytes of a file."""
    file = BytesIO()
    Image.fromarray(picture).save(file, **WEBP)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
