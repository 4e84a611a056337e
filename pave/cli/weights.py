"""The `pave weights` commands: get the published weights of encoders, once, with the consent said. Each imports what it
needs when it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pave.cli.terminal import PLAIN, quiet, remark, say
from pave.errors import EncoderError

if TYPE_CHECKING:
    from pave.senses.fetch import Count
    from pave.senses.weights import Release

app = typer.Typer(help="Get the published weights of encoders.", **PLAIN)


@app.command("list")
def weights_list() -> None:
    """List encoders whose weights can be fetched.

    With their licences, sizes, and whether they are on this machine. Contacts nobody.
    """
    quiet()
    from pave.senses import fetch

    for name in fetch.NAMES:
        for release in fetch.releases(name):
            say(f"{name}: {release.what}, {release.licence} [{_state(release)}]")


@app.command("path")
def weights_path(name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder, as imagebind-audio.")]) -> None:
    """Print where the weights of an encoder are; exit code 2 if one is missing."""
    quiet()
    from pave.senses import fetch

    for release in fetch.releases(name):
        if release.lacking:
            raise EncoderError(release.lacking)
        say(release.kept if release.kept and release.kept.is_file() else release.source)


@app.command("get")
def weights_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder, as imagebind-audio.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licences without being asked.")] = False,
    source: Annotated[
        str, typer.Option("--from", metavar="PLACE", help="A mirror's address, or a file that you have, instead.")
    ] = "",
    again: Annotated[bool, typer.Option("--again", help="Get them again, even if they are here.")] = False,
) -> None:
    """Get the weights of an encoder.

    Shows licence and size, and asks once for your consent. Of a large file, only the needed part is fetched and kept;
    an interrupted download goes on where it stopped.
    """
    quiet()
    from pave.senses import fetch

    found = fetch.releases(name)
    if source and not any(release.kept for release in found):
        raise EncoderError(f"{name}: --from is for a part of a release, and this one is needed as a whole; omit it")
    for release in found:
        _consent(release, yes)
        got = fetch.get(release, source=source if release.kept else "", again=again, progress=_progress())
        known = f", sha256 {got.sha256}" if got.sha256 else ""
        say(f"{got.path}: {release.what}{known}; {f'{got.fetched:,} bytes fetched' if got.fetched else 'was here'}")


def _state(release: Release) -> str:
    return "on this machine" if release.present else f"not on this machine, {release.size}"


def _consent(release: Release, yes: bool) -> None:
    """Ask once for the consent to a licence, and remember it."""
    from pave.encoder import agreed, remember

    name, noncommercial = release.encoder, "NC" in release.licence.split("-")
    remark(f"{name}: {release.what}")
    remark(f"  licence  {release.licence}{': research only, not for commercial use' if noncommercial else ''}")
    remark(f"  from     {release.given or release.address or release.repo}")
    remark(f"  size     {release.size}")
    remark(f"  sha256   {release.sha256 or 'none is published; that of what arrives is recorded'}")
    if agreed(name, release.licence):
        return
    if not yes:
        if not sys.stdin.isatty():
            raise EncoderError(f"{name}: needs your consent to {release.licence}; read it, then run this with --yes")
        if not typer.confirm(f"Do you agree to use them under {release.licence}?", err=True):
            raise EncoderError(f"{name}: you did not agree to {release.licence}; nothing was fetched")
    remember(name, release.licence)


def _progress() -> Count:
    """A line on stderr after every tenth."""
    tenths = 0

    def show(done: int, total: int) -> None:
        nonlocal tenths
        if total and (now := 10 * done // total) > tenths:
            tenths = now
            remark(f"  {10 * now} % of {total:,}")

    return show
