"""What the commands share: plain help, remarks on stderr, and an exit code for what could not be done."""

from __future__ import annotations

import logging
import os
import sys

import typer

from pave.errors import PaveError

# Plain help: rich panels cost twice the time of everything else that `pave --help` does.
PLAIN = {"rich_markup_mode": None, "no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}


def quiet() -> None:
    """Advisory chatter of the libraries below stays out of the answer; what PAVE has to say, it says itself."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # PEFT imports the first two wherever they are
        logging.getLogger(name).setLevel(logging.ERROR)


def remark(words: object) -> None:
    """Words for people, beside the answer."""
    print(words, file=sys.stderr)


def run_command(command: typer.Typer, name: str) -> None:
    """Run a command; what PAVE refuses, and what the machine refuses (a full disk), is one line and exit code 2."""
    try:
        command(prog_name=name)
    except (PaveError, OSError) as error:
        if os.environ.get("PAVE_TRACEBACK"):
            raise
        remark(f"{name}: {error}")
        raise SystemExit(2) from None
