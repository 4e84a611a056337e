"""Write an encoder for a side channel: how loud it is in three registers, ten times a second.

    python examples/new_encoder.py

An encoder is one file. As `encoders/loudness.py` this one would be found by `pave.load_encoder("loudness")` and by a
recipe that says `senses: {audio: {encoder: loudness}}`; here it is used without installing it. A sensor works the same
way: read `clip.signals["imu"]` where this reads `clip.audio`.

b clips, t key frames, τ encoder time, c channels
"""

import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import pave
from pave.encoder import Encoder, EncoderSpec
from pave.errors import EncoderError
from pave.media import Clip
from pave.playroom.writer import write_clips
from pave.sidechannel import SideTokens, align

EDGES = (0, 500, 2000, 8000)  # Hz: low, middle, high


class Loudness(Encoder):
    """Frozen, without weights. What it is can be read before it has heard anything."""

    def __init__(self, rate: int) -> None:
        if not 1 <= rate <= 100:
            raise EncoderError(f"rate={rate} tokens per second; take 1 to 100")
        options = {"rate": rate}
        self.spec = EncoderSpec(name="loudness", sense="audio", dim=3, rate=rate, revision="1", options=options)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens on the clip's clock. None where the clip has no sound track: that is not the same as silence."""
        if clip.audio is None or clip.rate is None:
            return None
        levels = self._levels(clip.audio.mean(0), clip.rate)
        return SideTokens.regular(levels, rate=self.spec.rate, start=clip.audio_start)

    def _levels(self, sound: Tensor, rate: int) -> Tensor:
        """Samples to (τ c): the logarithm of the power in each register."""
        window, rest = divmod(rate, int(self.spec.rate))
        if rest:
            raise EncoderError(
                f"{rate} samples per second cannot be cut into {self.spec.rate} equal tokens; resample it"
            )
        pieces = sound[: len(sound) // window * window].reshape(-1, window)
        power = torch.fft.rfft(pieces, norm="forward").abs().square()
        bins = torch.fft.rfftfreq(window, 1 / rate)
        inside = [(bins >= low) & (bins < high) for low, high in pairwise(EDGES)]
        return torch.stack([torch.log10(power[:, band].mean(1) + 1e-8) for band in inside], dim=1)


def build(rate: int = 10) -> Loudness:
    """What `load_encoder` calls; its arguments are the options that a recipe may give."""
    return Loudness(rate)


def main() -> None:
    encoder = build()
    print(f"{encoder.spec}\n")
    with tempfile.TemporaryDirectory() as folder:
        write_clips(folder, clips=1, split="test")
        (path,) = Path(folder, "clips").glob("*.mp4")
        clip = pave.Clip.read(path, frames=8)

    tokens = encoder.encode(clip)
    if tokens is None or clip.times is None:
        raise SystemExit(f"nothing to hear: {clip.report}")
    batch = align([tokens], [clip.times], "time")
    print("key frame   side tokens that it reads   the loudest register there")
    for frame, (index, mask) in enumerate(zip(batch.index[0], batch.mask[0], strict=True)):
        mine = index[mask]
        first, last = tokens.spans[mine[0], 0], tokens.spans[mine[-1], 1]
        loudest = ("low", "middle", "high")[int(tokens.x[mine, 0, 0].amax(0).argmax())]
        print(f"{frame} at {clip.times[frame]:.2f} s   {len(mine)} from {first:.1f} to {last:.1f} s   {loudest}")

    silent = replace(clip, audio=torch.zeros_like(clip.audio)) if clip.audio is not None else clip
    mute = replace(clip, audio=None)
    print(
        f"\ndigital silence is a signal: {encoder.encode(silent) is not None}; no track is none: {encoder.encode(mute)}"
    )


if __name__ == "__main__":
    main()
