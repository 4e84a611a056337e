"""The `pave` command. In: words of a shell. Out: answers on stdout, remarks on stderr, and an exit code.

0: done. 1: looked and found something wrong (`doctor`, `patch verify`). 2: could not do it; one line says why and what
to do (PAVE_TRACEBACK=1 shows where). Every verb imports what it needs when it runs, so that `pave --help` is instant.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from pave.errors import PatchError, PaveError

Split = Literal["train", "val", "test"]


class Channel(str, Enum):  # Typer takes a list of an Enum, but not yet of a Literal
    """What carries the answer of a Playroom question."""

    VIDEO = "video"
    AUDIO = "audio"
    BOTH = "audio+video"
    ORDER = "order"


# Plain help: rich panels cost twice the time of everything else that `pave --help` does.
PLAIN = {"rich_markup_mode": None, "no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}

app = typer.Typer(help="Give a frozen video LLM a new sense.", **PLAIN)
patch_app = typer.Typer(help="Look at patches: those of the catalogue, and files of your own.", **PLAIN)
app.add_typer(patch_app, name="patch")


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
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")] = 32,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="'auto', 'float32' or 'bfloat16'.")] = "auto",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="'auto', 'cpu', 'cuda', ...")] = "auto",
) -> None:
    """Ask a frozen video LLM about VIDEO."""
    quiet()
    from pave.model import load

    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patch or []:
        _remark(model.apply_patch(source))
    answer = model.ask(video, question, max_new_tokens=max_new_tokens)
    for signal, state in answer.signals.items():
        _remark(f"{signal}: {state}")
    print(answer)


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
    from pave.demo import run

    run(out, clips=clips, seed=seed)


@app.command()
def playroom(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the clips and the JSONL are written.")],
    clips: Annotated[int, typer.Option(metavar="N", min=1, help="How many clips.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", help="Equal seeds make equal clips.")] = 0,
    split: Annotated[
        Split, typer.Option(metavar="SPLIT", help="'train', 'val' or 'test': they share no scene.")
    ] = "train",
    channel: Annotated[
        list[Channel] | None,
        typer.Option(metavar="CHANNEL", help="Ask only what this channel answers; may be repeated. Default: all."),
    ] = None,
) -> None:
    """Make small clips with sound, and questions.

    Writes mp4 files of the synthetic Playroom and a JSONL file that `pave-train` reads.
    """
    from pave.playroom.writer import write_clips

    print(write_clips(out, clips, seed, split, [one.value for one in channel or Channel]))


@app.command()
def doctor() -> None:
    """Say what is wrong here, and what to do.

    Looks at this machine, this installation, the embedded base and the catalogue. Writes nothing.
    """
    quiet()
    from pave.doctor import examine

    checks = []
    for check in examine():
        print(check, flush=True)
        checks.append(check)
    wrong = sum(not check.ok for check in checks)
    print(f"\n{wrong} of {len(checks)} checks need attention" if wrong else f"\nall {len(checks)} checks are fine")
    raise typer.Exit(1 if wrong else 0)


@patch_app.command("list")
def patch_list() -> None:
    """List the patches of the catalogue."""
    from pave.catalogue import list_patches

    for entry in list_patches():
        print(entry)


@patch_app.command("info")
def patch_info(source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")]) -> None:
    """Show what a patch says of itself. Reads the header only."""
    from pave.catalogue import locate

    file = locate(source)  # before torch is imported: a mistyped name is told at once
    from pave.patch import read_config

    config = read_config(file)
    print(f"{config.name}: {config.description}")
    print(f"  file     {file} ({file.stat().st_size:,} bytes)")
    print(f"  base     {config.base.model_type} {config.base.repo} (weights {config.base.fingerprint[:12]})")
    print(f"           {config.base.frames} key frames of {config.base.tokens_per_frame} tokens, dim {config.base.dim}")
    for sense, facts in config.senses.items():
        print(f"  sense    {sense}: {facts.encoder} {facts.options or ''} aligned by {facts.align}")
    print(f"  fusion   {config.fusion.kind}, width {config.fusion.width}, {config.fusion.heads} heads")
    print(f"  lora     {f'r={config.lora.r}, alpha={config.lora.lora_alpha:g}' if config.lora else 'none'}")
    print(f"  licence  {config.licence}")
    for key, value in config.training.items():
        print(f"  trained  {key}: {value}")


@patch_app.command("verify")
def patch_verify(
    sources: Annotated[list[str], typer.Argument(metavar="PATCH", help="Names, folders or files.")],
) -> None:
    """Check patch files, byte by byte.

    Every byte against the file's own hash, every tensor against its config.
    """
    from pave.catalogue import locate
    from pave.patch import Patch

    wrong = 0
    for source in sources:
        try:
            file = locate(source)
            patch = Patch.load(file)
            print(f"{source}: ok, {len(patch.tensors)} tensors, {file.stat().st_size:,} bytes")
        except PatchError as error:
            wrong += 1
            print(error, file=sys.stderr)
    raise typer.Exit(1 if wrong else 0)


@patch_app.command("shrink")
def patch_shrink(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, or a folder for it.")],
    bits: Annotated[int, typer.Option(metavar="N", help="Store matrices in 8 or 4 bits.")] = 4,
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Keep at most N ranks of the LoRA.")] = 8,
) -> None:
    """Write a patch for a fraction of its bytes.

    It is applied like any other. Evaluate it before you share it: how much it keeps depends on the patch.
    """
    from pave.catalogue import locate

    file = locate(source)
    from pave.patch import Patch

    written = Patch.load(file).shrink(bits, rank).save(out)
    before, after = file.stat().st_size, written.stat().st_size
    print(f"{written}: {after:,} bytes, {after / before:.0%} of the {before:,} of {file}")


@patch_app.command("export-peft")
def patch_export_peft(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    out: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where adapter_config.json and its weights are written.")
    ],
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
) -> None:
    """Write the LoRA of a patch for PEFT.

    PeftModel.from_pretrained opens it. The fusion, which perceives, stays behind: PEFT has no place for it.
    """
    quiet()
    from pave.model import load
    from pave.peft_folder import export_peft

    model = load(base)
    report = model.apply_patch(source)
    export_peft(model.export(report.name), model.host, out)
    print(f"{out}: {report.lora_params:,} parameters of LoRA; the fusion ({report.fusion_params:,}) has no place in it")


def quiet() -> None:
    """Advisory chatter of the libraries below stays out of the answer; what PAVE has to say, it says itself."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _remark(words: object) -> None:
    print(words, file=sys.stderr)


def run_command(command: typer.Typer, name: str) -> None:
    """Run a command; what PAVE refuses, and what the machine refuses (a full disk), is one line and exit code 2."""
    try:
        command(prog_name=name)
    except (PaveError, OSError) as error:
        if os.environ.get("PAVE_TRACEBACK"):
            raise
        _remark(f"{name}: {error}")
        raise SystemExit(2) from None


def main() -> None:
    """Run `pave`."""
    run_command(app, "pave")


if __name__ == "__main__":
    main()
