"""The `pave curate` command.

In: clips, captioners and a writer. Out: a folder with instructions; progress on stderr, counts on stdout. The work
itself is in pave/curation/run.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pave.cli.data import FORMAT, MEDIA, data_set
from pave.cli.terminal import lines_of, quiet, remark, say
from pave.text.progress import Shown


def curate(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of media, or a file of questions.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the instructions, and all that was paid for.")],
    writer: Annotated[
        str,
        typer.Option(
            metavar="URL|MODEL",
            help="Who writes: an endpoint like https://api.openai.com/v1, or a transformers model that chats.",
        ),
    ],
    writer_model: Annotated[str, typer.Option(metavar="NAME", help="The endpoint's model.")] = "",
    pictures: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A transformers model that captions pictures; may be repeated."),
    ] = None,
    sounds: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="One that captions sounds, writes down speech, or classifies; likewise."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Limit of tokens in OUT, by all runs. Default: none.")
    ] = None,
    per_minute: Annotated[
        float | None, typer.Option(metavar="N", min=0.01, help="Limit of requests a minute. Default: none.")
    ] = None,
    format: Annotated[str | None, FORMAT] = None,
    media: Annotated[Path | None, MEDIA] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another key, such as frames=16 or request.temperature=0.7."),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Clips that are read at a time.")] = 2,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(metavar="ENGINE", help="Captions: 'local', or 'ray' for a cluster.")
    ] = "local",
) -> None:
    """Have a language model write questions and answers about clips, for training.

    Captions of frames and sounds become one caption of what is seen, one of what is heard, and one of both; from each,
    descriptions, dialogues and reasoning are written, checked and freed of near-duplicates. After a kill, the same
    command goes on; nothing is paid twice. The key of an endpoint is in PAVE_WRITER_KEY or OPENAI_API_KEY. Exit code 1
    if the limit of tokens is reached.
    """
    quiet()
    from pave.curation.config import Curation
    from pave.curation.run import curate
    from pave.features.extract import found, some
    from pave.files.validation import parse
    from pave.recipe import overridden

    given: dict[str, Any] = {
        "writer": writer,
        "model": writer_model,
        "pictures": pictures or [],
        "sounds": sounds or [],
    }
    given |= {"tokens": tokens, "per_minute": per_minute} | overridden(option or [])
    clips, left_out = found(data_set(source, format, media))
    for line in some(left_out):
        remark(f"left out: {line}")
    try:
        with Shown() as show:
            result = curate(
                parse(Curation, given, "pave curate"), clips, out, workers=workers, engine=engine, show=show
            )
    except KeyboardInterrupt:
        remark("", f"stopped; what is paid is in {out}; run the same command again to continue")
        raise SystemExit(130) from None
    say(*lines_of(result))
    raise typer.Exit(0 if result.complete == result.clips else 1)
