"""The `pave export` commands: patches for the engines of others.

In: a patch and its base. Out: a folder that the engine serves. Each command imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pave.cli.terminal import PLAIN, lines_of, quiet, remark, say

app = typer.Typer(help="Export patches for other engines.", **PLAIN)


@app.callback()
def _commands() -> None:
    """Without this, Typer would take a single command for the whole app."""


@app.command("vllm")
def export_vllm_command(
    source: Annotated[str, typer.Argument(metavar="PATCH", help="A name, a folder or a file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the decoder, the LoRAs and README.md.")],
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Of the decoder: 'auto' (the checkpoint's), 'bfloat16', ...")
    ] = "auto",
) -> None:
    """Write the LoRA of a patch, and the language model of its base, for vLLM.

    Prints the command that serves them. pave.serving.vllm.Front asks: it computes the prompts, which vLLM takes as
    embeddings. More patches of the same base go into the same folder; the language model is written once.
    """
    quiet()
    from pave.files.locks import held
    from pave.model.patched import load
    from pave.patch.vllm import export_vllm

    model = load(base, dtype=dtype, device="cpu")
    report = model.apply_patch(source)
    with held(out, "pave export vllm"):
        command = export_vllm(model.export(report.name), model.host, out)
    if not report.lora_params:
        remark(f"{report.name} has no LoRA: its questions go to the base, with its fusion")
    say(f"{out}: in this folder, run", *lines_of(command))
