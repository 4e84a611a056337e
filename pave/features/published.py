"""Features published by the PAVE paper's authors, one `.pt` file a clip, as side tokens on the clip's clock.

In: the clip, a folder, and the encoder that made the tokens. Out: the published values as that encoder's side tokens. A
file is a bare tensor without times, so these follow the official preprocessing (dragonlzm/PAVE, `tools/`), and a file
whose number of tokens does not fit its clip is refused. Pickles are opened by pave/files/pickled.py only.

τ time steps, h w grid, c channels
"""

from __future__ import annotations

import os
from math import floor
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from pave.encoder import EncoderSpec
from pave.errors import EncoderError, SignalError, raised_as
from pave.files import pickled
from pave.media.clip import Clip
from pave.senses.pictures import spread
from pave.sidechannel import SideTokens

SECONDS = 2  # of sound per ImageBind token; one token begins every second
RATE, GROUP = 2, 8  # frames per second of LanguageBind, in groups of frames that attend to each other
VIEWS, SIDE = 32, 24  # of a scan, each of SIDE x SIDE tokens


def tokens(spec: EncoderSpec, clip: Clip, folder: Path, media: Path) -> SideTokens | None:
    """The published tokens of a clip; None if it lacks the stream."""
    if spec.name not in LAID:
        raise EncoderError(f"there are no published features of {spec.name}, only of {', '.join(LAID)}")
    if spec.sense == "audio" and clip.audio is None:
        return None
    path = _file(folder, media)
    with raised_as(SignalError):
        tensors = pickled.read(path)
    try:
        (x,) = tensors.values()
        return laid(spec.name, x, clip)
    except ValueError:
        raise SignalError(f"{path}: contains {len(tensors)} tensors, a feature file has one") from None
    except SignalError as error:
        raise SignalError(f"{path}: {error}") from None


def laid(encoder: str, x: Tensor, clip: Clip) -> SideTokens:
    """The tensor of a file as side tokens on the clock of its clip."""
    lay, shape = LAID[encoder]
    if x.ndim != len(shape) or any(size and got != size for got, size in zip(x.shape, shape, strict=True)):
        expected = ", ".join(str(each or "τ") for each in shape)
        raise SignalError(f"has {tuple(x.shape)} of {x.dtype}; published features of {encoder} are ({expected})")
    return lay(x, clip)


def _file(folder: Path, media: Path) -> Path:
    """The file of a clip: `<name>.pt`, or of a scan `<name>/video_features.pt`."""
    places = [folder / f"{media.stem}.pt", folder / media.stem / "video_features.pt"]
    for place in places:
        if os.path.isfile(place):
            return place
    raise SignalError(f"{media}: has no published features; neither {places[0]} nor {places[1]} exists")


def _sound(x: Tensor, clip: Clip) -> SideTokens:
    """Token i covers seconds [i, i + 2). The authors converted sound to mp3, so its length may differ a little."""
    seconds = 0.0 if clip.audio is None or clip.rate is None else clip.audio.shape[-1] / clip.rate
    if abs(len(x) - (floor(seconds) - 1)) > 1:
        raise SignalError(f"has {len(x)} tokens, one a second, for {seconds:.1f} s of sound; it is of another clip")
    first = clip.audio_start + torch.arange(len(x), dtype=torch.float64)
    spans = torch.stack([first, first + SECONDS], dim=-1)
    return SideTokens(rearrange(x, "τ c -> τ 1 1 c"), spans.mean(-1), spans, _all(len(x), 1))


def _frames(x: Tensor, clip: Clip) -> SideTokens:
    """Frames at equal distances from the first picture to the last; the first of five tokens is the class token."""
    expected = len(spread(clip, RATE, GROUP))
    if not len(x) or len(x) % GROUP or abs(len(x) - expected) > GROUP:
        raise SignalError(f"has {len(x)} frames for a clip of {expected}, in groups of {GROUP}; it is of another clip")
    times = torch.linspace(clip.report.first, clip.report.last, len(x), dtype=torch.float64)
    spans = rearrange(times, "(g t) -> g t", t=GROUP)[:, (0, -1)].repeat_interleave(GROUP, 0)
    return SideTokens(rearrange(x[:, 1:], "τ (h w) c -> τ h w c", h=2), times, spans, _all(len(x), 2))


def _views(x: Tensor, clip: Clip) -> SideTokens:
    """Views of a scan, which have no times."""
    times = torch.arange(VIEWS, dtype=torch.float64)
    views = rearrange(x, "1 (τ h w) c -> τ h w c", h=SIDE, w=SIDE)
    return SideTokens(views, times, times[:, None].expand(-1, 2), _all(VIEWS, SIDE), kind="set")


def _all(steps: int, side: int) -> Tensor:
    return torch.ones(steps, side, side, dtype=torch.bool)


LAID = {  # encoder -> layout, and the shape of a file, where 0 is any size
    "imagebind-audio": (_sound, (0, 1024)),
    "languagebind-video": (_frames, (0, 5, 1024)),
    "rgbd-geometry": (_views, (1, VIEWS * SIDE**2, 1024)),
}
