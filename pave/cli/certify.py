"""The `pave patch certify` command: does a patch use its sense, and the proof inside its file.

In: a patch, and a file of questions or the channels of a Playroom set. Out: the certificate on stdout, and in the
patch's file; with --check, whether a recorded one holds; exit code 1 if nothing was shown. It imports what it needs
when it runs. Knows nothing of how the gains are measured (pave/evaluation/certify.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pave.cli.data import FORMAT, MEDIA, data_set
from pave.cli.terminal import lines_of, quiet, remark, say
from pave.errors import PatchError, UsageError

if TYPE_CHECKING:
    from pave.hub.locate import PatchLocation
    from pave.patch.certificate import Certificate
    from pave.patch.file import Patch


def certify(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder, a file, or user/repo.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="Questions with answers, in any format. Without: see --channel."),
    ] = None,
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
    check: Annotated[
        bool, typer.Option("--check", help="Measure again what its certificate says, and compare; writes nothing.")
    ] = False,
    channel: Annotated[
        list[str] | None,
        typer.Option(metavar="CHANNEL", help="Instead of DATA: questions of the Playroom; may be repeated."),
    ] = None,
    clips: Annotated[int, typer.Option(metavar="N", min=1, help="Clips of the Playroom, with --channel.")] = 200,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of these clips.")] = 0,
    capacity: Annotated[
        str | None,
        typer.Option(
            metavar="PATCH|YAML",
            help="A patch of the same shape that had no signal to learn from; or the recipe of PATCH, to train it.",
        ),
    ] = None,
    any_time: Annotated[
        bool, typer.Option("--any-time", help="DATA does not ask when: a shifted signal need not be worse.")
    ] = False,
    on: Annotated[
        list[str] | None, typer.Option(metavar="PATCH", help="Patches under it, in all runs; may be repeated.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Key of the type of question. Default: kind or channel, if any.")
    ] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="As in `pave eval`.")] = "match",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to this file or folder. Default: into PATCH itself.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For answers and features. Default: runs/certify-NAME; --check: check-NAME."
        ),
    ] = None,
    format: Annotated[str | None, FORMAT] = None,
    media: Annotated[Path | None, MEDIA] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another key of a data set, such as turns=last.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Questions at a time.")] = 32,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="'auto', 'float32', 'bfloat16', 'float16' or 'float64'.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="'auto', 'cpu', 'cuda', ...")] = "auto",
) -> None:
    """Measure whether a patch uses its sense, and write the certificate into its file.

    Its answers with each clip's own signal are compared with those to shuffled, silent and shifted signals, and to
    other sounds of the same loudness. It is certified if the lower bound of every gain is above 0. Exit code 1: it is
    not, or --check found something else. After a kill, the same command goes on.
    """
    quiet()
    from pave.hub.locate import locate

    place = locate(source)
    patch = place.load()
    recorded = _recorded(patch, place.source) if check else None
    target = None if check else _target(place, out)
    asked = _asked(data, format, media, option or [], channel, clips, seed, recorded)
    if recorded is not None:
        any_time, metric, by, frames = recorded.any_time, recorded.metric, recorded.data.types or None, recorded.frames
        if recorded.capacity and capacity is None:
            raise UsageError(f"its certificate has a control `capacity`, of {recorded.capacity[:16]}; give --capacity")
    name = patch.config.name
    folder = to or Path("runs") / f"{'check' if check else 'certify'}-{name}"  # answers are not taken for a check
    found = _measured(patch, asked, base, capacity, on or [], folder, frames, dtype, device, by=by, metric=metric,
                      any_time=any_time, batch=batch)  # fmt: skip
    say(*lines_of(found))
    if target is not None:
        from pave.patch.certificate import certified

        remark(f"written to {certified(patch, found).save(target)}")
        raise typer.Exit(0 if found.passes else 1)
    assert recorded is not None
    differences = found.apart(recorded)
    say(*(f"  differs  {each}" for each in differences))
    say("its certificate holds" if not differences else "its certificate does not hold")
    raise typer.Exit(1 if differences else 0)


def _recorded(patch: Patch, source: str) -> Certificate:
    """The certificate that is checked."""
    from pave.patch.certificate import standing

    found = standing(patch)
    if found.certificate is None or found.kind == "void":
        raise PatchError(source, found.why, "certify it: leave out --check")
    return found.certificate


def _target(place: PatchLocation, out: Path | None) -> Path:
    """Where the patch is written."""
    from pave.hub import catalogue

    if out is not None:
        return out
    if place.repo or catalogue.named(place.source) or not Path(place.source).exists():
        raise PatchError(place.source, "is not a file of yours, so it is not changed", "give --out FILE")
    return place.path


def _asked(
    data: Path | None,
    format: str | None,
    media: Path | None,
    option: list[str],
    channel: list[str] | None,
    clips: int,
    seed: int,
    recorded: Certificate | None,
) -> Any:
    """The labelled set."""
    from pave.patch.certificate import PlayroomSet

    if data is not None and channel:
        raise UsageError("DATA and --channel are two sets; give one of them")
    if data is not None:
        return data_set(data, format, media, option)
    if channel:
        from pave.data_sets import PlayroomData
        from pave.files.validation import parse

        parse(PlayroomData, {"channels": channel}, "--channel")
        return PlayroomSet(clips=clips, seed=seed, channels=tuple(channel))
    if recorded and recorded.data.playroom:
        return recorded.data.playroom
    raise UsageError("no labelled set; give DATA, or --channel for questions of the Playroom")


def _measured(
    patch: Patch,
    asked: Any,
    base: str,
    capacity: str | None,
    on: list[str],
    folder: Path,
    frames: int | None,
    dtype: str,
    device: str,
    **how: Any,
) -> Certificate:
    """The certificate, while bars show how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pave.evaluation.certify import certify as measured
    from pave.model.patched import load

    model = load(base, dtype=dtype, device=device, frames=frames)
    for each in on:
        model.apply_patch(each)
    other = None
    if capacity is not None:
        control = capacity
        if Path(capacity).suffix in (".yaml", ".yml"):
            from pave.evaluation.capacity import untaught
            from pave.recipe import read_recipe

            remark(f"training the control `capacity` in {folder / 'capacity'}")
            control = untaught(read_recipe(capacity), folder / "capacity")
        other = model.apply_patch(control, name="capacity").name
    name = model.apply_patch(patch).name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        tasks = {what: bar.add_task(what, total=None) for what in ("clips", "questions")}
        return measured(
            model,
            asked,
            patch=name,
            capacity=other,
            folder=folder,
            on_clip=lambda done, total: bar.update(tasks["clips"], completed=done, total=total),
            on_answers=lambda done, total: bar.update(tasks["questions"], completed=done, total=total),
            **how,
        )
