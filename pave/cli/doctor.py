"""Checks of this machine and this installation. In: nothing. Out: results of checks, each with its remedy.

Reads only: writes no file, uses no network; a check that fails does not stop the next one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from pave.text.shown import Lines

WIDEST = 28  # characters of a check's name: "patch fast-on-audio-playroom"
HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, repr=False)
class Check(Lines):
    """The result of one check. `remedy` is what to do when it is not ok."""

    name: str
    ok: bool
    finding: str
    remedy: str = ""

    def lines(self) -> list[str]:
        line = f"{'ok   ' if self.ok else 'WRONG'}  {self.name:<{WIDEST}} {self.finding}"
        return [line, *([f"{'':{WIDEST + 8}}-> {self.remedy}"] if self.remedy and not self.ok else [])]


def examine() -> Iterator[Check]:
    """All checks, quick ones first."""
    yield _python()
    for requirement in requirements():
        yield _package(requirement)
    for name in ("torchvision", "torchaudio", "torchcodec"):
        yield _optional(name)
    yield _checked("compute", _compute, "reinstall torch for this machine")
    yield _checked("decoder", _decoder, "reinstall PyAV: pip install --force-reinstall av")
    yield _checked("embedded base", _embedded_base, "reinstall PAVE; files of pave/playroom/base are missing")
    yield _checked("encoders", _encoders, "reinstall PAVE, or fix the encoder that the message names")
    for name in _catalogue():
        yield _checked(
            f"patch {name}", lambda name=name: _patch(name), f"train it again (pave-train {name}), or reinstall PAVE"
        )
    yield _checked("hub", _hub, "set HF_HOME to a writable folder")


def requirements() -> list[Requirement]:
    """The dependencies of PAVE, from its package metadata (installed) or its setup.cfg (a bare checkout)."""
    try:
        lines = metadata.requires("pave") or []
    except metadata.PackageNotFoundError:
        setup = ConfigParser()
        setup.read(HERE.parent / "setup.cfg", "utf-8")
        lines = [line for line in setup.get("options", "install_requires", fallback="").splitlines() if line]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if not requirement.marker or requirement.marker.evaluate()]


def _checked(name: str, examine: Callable[[], str], remedy: str) -> Check:
    """The result of `examine`. Any exception is a finding: the doctor must report it and go on."""
    try:
        return Check(name=name, ok=True, finding=examine())
    except Exception as error:
        return Check(name=name, ok=False, finding=f"{type(error).__name__}: {error}", remedy=remedy)


def _python() -> Check:
    version = f"{platform.python_version()} ({sys.executable})"
    return Check(name="python", ok=sys.version_info >= (3, 10), finding=version, remedy="use Python 3.10 or newer")


def _package(requirement: Requirement) -> Check:
    remedy = f'pip install "{requirement}"'
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(name=requirement.name, ok=False, finding="not installed", remedy=remedy)
    ok = requirement.specifier.contains(version, prereleases=True)
    finding = version if ok else f"{version}, but PAVE needs {requirement.specifier}"
    return Check(name=requirement.name, ok=ok, finding=finding, remedy=remedy)


def _optional(name: str) -> Check:
    """PAVE does not need this package, but transformers imports it if it is installed, and fails if it is broken.

    Imported in a separate process, because a wheel built for another torch can crash the interpreter.
    """
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name=name, ok=True, finding="not installed, not needed")
    run = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if run.returncode == 0:
        return Check(name=name, ok=True, finding=f"{version}, not needed")
    last = (run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]
    remedy = f"it does not match this torch and breaks transformers; PAVE does not need it: pip uninstall {name}"
    return Check(name=name, ok=False, finding=f"{version} cannot be imported: {last}", remedy=remedy)


def _compute() -> str:
    import torch

    float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    cpu = f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()}"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return f"{cpu}; " + ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
    return f"{cpu}; {'Apple GPU (mps)' if torch.backends.mps.is_available() else 'no GPU'}"


def _decoder() -> str:
    import av
    from av.codec import Codec

    for name in ("h264", "hevc", "vp9", "aac", "opus", "mp3"):
        Codec(name, "r")
    return f"PyAV {av.__version__} with FFmpeg's libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def _embedded_base() -> str:
    from safetensors import safe_open
    from transformers import AutoConfig

    folder = HERE / "playroom" / "base"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}")
    kind = AutoConfig.from_pretrained(folder).model_type
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = len(list(file.keys()))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{kind}, {tensors} tensors, {size / 1e6:.1f} MB"


def _encoders() -> str:
    from pave.encoder import known_encoders, module_of

    return ", ".join(name for name in known_encoders() if module_of(name))


def _catalogue() -> list[str]:
    from pave.hub.catalogue import folder, names
    from pave.patch.filenames import WEIGHTS

    return [name for name in names() if (folder() / name / WEIGHTS).exists()]


def _patch(name: str) -> str:
    from pave.hub.catalogue import folder_of
    from pave.loading.base import load_base
    from pave.patch.base_match import base_match
    from pave.patch.file import Patch
    from pave.patch.filenames import WEIGHTS

    file = folder_of(name) / WEIGHTS
    patch = Patch.load(file)
    if patch.config.base.repo == "playroom":
        base_match(patch.config, load_base("playroom"), str(file), strict=True)
    return f"{len(patch.tensors)} tensors, {file.stat().st_size / 1e6:.2f} MB, sha256 matches"


def _hub() -> str:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"cannot write to {there}, the folder for downloads")
    return f"cache {cache}{' (offline mode)' if constants.HF_HUB_OFFLINE else ''}"
