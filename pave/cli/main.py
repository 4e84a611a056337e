"""The `pave` command. In: words of a shell. Out: answers on stdout, remarks on stderr, and an exit code.

0: done. 1: looked and found something wrong (`doctor`, `patch verify`). 2: could not do it; one line says why and what
to do (PAVE_TRACEBACK=1 shows where). Every verb imports what it needs when it runs, so that `pave --help` is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from pave.cli import encode, patch, recipe
from pave.cli.terminal import PLAIN, quiet, remark, run_command

Split = Literal["train", "val", "test"]

app = typer.Typer(help="Give a frozen video LLM a new sense.", **PLAIN)
app.add_typer(patch.app, name="patch")
app.add_typer(recipe.app, name="recipe")


@app.callback(invoke_without_command=True)
def front(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        import pave

        print(f"pave {pave.__version__}")
        raise typer.Exit


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video or an image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In plain words.")],
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
    patch: Annotated[
        list[str] | None, typer.Option(metavar="PATCH", help="A name, a folder or a file; may be repeated.")
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A further signal's file or folder; repeat views=FILE for each camera."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")] = 32,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="'auto', 'float32' or 'bfloat16'.")] = "auto",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="'auto', 'cpu', 'cuda', ...")] = "auto",
) -> None:
    """Ask a frozen video LLM about VIDEO."""
    quiet()
    from pave.model.patched import load

    signals = _signals(signal or [])
    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patch or []:
        remark(model.apply_patch(source))
    answer = model.ask(video, question, max_new_tokens=max_new_tokens, **signals)
    for sense, state in answer.signals.items():
        remark(f"{sense}: {state}")
    print(answer)


def _signals(words: Sequence[str]) -> dict[str, Any]:
    """NAME=PATH as signals; a name that comes again, and views, has a list of files, audio the sound of its file."""
    from inspect import signature

    from pave.errors import SignalError
    from pave.model.patched import PatchedModel

    taken = signature(PatchedModel.ask).parameters
    named: dict[str, list[str]] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise SignalError(f"--signal {word}: write NAME=PATH, such as imu=ride.npy")
        if name in taken:
            raise SignalError(
                f"--signal {word}: no signal is called {name}; give one that a patch reads, as imu or views"
            )
        named.setdefault(name, []).append(path)
    read = {"audio": _sound, "views": list}
    return {name: read.get(name, _alone)(paths) for name, paths in named.items()}


def _alone(paths: list[str]) -> str | list[str]:
    return paths if len(paths) > 1 else paths[0]


def _sound(paths: list[str]) -> tuple[Any, int]:
    """The samples of the one file, and their rate."""
    from pave.errors import SignalError
    from pave.media.clip import Clip

    if len(paths) > 1:
        raise SignalError(f"--signal audio= is given {len(paths)} times; give one file")
    clip = Clip.read(paths[0], frames=0)
    if clip.audio is None or clip.rate is None:
        raise SignalError(f"--signal audio={paths[0]}: has no sound ({clip.report.audio}); give a file that has")
    return clip.audio, clip.rate


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where clips and picture are written.")] = Path(
        "pave-demo"
    ),
    clips: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Clips to make and ask about.")] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed makes other clips.")] = 0,
) -> None:
    """See a patch at work, offline.

    Makes clips with sound, asks the base and the patched base the same questions, and draws a picture of it.
    """
    quiet()
    from pave.cli.demo import run

    run(out, clips=clips, seed=seed)


def _known_channels(asked: list[str] | None) -> list[str] | None:
    """The channels as they are; refused if one is not of the Playroom. Typer takes no list of a Literal yet."""
    from pave.recipe import AskedChannel

    known = get_args(AskedChannel)
    for name in asked or []:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, known))}")
    return asked


@app.command()
def playroom(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the clips and the JSONL are written.")],
    clips: Annotated[int, typer.Option(metavar="N", min=1, help="How many clips.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", help="Equal seeds make equal clips.")] = 0,
    split: Annotated[
        Split, typer.Option(metavar="SPLIT", help="'train', 'val' or 'test': they share no scene.")
    ] = "train",
    channel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANNEL",
            help="Ask what this channel answers; may be repeated. Default: pictures and sound.",
            callback=_known_channels,
        ),
    ] = None,
) -> None:
    """Make small clips with sound, and questions.

    Writes mp4 files of the synthetic Playroom and a JSONL file that `pave-train` reads.
    """
    from pave.playroom.questions import CHANNELS
    from pave.playroom.writer import write_clips

    print(write_clips(out, clips, seed, split, channel or CHANNELS, replace=False))


@app.command("profile")
def profile_command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="'playroom', a folder, or a Hub id.")],
    patch: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder, a file, user/repo, or a recipe.")],
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
    ] = None,
    text: Annotated[int, typer.Option(metavar="N", min=0, help="Tokens of the question and its template.")] = 40,
    side_steps: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Time steps of a sense; once for each. Default: those of a minute."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="'auto' (the checkpoint's), 'bfloat16', ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON: bytes, tokens, FLOPs.")] = False,
) -> None:
    """Say what PATCH costs on BASE, before anything is loaded.

    Parameters, file, tokens, FLOPs, memory. Of the base only the config is read.
    """
    quiet()
    import json
    from dataclasses import asdict

    from pave.cli.profile import table
    from pave.evaluation.cost import profile

    cost = profile(base, patch, frames=frames, text=text, side_steps=side_steps or (), dtype=dtype)
    print(json.dumps(asdict(cost), indent=1) if as_json else table(cost))


app.command()(encode.encode)


@app.command("new-encoder")
def new_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the encoder, as heart-rate.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where it is written; for encoders only.")] = Path(
        "encoders"
    ),
) -> None:
    """Write a template of an encoder and its test.

    For a sense that needs code of its own; numbers of a sensor as they are need none: the encoder `array` reads them.
    """
    quiet()
    import os

    from pave.cli.new_encoder import write_encoder
    from pave.encoder import PLACE, folders

    encoder, test = write_encoder(name, to)
    print(encoder, test, sep="\n")
    needs = ""
    if to.resolve() not in folders():
        needs = f"{PLACE}={os.pathsep.join(filter(None, (os.environ.get(PLACE), str(to.resolve()))))} "
        remark(f"it is found where the environment says {needs}")
    remark(f"it works as it is: {needs}python -m pytest {test}")


@app.command()
def doctor() -> None:
    """Say what is wrong here, and what to do.

    Looks at this machine, this installation, the embedded base and the catalogue. Writes nothing.
    """
    quiet()
    from pave.cli.doctor import examine

    checks = []
    for check in examine():
        print(check, flush=True)
        checks.append(check)
    wrong = sum(not check.ok for check in checks)
    print(f"\n{wrong} of {len(checks)} checks need attention" if wrong else f"\nall {len(checks)} checks are fine")
    raise typer.Exit(1 if wrong else 0)


def main() -> None:
    """Run `pave`."""
    run_command(app, "pave")


if __name__ == "__main__":
    main()
