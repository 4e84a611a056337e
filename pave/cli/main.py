"""The `pave` command. In: command-line arguments. Out: results on stdout, remarks on stderr, and an exit code.

0: done. 1: a check failed (`doctor`, `data check`, `patch verify`). 2: an error; one line gives the cause and the
remedy (PAVE_TRACEBACK=1 shows the traceback). Each command imports what it needs when it runs, to keep `pave --help`
fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from pave.cli import ask, curate, data, encode, evaluate, explain, export, patch, recipe, serve, weights
from pave.cli.terminal import PLAIN, Talk, lines_of, quiet, remark, run_command, say

Split = Literal["train", "val", "test"]

app = typer.Typer(help="Give a frozen video LLM a new sense.", **{**PLAIN, "add_completion": True})
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")
app.add_typer(patch.app, name="patch")
app.add_typer(recipe.app, name="recipe")
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def front(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", is_eager=True)] = False,
    less: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    more: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print seconds of each step, and logs of the dependencies.")
    ] = False,
) -> None:
    if less and more:
        raise typer.BadParameter("--quiet and --verbose: choose one")
    Talk.remarks, Talk.details = not less, more
    if version:
        import pave

        say(f"pave {pave.__version__}")
        raise typer.Exit


app.command()(ask.ask)
app.command()(ask.chat)
app.command()(serve.serve)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the clips and the picture.")] = Path(
        "pave-demo"
    ),
    clips: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Number of clips.")] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the clips.")] = 0,
) -> None:
    """Show what a patch does, offline.

    Generates clips with sound, asks the base and the patched base the same questions, and draws a picture.
    """
    quiet()
    from pave.cli.demo import run

    run(out, clips=clips, seed=seed)


def _known_channels(asked: list[str] | None) -> list[str] | None:
    """The channels unchanged, or an error if one is unknown. Checked here because Typer has no list of a Literal."""
    from pave.data_sets import AskedChannel

    known = get_args(AskedChannel)
    for name in asked or []:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, known))}")
    return asked


@app.command()
def playroom(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for the clips and the JSONL file.")],
    clips: Annotated[int, typer.Option(metavar="N", min=1, help="Number of clips.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed; equal seeds give equal clips.")] = 0,
    split: Annotated[
        Split, typer.Option(metavar="SPLIT", help="'train', 'val' or 'test'; splits share no scene.")
    ] = "train",
    channel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANNEL",
            help="Ask about this channel; may be repeated. Default: video and sound.",
            callback=_known_channels,
        ),
    ] = None,
) -> None:
    """Generate small clips with sound, and questions.

    Writes mp4 files of the synthetic Playroom world and a JSONL file for `pave-train`.
    """
    from pave.playroom.questions import CHANNELS
    from pave.playroom.writer import write_clips

    say(write_clips(out, clips, seed, split, channel or CHANNELS, replace=False))


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
        typer.Option(metavar="N", min=1, help="Time steps of a sense; once per sense. Default: for a 60 s clip."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="'auto' (the checkpoint's), 'bfloat16', ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes, tokens and FLOPs as JSON.")] = False,
) -> None:
    """Estimate what PATCH costs on BASE, without loading weights.

    Parameters, file size, tokens, FLOPs, memory. Only the config of the base is read.
    """
    quiet()
    import json
    from dataclasses import asdict

    from pave.cli.profile import table
    from pave.evaluation.cost import profile

    cost = profile(base, patch, frames=frames, text=text, side_steps=side_steps or (), dtype=dtype)
    say(*lines_of(json.dumps(asdict(cost), indent=1) if as_json else table(cost)))


app.command()(encode.encode)
app.command("eval")(evaluate.evaluate)
app.command()(explain.explain)
app.command()(curate.curate)


@app.command("new-encoder")
def new_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the encoder, for example heart-rate.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of your encoders.")] = Path("encoders"),
) -> None:
    """Write a template of an encoder and its test.

    For a sense that needs its own code. Raw numbers of a sensor need none: use the encoder `array`.
    """
    quiet()
    import os

    from pave.cli.new_encoder import write_encoder
    from pave.encoder import PLACE, folders

    encoder, test = write_encoder(name, to)
    say(encoder, test)
    needs = ""
    if to.resolve() not in folders():
        needs = f"{PLACE}={os.pathsep.join(filter(None, (os.environ.get(PLACE), str(to.resolve()))))} "
        remark(f"PAVE finds this encoder only with {needs.strip()} in the environment")
    remark(f"test it: {needs}python -m pytest {test}")


@app.command()
def doctor() -> None:
    """Check this installation, and suggest fixes.

    Checks this machine, the packages, the embedded base and the catalogue. Writes nothing.
    """
    quiet()
    from pave.cli.doctor import examine

    checks = []
    for check in examine():
        say(*lines_of(check))
        checks.append(check)
    failed = sum(not check.ok for check in checks)
    say("", f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    raise typer.Exit(1 if failed else 0)


def main() -> None:
    """Run `pave`."""
    run_command(app, "pave")


if __name__ == "__main__":
    main()
