"""Other libraries kept from the terminal while they are imported, or open a base.

In: a block of code. Out: the same, without remarks of dependencies about themselves; errors and Python's warnings stay.
Afterwards every level and bar is as it was. What matters in those remarks, such as weights that are missing, PAVE
checks itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# transformers imports torchao, and PEFT bitsandbytes, wherever they are installed, to no use of ours.
TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """No remarks of libraries that others import."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(max(logger.level, logging.ERROR))
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_loading(downloads: bool) -> Iterator[None]:
    """No advice of transformers, unless its level was changed, and no bars, except of `downloads` in a terminal."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    advises = level == logging.WARNING
    shows = bars and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ and not (downloads and sys.stderr.isatty())
    try:
        if advises:
            theirs.set_verbosity_error()
        if shows:
            theirs.disable_progress_bar()
        with quiet_imports():
            yield
    finally:
        if advises:
            theirs.set_verbosity(level)
        if shows:
            theirs.enable_progress_bar()
