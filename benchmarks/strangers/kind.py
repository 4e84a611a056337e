"""A class of strangers' inputs: real ones, changed at random, and the steps that judge them.

In: a seed and a number. Out: a `Case`; equal seeds and numbers give equal cases. Knows nothing of processes and limits.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

from small import make_clip
from watched import Case

from pave.cli.terminal import remark
from pave.model.patched import PatchedModel, load

QUESTION = "What do you hear?"


class Kind(ABC):
    """A class of inputs. Built once, in the process that forks; `case` runs in the fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the real inputs
        self.model = load("playroom")
        self.clip = make_clip(0)

    @abstractmethod
    def make(self, rng: Random, place: Path) -> Case:
        """A case whose files are written to an empty folder."""

    def case(self, seed: int, number: int) -> Case:
        rng = Random(f"{type(self).__name__} {seed} {number}")
        random.seed(number)
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return self.make(rng, place)

    def asking(self, source: Path) -> None:
        """Apply a patch, ask, remove it."""
        model = PatchedModel(self.model.host)
        try:
            remark(model.apply_patch(source, strict=False))
            inputs = model.prepare([self.clip], [QUESTION])
            model.generate(inputs, max_new_tokens=1, do_sample=False)
        finally:
            for name in list(model.patches):
                model.remove_patch(name)


def no_file(path: Path, rng: Random) -> None:
    """Something at a path that is no regular file with content."""
    match rng.randrange(9):
        case 0 | 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path)
        case 4:
            path.symlink_to(
                rng.choice(("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/"))
            )
        case 5:
            path.write_bytes(b"")
        case 6:
            with path.open("wb") as file:
                file.truncate(1 << 26)  # no block of it is on the disk
        case 7:
            with socket.socket(socket.AF_UNIX) as end:
                place = os.getcwd()
                os.chdir(path.parent)  # the path of a socket is short
                try:
                    end.bind(path.name)
                finally:
                    os.chdir(place)
        case 8:
            path.write_bytes(bytes(rng.choice((1, 4096, 10**6))))
