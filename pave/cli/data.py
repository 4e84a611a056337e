"""The `pave data` commands: which formats of data are read, and what is understood of a file.

In: a file of questions about clips. Out: counts, the first question, and what is broken or missing; exit code 1 if
something is. Each command imports what it needs when it runs. Knows nothing of how formats are read (pave/readers).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pave.cli.terminal import PLAIN, lines_of, quiet, say

if TYPE_CHECKING:
    from pave.data_sets import DataSet

app = typer.Typer(help="Check files of questions about clips.", **PLAIN)

FORMAT = typer.Option(metavar="NAME", help="The format; `pave data formats` lists them. Default: by the content.")
MEDIA = typer.Option(metavar="FOLDER", help="Folder of the media. Default: that of the file.")


@app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file in any format, or a pattern as 'part-*.tar'.")],
    format: Annotated[str | None, FORMAT] = None,
    media: Annotated[Path | None, MEDIA] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another key of a data set, such as columns.question=prompt."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Read only the first N records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what is understood of FILE, and what is missing.

    Counts, the first question as training has it, broken records and media that are not there. Exit code 1 if something
    is broken or missing. Media are not opened, and nothing is written.
    """
    quiet()
    import json
    import math
    from dataclasses import asdict

    from pave.readers.check import check

    found = check(data_set(file, format, media, option or ()), limit or math.inf)
    say(*lines_of(json.dumps(asdict(found) | {"ok": found.ok}, indent=1, ensure_ascii=False) if as_json else found))
    raise typer.Exit(0 if found.ok else 1)


@app.command("formats")
def data_formats() -> None:
    """List the formats of data that are read."""
    quiet()
    from pave.readers.questions import described

    say(*(f"{name}: {what}" for name, what in described().items()))


def data_set(file: Path, format: str | None, media: Path | None, options: Sequence[str] = ()) -> DataSet:
    """A data set as the options of a command describe it."""
    from pave.data_sets import DataSet
    from pave.files.validation import parse
    from pave.recipe import overridden

    named = {"file": file, "format": format, "media": media}
    return parse(DataSet, {key: each for key, each in named.items() if each is not None} | overridden(options), file)
