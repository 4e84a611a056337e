"""The `pave encode` command.

In: an encoder, clips and options. Out: a folder of feature files; progress on stderr, a summary on stdout. The
extraction itself is in pave/features/extract.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pave.cli.data import FORMAT, MEDIA, data_set
from pave.cli.terminal import quiet, remark, say
from pave.text.progress import Shown
from pave.text.shown import counted

if TYPE_CHECKING:
    from pave.features.extract import Tally

MANY = 8  # most workers by default: each holds a copy of the encoder's network


def encode(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="For example logmel or imagebind-audio.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of media, or a file of questions.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the feature files.")],
    format: Annotated[str | None, FORMAT] = None,
    media: Annotated[Path | None, MEDIA] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of the encoder, as in a recipe; may be repeated."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(metavar="DTYPE", help="Dtype of the stored tokens.")
    ] = "float32",
    base: Annotated[
        str, typer.Option(metavar="BASE", help="Base model whose vision tower the encoder uses, if it needs one.")
    ] = "",
    published: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Convert the .pt features that the PAVE paper's authors published."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Worker processes. Default: one per core, at most 8.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.1, help="Time limit per clip, in seconds. Default: more for a longer clip."),
    ] = None,
    memory: Annotated[float, typer.Option(metavar="GIB", min=0.1, help="Memory limit per worker.")] = 16.0,
    shard: Annotated[int, typer.Option(metavar="N", min=1, help="Clips per feature file.")] = 32,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(metavar="ENGINE", help="'local', or 'ray' for a cluster.")
    ] = "local",
    retry: Annotated[bool, typer.Option("--retry", help="Try quarantined clips again.")] = False,
) -> None:
    """Encode the clips of SOURCE once, for any number of trainings.

    A file of questions may have any format of `pave data formats`. In a folder, a file is a clip if PyAV can open it;
    hidden files are skipped. Clips that cannot be read, or exceed the time or memory limit, are listed in
    OUT/quarantine.jsonl; damaged ones that were read, in OUT/warnings.jsonl; files of the folder that are not media, in
    OUT/left-out.jsonl. If interrupted, run the same command again to continue. Under torchrun, each process encodes its
    share.
    """
    quiet()
    from pave.features import extract, files, worker
    from pave.media.warned import told
    from pave.recipe import overridden

    begin, options = time.perf_counter(), overridden(option or [])
    folder = str(published.absolute()) if published else ""
    job = worker.Job(encoder, options, dtype, base, folder, timeout, memory)
    clips, left_out = extract.found(data_set(source, format, media))
    workers = workers or min(MANY, os.cpu_count() or 1)
    remark(f"{encoder}: {counted(len(clips), 'clip')}, {counted(workers, 'worker')}")
    done: int | None = None
    with Shown() as seen, seen.stage("clips", len(clips)) as stage:

        def progress(more: int) -> None:
            nonlocal done
            if done is None:
                stage.first = more  # those of an earlier run come first
            done = (done or 0) + more
            stage.to(done)

        try:
            tally = extract.encode(
                job, clips, out, size=shard, workers=workers, engine=engine, retry=retry, progress=progress
            )
        except KeyboardInterrupt:
            remark("", f"stopped; finished shards are in {out}; run the same command again to continue")
            raise SystemExit(130) from None
    if left_out or (out / "left-out.jsonl").exists():
        files.write_list(out / "left-out.jsonl", [{"file": name, "why": why} for name, why in left_out.items()])
    for line in extract.some(left_out):
        remark(f"left out: {line}")
    for line in told(tally.warnings):
        remark(f"warning: {line}")
    say(*summary(tally, out, time.perf_counter() - begin, len(left_out)))


def summary(tally: Tally, out: Path, seconds: float, left_out: int) -> list[str]:
    """Counts for the whole folder, and the time of this run."""
    good = tally.clips - tally.absent - len(tally.refused)
    are = "is" if tally.clips == 1 else "are"
    lines = [f"{good:,} of {counted(tally.clips, 'clip')} {are} encoded; this took {seconds:.1f} s"]
    if tally.absent:
        lack = "lacks the signal and is" if tally.absent == 1 else "lack the signal and are"
        lines.append(f"{counted(tally.absent, 'clip')} {lack} recorded as absent")
    if tally.refused:
        listed = out / "quarantine.jsonl"
        lines.append(f"{counted(len(tally.refused), 'clip')} quarantined; see {listed} for the reasons")
    if tally.warnings:
        listed = out / "warnings.jsonl"
        lines.append(f"{counted(len(tally.warnings), 'clip')} read with warnings; all are in {listed}")
    if left_out:
        listed = out / "left-out.jsonl"
        lines.append(f"{counted(left_out, 'more file')} left out, not media; all are in {listed}")
    return [*lines, f"{out} ({counted(tally.shards, 'file')}, {counted(tally.bytes, 'byte')})"]
