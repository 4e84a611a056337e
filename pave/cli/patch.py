"""The `pave patch` commands: inspect, convert, shrink and share patches.

In: the name, folder, file or Hub repo of a patch. Out: facts on stdout, or a new patch file. Each command imports what
it needs when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pave.cli.certify import certify
from pave.cli.terminal import PLAIN, lines_of, quiet, remark, say
from pave.errors import PatchError
from pave.patch.filenames import WEIGHTS
from pave.text.shown import shown

if TYPE_CHECKING:
    from pave.patch.file import Patch

Dim = Annotated[
    int | None,
    typer.Option(metavar="N", help="Hidden size of the base, for a name with releases for several (3d-scanqa)."),
]
app = typer.Typer(help="Inspect, certify, shrink and share patches.", **PLAIN)
app.command("certify")(certify)


@app.command("list")
def patch_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print names, senses, bases and bytes as JSON.")] = False,
) -> None:
    """List patches: catalogue, aliases, downloads."""
    from pave.hub.aliases import aliases
    from pave.hub.catalogue import list_patches
    from pave.hub.locate import downloaded

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "senses": list(entry.recipe.senses),
            "base": entry.recipe.base,
            "bytes": entry.file.stat().st_size if entry.file else None,
            "kind": "shipped" if entry.file else "official checkpoint" if entry.recipe.released else "recipe",
            "description": " ".join(entry.recipe.description.split()),
        }
        for entry in list_patches()
    ]
    rows += [{"name": name, "kind": "alias", "target": target} for name, target in sorted(aliases().items())]
    rows += [{"name": each.source, "kind": "downloaded", "bytes": each.path.stat().st_size} for each in downloaded()]
    if as_json:
        say(*lines_of(json.dumps(rows, indent=1)))
    else:
        say(*_table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Patches in columns: name, base, senses, bytes; and what they are."""
    cells = [("NAME", "BASE", "SENSES", "BYTES", "")]
    for row in rows:
        size = f"{row['bytes']:,}" if row.get("bytes") else ""
        told = row.get("description") or (f"alias of {row['target']}" if "target" in row else "")
        what = "; ".join(filter(None, (told, "" if row["kind"] in ("shipped", "alias") else row["kind"])))
        cells.append((row["name"], row.get("base", ""), ", ".join(row.get("senses", ())), size, what))
    cells = [tuple(map(shown, each)) for each in cells]
    wide = [max(len(each[place]) for each in cells) for place in range(4)]
    for name, base, senses, size, what in cells:
        yield f"{name:{wide[0]}}  {base:{wide[1]}}  {senses:{wide[2]}}  {size:>{wide[3]}}  {what}".rstrip()


@app.command("info")
def patch_info(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder, a file, or user/repo of the Hub.")],
    dim: Dim = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print its config and all facts as JSON.")] = False,
) -> None:
    """Show the metadata of a patch.

    Reads only the header, also on the Hub; an official PAVE checkpoint is downloaded and converted first.
    """
    quiet()
    from pave.hub.locate import info

    patch, place = info(source, dim=dim)
    if as_json:
        size = place.path.stat().st_size if place.path.is_file() else None
        facts = {"source": place.source, "file": str(place.path), "bytes": size, "sha256": patch.content}
        certificate = None if patch.certificate is None else dict(patch.certificate)
        facts |= {"config": json.loads(patch.text), "certificate": certificate, "remark": place.remark}
        say(*lines_of(json.dumps(facts, indent=1)))
        return
    size = f" ({place.path.stat().st_size:,} bytes)" if place.path.is_file() else ""
    _describe(patch, f"{place.path if not place.repo else place.source}{size}")
    if place.remark:
        remark(place.remark)


def _describe(patch: Patch, file: str) -> None:
    from pave.hub.card import RETENTION, held_out
    from pave.patch.certificate import standing

    config = patch.config
    base, fusion = config.base, config.fusion
    layers = f", {fusion.layers} layers" if fusion.kind == "official" else ""
    say(f"{config.name}: {' '.join(config.description.split())}")
    say(f"  file     {file}")
    say(f"  base     {base.model_type} {base.repo} (weights {base.fingerprint[:12] or 'not recorded'})")
    say(f"           {base.frames} key frames of {base.tokens_per_frame} tokens, dim {base.dim}")
    for sense, facts in config.senses.items():
        options = f" ({_listed(facts.options)})" if facts.options else ""
        say(f"  sense    {sense}: {facts.encoder}{options}, {facts.dim} channels aligned by {facts.align}")
    if config.resampler:
        say(f"  resampler {config.resampler}")
    say(f"  fusion   {fusion.kind}, width {fusion.width}, {fusion.heads} heads{layers}")
    say(f"  lora     {f'r={config.lora.r}, alpha={config.lora.lora_alpha:g}' if config.lora else 'none'}")
    say(f"  licence  {config.licence or 'none stated'}")
    for key, value in config.training.items():
        say(f"  trained  {key}: {_listed(value)}")
    for key, (before, after) in held_out(patch).items():
        say(f"  held out {key}: {after:.3f} right with the patch, {before:.3f} without")
    for name, value in patch.retention.items():
        if name in RETENTION:
            say(f"  kept     {RETENTION[name]}: {value:.3f}")
    found = standing(patch)
    if found.certificate is None or found.kind == "void":
        say(f"  certificate {found.kind}: {found.why}")
    else:
        say(*(f"  {line}" for line in found.certificate.lines()))


def _listed(value: object) -> str:
    """A value of a config in words: "a, b", "rate=20, bands=64"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_listed(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_listed, value))
    return str(value)


@app.command("convert")
def patch_convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Zip of an official checkpoint, or its folder.")],
    sense: Annotated[
        str, typer.Option(metavar="SENSE=ENCODER", help="Its sense and encoder, for example audio=imagebind-audio.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="File or folder to write. Default: <name>.safetensors.")
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the patch. Default: that of SOURCE.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of the encoder, as preset=llava3d; may be repeated."),
    ] = None,
) -> None:
    """Convert an official PAVE checkpoint into a patch.

    Its pickled files are read in a separate process that executes no code from them. The encoder need not be installed.
    """
    sense, _, encoder = sense.partition("=")
    if not encoder:
        raise PatchError(f"--sense {sense}", "names no encoder", "write SENSE=ENCODER, as audio=imagebind-audio")
    quiet()
    from pave.encoder import missing
    from pave.files.locks import held
    from pave.patch.official import convert, named
    from pave.recipe import overridden

    out = out or Path(f"{named(source, name)}.safetensors")
    with held(out, "pave patch convert", is_file=True):
        patch = convert(source, sense, encoder, name=name, **overridden(option or []))
        written = patch.save(out)
    _describe(patch, f"{written} ({written.stat().st_size:,} bytes)")
    if reason := missing(encoder):
        remark(f"until {encoder} is installed, pass precomputed features: {reason}")


@app.command("verify")
def patch_verify(
    sources: Annotated[list[str], typer.Argument(metavar="PATCH", help="Names, folders, files, or user/repo.")],
    dim: Dim = None,
) -> None:
    """Check that patch files are intact.

    Compares all bytes with the recorded hash, and every tensor with the config.
    """
    from pave.hub.locate import locate

    failed = 0
    for source in sources:
        try:
            place = locate(source, dim=dim)
            patch = place.load()
            say(f"{source}: ok, {len(patch.tensors)} tensors, {place.path.stat().st_size:,} bytes")
        except PatchError as error:
            failed += 1
            remark(error)
    raise typer.Exit(1 if failed else 0)


@app.command("pull")
def patch_pull(
    repo: Annotated[str, typer.Argument(metavar="USER/REPO[@REVISION]", help="A patch on the Hub, or an alias.")],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also copy it to this folder.")] = None,
    dim: Dim = None,
) -> None:
    """Download a patch from the Hub and verify it."""
    from pave.hub.locate import locate

    place = locate(repo, dim=dim)
    patch = place.load()
    if place.remark:
        remark(place.remark)
    say(f"{place.source}: commit {place.commit or 'none'}, sha256 {patch.sha256}")
    if out is None:
        say(place.path)
    else:
        out.mkdir(parents=True, exist_ok=True)
        say(patch.save(out))


@app.command("push")
def patch_push(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repo private.")] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Add a Playroom question, answered now, to the card.")
    ] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Commit message.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files; upload nothing.")] = False,
    uncertified: Annotated[
        bool,
        typer.Option("--uncertified", help="Push it though nothing shows that it uses its sense; the card says so."),
    ] = False,
    licence: Annotated[
        str,
        typer.Option("--license", metavar="ID", help="Licence of the patch, as apache-2.0. Default: its own, if any."),
    ] = "",
    dim: Dim = None,
) -> None:
    """Upload a patch to the Hub.

    Creates the repo if needed; card and file go in one commit. Refuses content with local paths or secrets, and a patch
    that no certificate shows to use its sense (`pave patch certify`).
    """
    quiet()
    from pave.hub.locate import locate
    from pave.hub.push import licensed, push
    from pave.playroom.replay import replay

    patch = licensed(locate(source, dim=dim).load(), licence)
    shown = replay(patch) if example else None
    pushed = push(
        patch, repo, private=private, example=shown, message=message, dry_run=dry_run, uncertified=uncertified
    )
    if dry_run:
        say(*lines_of(pushed.card))
    for warning in pushed.warnings:
        remark(f"warning: {warning}")
    for name, size in pushed.files.items():
        remark(f"{'would send' if dry_run else 'sent'} {name} ({size:,} bytes)")
    if pushed.kept_card:
        remark("the card on the Hub was not written by PAVE and was left unchanged")
    if not dry_run:
        say(f"{pushed.url} commit {pushed.commit}")


@app.command("search")
def patch_search(
    words: Annotated[str, typer.Argument(metavar="[WORDS]", help="Words in the name.")] = "",
    sense: Annotated[str, typer.Option(metavar="SENSE", help="For example audio or depth.")] = "",
    base: Annotated[str, typer.Option(metavar="USER/REPO", help="Only patches for this base.")] = "",
) -> None:
    """Find patches on the Hub."""
    from pave.hub.locate import search

    for found in search(words, sense=sense, base=base):
        gated = "  gated" if found["gated"] else ""
        say(f"{found['id']}  {found['downloads']} downloads  {' '.join(found['tags'])}{gated}")


@app.command("alias")
def patch_alias(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The short name.")] = "",
    target: Annotated[str, typer.Argument(metavar="[PATCH]", help="The patch; without it, NAME is removed.")] = "",
) -> None:
    """Define an alias, or list all aliases."""
    from pave.hub.aliases import aliases, set_alias

    if name:
        set_alias(name, target or None)
    for alias, patch in sorted(aliases().items()):
        say(f"{alias}: {patch}")


@app.command("shrink")
def patch_shrink(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    bits: Annotated[int, typer.Option(metavar="N", help="Store matrices in 8 or 4 bits.")] = 4,
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Keep at most N ranks of the LoRA.")] = 8,
    dim: Dim = None,
) -> None:
    """Write a smaller copy of a patch.

    Matrices are quantized and the LoRA is cut to its best ranks. It is applied like any other patch. The accuracy lost
    depends on the patch: measure it with pave.evaluate before sharing.
    """
    from pave.files.locks import held
    from pave.hub.locate import locate

    place = locate(source, dim=dim)
    if place.path.resolve() in (out.resolve(), (out / WEIGHTS).resolve()):
        raise PatchError(str(out), "is the patch itself and would be overwritten", "write to another file or folder")
    with held(out, "pave patch shrink", is_file=True):
        written = place.load().shrink(bits, rank).save(out)
    before, after = place.path.stat().st_size, written.stat().st_size
    say(f"{written}: {after:,} bytes, {after / before:.0%} of the {before:,} of {place.path}")


@app.command("export-peft")
def patch_export_peft(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for adapter_config.json and the weights.")],
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
) -> None:
    """Write the LoRA of a patch as a PEFT adapter.

    PeftModel.from_pretrained opens it. The fusion and the gate are not exported, because PEFT has no place for them:
    the adapter alone does not use the new sense, and acts on every question.
    """
    quiet()
    from pave.model.patched import load
    from pave.patch.peft import export_peft

    model = load(base)
    report = model.apply_patch(source)
    export_peft(model.export(report.name), model.host, out)
    others = f"the fusion ({report.fusion_params:,}) {'was' if report.gate == 'none' else 'and the gate were'}"
    say(f"{out}: {report.lora_params:,} LoRA parameters; {others} not exported")
