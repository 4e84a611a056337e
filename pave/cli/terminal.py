"""Shared by the commands: plain help, remarks on stderr, and exit code 2 for errors."""

from __future__ import annotations

import logging
import os
import signal
import sys

import typer

from pave.errors import PaveError
from pave.files.quiet import TALKATIVE

# Plain help: drawing rich panels takes twice the time of everything else in `pave --help`.
PLAIN = {"rich_markup_mode": None, "no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}


def quiet() -> None:
    """Silence log messages and progress bars of the dependencies; PAVE reports what matters itself."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def remark(message: object) -> None:
    """Print to stderr, so that stdout holds only results."""
    print(message, file=sys.stderr)


def _ended(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def run_command(command: typer.Typer, name: str) -> None:
    """Run a command; errors of PAVE and of the system (a full disk) become one line and exit code 2."""
    before = signal.signal(signal.SIGTERM, _ended)  # as Ctrl-C: temporary files and workers are cleared away
    try:
        command(prog_name=name)
    except (PaveError, OSError) as error:
        if os.environ.get("PAVE_TRACEBACK"):
            raise
        remark(f"{name}: {error}")
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
