"""`pave explain`: why a patched model gives an answer. In: a clip and a question. Out: text, and a page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pave.cli.ask import MOST, AudioTrack, Base, Device, Dtype, Frames, Most, Signals, Timeout, VideoTrack
from pave.cli.signals import signals_of
from pave.cli.terminal import lines_of, quiet, remark, say


def explain(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video or an image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in plain text.")],
    patch: Annotated[
        list[str], typer.Option(metavar="PATCH", help="A name, a folder, a file or user/repo; may be repeated.")
    ],
    base: Base = "playroom",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; one that exists is replaced.")] = Path(
        "explanation.html"
    ),
    signal: Signals = None,
    audio_track: AudioTrack = None,
    video_track: VideoTrack = None,
    timeout: Timeout = None,
    frames: Frames = None,
    max_new_tokens: Most = MOST,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Show which seconds of VIDEO an answer depends on.

    Silences one second after the other, asks again, and writes a page that plays the clip beside what was read when.
    """
    quiet()
    from pave.data import Source
    from pave.evaluation.explained import write_page
    from pave.model.patched import load

    signals = signals_of(signal or [], timeout)
    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patch:
        remark(*lines_of(model.apply_patch(source)))
    found = model.explain(
        video,
        question,
        max_new_tokens=max_new_tokens,
        timeout=timeout or "auto",
        audio_track=audio_track,
        video_track=video_track,
        **signals,
    )
    say(*lines_of(found))
    heard = [("audio", file) for option in signal or [] for name, _, file in [option.partition("=")] if name == "audio"]
    remark(write_page(found, out, Source(video, tuple(heard), audio_track, video_track)))
