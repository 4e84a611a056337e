"""The `pave` command. In: words of a shell. Out: answers on stdout, remarks on stderr, and an exit code.

0: done. 1: looked and found something wrong (`doctor`, `patch verify`). 2: could not do it; one line says why and what
to do (PAVE_TRACEBACK=1 shows where). Every verb imports what it needs when it runs, so that `pave --help` is instant.
"""

from __future__ import annotations

import logging
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
patch_app = typer.Typer(help="Look at patches, make them small, share them.", **PLAIN)
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
    """List the patches that are at hand: of the catalogue, names of your own, and what was fetched from the Hub."""
    from pave.catalogue import list_patches
    from pave.hub import aliases, downloaded

    for entry in list_patches():
        print(entry)
    for name, target in sorted(aliases().items()):
        print(f"{name}: alias of {target}")
    for place in downloaded():
        print(f"{place.source}: fetched from the Hub [{place.path.stat().st_size:,} bytes]")


@patch_app.command("info")
def patch_info(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder, a file, or user/repo of the Hub.")],
) -> None:
    """Show what a patch says of itself. Reads the header only, also on the Hub."""
    from pave.hub import info

    config, place = info(source)
    size = f" ({place.path.stat().st_size:,} bytes)" if place.path.is_file() else ""
    print(f"{config.name}: {config.description}")
    print(f"  file     {place.path if not place.repo else place.source}{size}")
    print(f"  base     {config.base.model_type} {config.base.repo} (weights {config.base.fingerprint[:12]})")
    print(f"           {config.base.frames} key frames of {config.base.tokens_per_frame} tokens, dim {config.base.dim}")
    for sense, facts in config.senses.items():
        print(f"  sense    {sense}: {facts.encoder} {facts.options or ''} aligned by {facts.align}")
    print(f"  fusion   {config.fusion.kind}, width {config.fusion.width}, {config.fusion.heads} heads")
    print(f"  lora     {f'r={config.lora.r}, alpha={config.lora.lora_alpha:g}' if config.lora else 'none'}")
    print(f"  licence  {config.licence}")
    for key, value in config.training.items():
        print(f"  trained  {key}: {value}")
    if place.remark:
        _remark(place.remark)


@patch_app.command("verify")
def patch_verify(
    sources: Annotated[list[str], typer.Argument(metavar="PATCH", help="Names, folders, files, or user/repo.")],
) -> None:
    """Check patch files, byte by byte.

    Every byte against the file's own hash, every tensor against its config.
    """
    from pave.hub import locate

    wrong = 0
    for source in sources:
        try:
            place = locate(source)
            patch = place.load()
            print(f"{source}: ok, {len(patch.tensors)} tensors, {place.path.stat().st_size:,} bytes")
        except PatchError as error:
            wrong += 1
            print(error, file=sys.stderr)
    raise typer.Exit(1 if wrong else 0)


@patch_app.command("pull")
def patch_pull(
    repo: Annotated[str, typer.Argument(metavar="USER/REPO[@REVISION]", help="A patch on the Hub, or an alias.")],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also put a copy there.")] = None,
) -> None:
    """Fetch a patch from the Hub and check it."""
    from pave.hub import locate

    place = locate(repo)
    patch = place.load()
    if place.remark:
        _remark(place.remark)
    print(f"{place.source}: commit {place.commit or 'none'}, sha256 {patch.sha256}")
    if out is None:
        print(place.path)
    else:
        out.mkdir(parents=True, exist_ok=True)
        print(patch.save(out))


@patch_app.command("push")
def patch_push(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Made when it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repo private.")] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Ask a Playroom question first, and show it in the card.")
    ] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Of the commit.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files; send nothing.")] = False,
) -> None:
    """Share a patch on the Hub.

    Writes repo, card and file in one commit. Refuses folders of this machine and secrets in what would be public.
    """
    quiet()
    from pave.card import replay
    from pave.hub import locate, push

    patch = locate(source).load()
    shown = replay(patch) if example else None
    pushed = push(patch, repo, private=private, example=shown, message=message, dry_run=dry_run)
    if dry_run:
        print(pushed.card)
    for name, size in pushed.files.items():
        _remark(f"{'would send' if dry_run else 'sent'} {name} ({size:,} bytes)")
    if pushed.kept_card:
        _remark("the card on the Hub is somebody's own work and was left alone")
    if not dry_run:
        print(f"{pushed.url} commit {pushed.commit}")


@patch_app.command("search")
def patch_search(
    words: Annotated[str, typer.Argument(metavar="[WORDS]", help="In names.")] = "",
    sense: Annotated[str, typer.Option(metavar="SENSE", help="As audio or depth.")] = "",
    base: Annotated[str, typer.Option(metavar="USER/REPO", help="Made for this base.")] = "",
) -> None:
    """Find patches on the Hub."""
    from pave.hub import search

    for found in search(words, sense=sense, base=base):
        print(f"{found['id']}  {found['downloads']} downloads  {' '.join(found['tags'])}{'  gated' * found['gated']}")


@patch_app.command("alias")
def patch_alias(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The short name.")] = "",
    target: Annotated[str, typer.Argument(metavar="[PATCH]", help="What it stands for; without it, forget NAME.")] = "",
) -> None:
    """Give a patch a short name of your own; without arguments, list them."""
    from pave.hub import aliases, set_alias

    if name:
        set_alias(name, target or None)
    for known, stands_for in sorted(aliases().items()):
        print(f"{known}: {stands_for}")


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
    from pave.hub import locate

    place = locate(source)
    written = place.load().shrink(bits, rank).save(out)
    before, after = place.path.stat().st_size, written.stat().st_size
    print(f"{written}: {after:,} bytes, {after / before:.0%} of the {before:,} of {place.path}")


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
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # PEFT imports the first two wherever they are
        logging.getLogger(name).setLevel(logging.ERROR)


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
