"""Features that PAVE's authors published, one `.pt` file a clip, as side tokens on the clip's clock.

In: the clip, a folder, and the encoder whose tokens they are. Out: what that encoder would say, in their numbers. A
file is a bare tensor without times, so these are laid as the authors cut the clips (dragonlzm/PAVE, `tools/`), and a
file with too many or too few of them for its clip is refused. Pickles are opened by pave/files/pickled.py only.

τ time steps, h w grid, c channels
"""

from __future__ import annotations

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

SECONDS = 2  # of sound behind each of ImageBind's tokens, one of which begins every second
RATE, GROUP = 2, 8  # frames per second of LanguageBind's, in groups that see each other
VIEWS, SIDE = 32, 24  # of a scan, each of as many tokens squared


def tokens(spec: EncoderSpec, clip: Clip, folder: Path, media: Path) -> SideTokens | None:
    """The published tokens of a clip; None where it lacks the stream, and so could have none."""
    if spec.name not in LAID:
        raise EncoderError(f"PAVE's authors published no features of {spec.name}, but of {', '.join(LAID)}")
    if spec.sense == "audio" and clip.audio is None:
        return None
    path = _file(folder, media)
    with raised_as(SignalError):
        held = pickled.read(path)
    try:
        (x,) = held.values()
        return laid(spec.name, x, clip)
    except ValueError:
        raise SignalError(f"{path}: holds several tensors, and a file of features one") from None
    except SignalError as error:
        raise SignalError(f"{path}: {error}") from None


def laid(encoder: str, x: Tensor, clip: Clip) -> SideTokens:
    """The tensor of a file on the clock of its clip."""
    lay, shape = LAID[encoder]
    if x.ndim != len(shape) or any(want and have != want for have, want in zip(x.shape, shape, strict=True)):
        told = ", ".join(str(each or "τ") for each in shape)
        raise SignalError(f"holds {tuple(x.shape)} of {x.dtype}; published features of {encoder} are ({told})")
    return lay(x, clip)


def _file(folder: Path, media: Path) -> Path:
    """The file of a clip: `<name>.pt`, or of a scan `<name>/video_features.pt`."""
    places = [folder / f"{media.stem}.pt", folder / media.stem / "video_features.pt"]
    for place in places:
        if place.is_file():
            return place
    raise SignalError(f"{media}: has no published features; there is neither {places[0]} nor {places[1]}")


def _sound(x: Tensor, clip: Clip) -> SideTokens:
    """Token i is of the seconds [i, i + 2). Their sound went through an mp3, so its length may be a little off."""
    seconds = 0.0 if clip.audio is None or clip.rate is None else clip.audio.shape[-1] / clip.rate
    if abs(len(x) - (floor(seconds) - 1)) > 1:
        raise SignalError(f"holds {len(x)} tokens, one a second, for {seconds:.1f} s of sound: another clip's")
    first = clip.audio_start + torch.arange(len(x), dtype=torch.float64)
    spans = torch.stack([first, first + SECONDS], dim=-1)
    return SideTokens(rearrange(x, "τ c -> τ 1 1 c"), spans.mean(-1), spans, _all(len(x), 1))


def _frames(x: Tensor, clip: Clip) -> SideTokens:
    """Frames at equal distances from the first picture to the last; the first of five tokens is no place in it."""
    wanted = len(spread(clip, RATE, GROUP))
    if not len(x) or len(x) % GROUP or abs(len(x) - wanted) > GROUP:
        raise SignalError(f"holds {len(x)} frames for a clip that has {wanted}, in groups of {GROUP}: another clip's")
    times = torch.linspace(clip.report.first, clip.report.last, len(x), dtype=torch.float64)
    spans = rearrange(times, "(g t) -> g t", t=GROUP)[:, (0, -1)].repeat_interleave(GROUP, 0)
    return SideTokens(rearrange(x[:, 1:], "τ (h w) c -> τ h w c", h=2), times, spans, _all(len(x), 2))


def _views(x: Tensor, clip: Clip) -> SideTokens:
    """Views of a scan, whose times are not told."""
    times = torch.arange(VIEWS, dtype=torch.float64)
    views = rearrange(x, "1 (τ h w) c -> τ h w c", h=SIDE, w=SIDE)
    return SideTokens(views, times, times[:, None].expand(-1, 2), _all(VIEWS, SIDE), kind="set")


def _all(steps: int, side: int) -> Tensor:
    return torch.ones(steps, side, side, dtype=torch.bool)


LAID = {  # how, and the shape of a file, in which 0 is any number
    "imagebind-audio": (_sound, (0, 1024)),
    "languagebind-video": (_frames, (0, 5, 1024)),
    "rgbd-geometry": (_views, (1, VIEWS * SIDE**2, 1024)),
}
