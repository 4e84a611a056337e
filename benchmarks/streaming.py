"""Does a stream give the same results as the whole recording, and does its memory stay constant for hours?

    python benchmarks/streaming.py            # two hours, writes benchmarks/results/streaming.json
    python benchmarks/streaming.py --small    # ten minutes; writes nothing

`equal`: resamplers of both read-outs get a recording second by second, compared with the same chunks in one batch (bit
equality) and with one pass over all of it (relative difference). `flat`: the embedded base watches a Playroom clip in a
loop, with `audio-playroom` and `favor-playroom` (sound and frames), thins out history beyond `MEMORY`, and is asked ten
times. `held` is the number of bytes in the stream's history, `resident` that of the process, after malloc_trim (glibc
only).
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from study import Study
from torch import Tensor, nn

from pave.config import ResamplerConfig
from pave.fusion import qformer
from pave.fusion.align import align
from pave.fusion.qformer import build_resampler
from pave.media.clip import Clip
from pave.model.patched import load
from pave.model.watch import Show
from pave.playroom.world import draw_scene, draw_script
from pave.playroom.writer import write_clip
from pave.sidechannel import SideBatch, SideTokens
from pave.streaming.encoders import FrameStream, SoundStream
from pave.streaming.resampler import StreamingResampler

MEMORY = 4 << 20  # bytes: 340 pictures of 64 x 64, so that two hours are thinned out several times
RATES = {"slow": 2, "fast": 10}  # side tokens per second
SHAPE = {"slots": 5, "width": 64, "heads": 4, "queries": 16}
READOUTS: dict[str, dict[str, Any]] = {"queries": {}, "states": {"readout": "states", "queries": 32}}
DIM = 32


def awake(module: nn.Module) -> Any:
    """The module with random weights, so that every parameter has an effect."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


def share(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float(f"{(one - other).abs().max() / other.abs().max():.1e}")


def second(tokens: SideTokens, i: int) -> SideTokens:
    return tokens.only((tokens.times >= i) & (tokens.times < i + 1))


@torch.no_grad()
def resampled(readout: str, seconds: int) -> dict[str, Any]:
    """A resampler that streams a recording of this length, compared with the whole recording."""
    shape = ResamplerConfig.model_validate(SHAPE | READOUTS[readout])
    resampler = awake(build_resampler(shape, "add", tuple((sense, DIM) for sense in RATES)))
    heard = {s: SideTokens.regular(torch.randn(seconds * rate, DIM), rate=rate) for s, rate in RATES.items()}
    listening, found = StreamingResampler(resampler), []
    for i in range(seconds):
        found += [listening.feed(sense, second(tokens, i), i + 1.0) for sense, tokens in heard.items()]
    made = torch.cat([each[0] for each in [*found, listening.unfinished()] if each is not None])
    keys = torch.linspace(0, seconds, 32, dtype=torch.float64)
    sides: dict[str, SideBatch | None] = {sense: align([tokens], [keys], "time") for sense, tokens in heard.items()}
    chunks = resampler(sides)[0].x[0, :, :, 0]
    at_once, qformer.WINDOWS = qformer.WINDOWS, 10**9
    whole = resampler(sides)[0].x[0, :, :, 0]
    qformer.WINDOWS = at_once
    return {"equal_bits": torch.equal(made, chunks), "share_of_one_pass": share(made, whole)}


def camera(path: Path, seconds: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A clip in a loop, one second at a time."""
    clip = Clip.read(path, frames=None)
    assert clip.frames is not None and clip.times is not None and clip.audio is not None and clip.rate is not None
    length = int(clip.report.seconds)
    for i in range(seconds):
        own = (clip.times >= i % length) & (clip.times < i % length + 1)
        sound = clip.audio[:, clip.rate * (i % length) : clip.rate * (i % length + 1)]
        yield clip.frames[own], clip.times[own] + (i - i % length), sound


def held(show: Show) -> int:
    """Bytes that a stream holds: history, unfinished sound and frames, and tokens that wait for a resampler."""
    memories = [show.pictures, *show.tokens.values(), *(memory for _, memory in show.resamplers.values())]
    waiting = [heard.tokens for resampler, _ in show.resamplers.values() for heard in resampler.senses.values()]
    sounds = [each.sound for each in show.encoders.values() if isinstance(each, SoundStream) and each.sound is not None]
    pictures = [frame for each in show.encoders.values() if isinstance(each, FrameStream) for frame, _ in each.held]
    tokens = [each.x for each in waiting if each is not None]
    return sum(each.nbytes for each in (*memories, *sounds, *pictures, *tokens))


def resident() -> int:
    """Resident bytes of this process."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * 4096


def watched(seconds: int) -> Iterator[dict[str, Any]]:
    """Measurements at ten times of a long stream."""
    model = load("playroom")
    model.apply_patch("audio-playroom")
    model.apply_patch("favor-playroom")
    with TemporaryDirectory() as folder:
        write_clip(path := Path(folder) / "clip.mp4", draw_scene(0), draw_script(0), 0)
        film = camera(path, seconds)
        with model.watch(film, rate=16_000, memory=MEMORY) as show:
            for part in range(1, 11):
                begin = time.perf_counter()
                reached = show.see(seconds * part / 10 - 0.06)
                watching = time.perf_counter() - begin
                begin = time.perf_counter()
                answer = show.ask("what do you hear?", patches=["favor-playroom"], max_new_tokens=8)
                yield {
                    "second": round(reached, 2),
                    "memory_mb": MEMORY / 1e6,
                    "held_mb": round(held(show) / 1e6, 2),
                    "resident_mb": round(resident() / 1e6, 1),
                    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
                    "pictures": len(show.pictures.held),
                    "one_picture_of": show.pictures.every,
                    "seconds_per_second": round(watching / (seconds / 10), 4),
                    "seconds_of_answer": round(time.perf_counter() - begin, 2),
                    "answer": str(answer),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare streams with whole recordings, and measure a long one.")
    parser.add_argument("--small", action="store_true", help="ten minutes; writes nothing")
    arguments = parser.parse_args()
    study, seconds = Study("streaming"), 600 if arguments.small else 7200

    def keep(key: str, figures: dict[str, Any]) -> None:
        print(f"{key}: {figures}", flush=True)
        if not arguments.small:
            study.add(key, figures)

    for name in READOUTS:
        keep(f"equal, {name}", {"seconds": seconds // 10, **resampled(name, seconds // 10)})
    for moment in watched(seconds):
        keep(f"flat, {moment['second']:.0f} s", moment)


if __name__ == "__main__":
    main()
