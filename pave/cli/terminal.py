"""Shared by the commands: plain help, one way of printing, and exit code 2 for errors.

In: lines of any text. Out: lines on stdout (`say`) or stderr (`remark`), through which everything passes that a command
prints. What comes from a file, from the Hub or from a model is shown with its control characters, bidi controls and
line breaks escaped (pave/text/shown.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import typer

from pave.errors import MediaWarning, PaveError
from pave.files.quiet import TALKATIVE
from pave.text.shown import shown

# Plain help: drawing rich panels takes twice the time of everything else in `pave --help`.
PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class Talk:
    """How much the commands say, besides results and errors."""

    remarks = True  # --quiet: nothing
    details = False  # --verbose: also what the dependencies log, and the seconds of each step


def quiet() -> None:
    """Silence log messages and progress bars of the dependencies, but with --verbose; PAVE reports what matters
    itself."""
    if Talk.details:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", MediaWarning)  # the commands print what is wrong with a file in a line of their own
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def say(*lines: object) -> None:
    """Print results to stdout, a line each; a line break inside one is escaped."""
    for line in lines:
        print(shown(line), flush=True)


def remark(*lines: object) -> None:
    """Print to stderr, so that stdout holds only results; a line each. With --quiet, nothing."""
    for line in lines if Talk.remarks else ():
        print(shown(line), file=sys.stderr)


def say_pieces(pieces: Iterable[str]) -> None:
    """Print a text to stdout as its pieces come, with its own line breaks; spaces and breaks at its ends are left
    out."""
    begun, space = False, ""
    for piece in pieces:
        text = space + piece if begun else piece.lstrip()
        space = text[len(text.rstrip()) :]  # printed only if something follows
        text = text.rstrip()
        begun = begun or bool(text)
        print("\n".join(map(shown, text.expandtabs(4).split("\n"))), end="", flush=True)
    print(flush=True)


def say_table(table: Any) -> None:
    """Print a table of `rich`, whose cells are `shown` already, to stdout."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 100).print(table)


def lines_of(text: object) -> list[str]:
    """The lines of a text that may have several: of a card, of an answer, of a `Lines`, which has escaped its own."""
    return str(text).expandtabs(4).split("\n")


def patch_names(incomplete: str) -> list[str]:
    """For the completion of a shell: names of the catalogue, and the user's aliases."""
    from pave.hub.aliases import aliases
    from pave.hub.catalogue import names

    return [name for name in (*names(), *sorted(aliases())) if name.startswith(incomplete)]


def warned(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning, instead of Python's way, which shows a line of source code."""
    remark(f"warning: {message}")


class _Ended(SystemExit):
    """SIGTERM has come. As Ctrl-C, it ends the blocks that hold temporary files and workers."""

    come = False

    @classmethod
    def signalled(cls, number: int, frame: object) -> None:
        cls.come = True
        raise cls(128 + number)


def run_command(command: typer.Typer, name: str) -> None:
    """Run a command; errors of PAVE and of the system (a full disk) become one line and exit code 2."""
    before = signal.signal(signal.SIGTERM, _Ended.signalled)
    warnings.showwarning = warned
    try:
        command(prog_name=name)
    except BaseException as error:
        if _Ended.come:  # an import that it ends may raise something else, or hide it
            raise SystemExit(128 + signal.SIGTERM) from None
        if not isinstance(error, PaveError | OSError):
            raise
        if os.environ.get("PAVE_TRACEBACK"):
            raise
        print(shown(f"{name}: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
