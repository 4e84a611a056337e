"""Features that PAVE's authors published, one `.pt` file a clip, as side tokens on the clip's clock.

In: the clip, a folder, and the encoder whose tokens they are. Out: what that encoder would say, in their numbers. A
file is a bare tensor without times, so these are laid as the authors cut the clips (dragonlzm/PAVE, `tools/`), and a
file with too many or too few of them for its clip is refused. Pickles are opened by pave/pickled.py only.

τ time steps, h w grid, c channels
"""

from __future__ import annotations

from math import floor
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from pave import pickled
from pave.encoder import EncoderSpec
from pave.errors import EncoderError, PatchError, SignalError
from pave.media import Clip
from pave.sidechannel import SideTokens

SECONDS = 2  # of sound behind each of ImageBind's tokens, one of which begins every second
RATE, GROUP = 2, 8  # frames per second of LanguageBind's, in groups that see each other
SHAPES = {  # of a file
    "imagebind-audio": "(τ 1024)",
    "languagebind-video": "(τ 5 1024), of which the first of 5 is no place in the picture",
    "rgbd-geometry": "(1 18432 1024), 32 views of 24 x 24",
}


def tokens(spec: EncoderSpec, clip: Clip, folder: Path, media: Path) -> SideTokens | None:
    """The published tokens of a clip; None where it lacks the stream, and so could have none."""
    if spec.name not in SHAPES:
        raise EncoderError(f"PAVE's authors published no features of {spec.name}, but of {', '.join(SHAPES)}")
    if spec.sense == "audio" and clip.audio is None:
        return None
    path = _file(folder, media)
    try:
        (x,) = pickled.read(path).values()
    except PatchError as error:
        raise SignalError(f"{path}: {error.cause}; {error.remedy}") from None
    except ValueError:
        raise SignalError(f"{path}: holds several tensors, and a file of features one") from None
    made = {"imagebind-audio": _sound, "languagebind-video": _frames, "rgbd-geometry": _views}[spec.name](x, clip)
    if made is None:
        raise SignalError(
            f"{path}: holds {tuple(x.shape)} of {x.dtype}; features of {spec.name} are {SHAPES[spec.name]}"
        )
    if isinstance(made, str):
        raise SignalError(f"{path}: holds {made}; these are features of another clip")
    return made


def _file(folder: Path, media: Path) -> Path:
    """The file of a clip: `<name>.pt`, or of a scan `<name>/video_features.pt`."""
    places = [folder / f"{media.stem}.pt", folder / media.stem / "video_features.pt"]
    for place in places:
        if place.is_file():
            return place
    raise SignalError(f"{media}: has no published features; there is neither {places[0]} nor {places[1]}")


def _sound(x: Tensor, clip: Clip) -> SideTokens | str | None:
    """Token i is of the seconds [i, i + 2); their sound went through an mp3, so its length may be a little off."""
    if clip.audio is None or clip.rate is None or x.ndim != 2 or x.shape[1] != 1024:
        return None
    seconds = clip.audio.shape[-1] / clip.rate
    if abs(len(x) - (floor(seconds) - 1)) > 1:
        return f"{len(x)} tokens, one a second, for {seconds:.1f} s of sound"
    first = clip.audio_start + torch.arange(len(x), dtype=torch.float64)
    spans = torch.stack([first, first + SECONDS], dim=-1)
    return _laid(rearrange(x, "τ c -> τ 1 1 c"), spans.mean(-1), spans)


def _frames(x: Tensor, clip: Clip) -> SideTokens | str | None:
    """Frames at equal distances from the first picture to the last."""
    if x.ndim != 3 or x.shape[1:] != (5, 1024) or not len(x) or len(x) % GROUP:
        return None
    report = clip.report
    wanted = GROUP * max(1, floor(RATE * (report.last - report.first + report.gap) / GROUP))
    if abs(len(x) - wanted) > GROUP:
        return f"{len(x)} frames for {report.seconds:.1f} s of video, which has about {wanted}"
    times = torch.linspace(report.first, report.last, len(x), dtype=torch.float64)
    spans = rearrange(times, "(g t) -> g t", t=GROUP)[:, (0, -1)].repeat_interleave(GROUP, 0)
    return _laid(rearrange(x[:, 1:], "τ (h w) c -> τ h w c", h=2), times, spans)


def _views(x: Tensor, clip: Clip) -> SideTokens | None:
    """Views of a scan, whose times are not told."""
    if x.shape != (1, 32 * 24 * 24, 1024):
        return None
    times = torch.arange(32, dtype=torch.float64)
    laid = rearrange(x, "1 (τ h w) c -> τ h w c", h=24, w=24)
    return SideTokens(laid, times, times[:, None].expand(-1, 2), torch.ones(32, 24, 24, dtype=torch.bool), kind="set")


def _laid(x: Tensor, times: Tensor, spans: Tensor) -> SideTokens:
    return SideTokens(x, times, spans, torch.ones(x.shape[:3], dtype=torch.bool))
