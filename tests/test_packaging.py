"""The package matches the checkout: folders, wheel, pins. The demo runs from the wheel, in a clean environment.

The clean environment shares the heavy dependencies with this one through a .pth file. Python ignores .pth files in
folders that are added by one, so an editable install of PAVE is not visible there.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from places import ROOT

SHIPPED = ("pave", "encoders", "patches", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


def requirements(text: str) -> dict[str, Requirement]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line]
    applicable = [one for one in found if one.marker is None or one.marker.evaluate()]
    return {one.name.lower().replace("_", "-"): one for one in applicable}


def floor(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == ">="
    return specifier.version


def padded(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".")]
    return [*parts, 0, 0][:3]


def test_every_folder_with_code_is_a_listed_package(setup):
    folders = {
        file.parent.relative_to(ROOT).as_posix() for top in ("pave", "encoders") for file in (ROOT / top).rglob("*.py")
    }
    listed = setup["options"]["packages"].split()
    moved = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert {moved.get(package, package.replace(".", "/")) for package in listed} == folders | {"patches"}


def test_patches_are_data_without_code():
    assert not list((ROOT / "patches").rglob("*.py"))


def test_constraints_pin_every_requirement_within_its_range(setup):
    pins = requirements((ROOT / "constraints.txt").read_text())
    asked = requirements(setup["options"]["install_requires"])
    for extra in setup["options.extras_require"].values():
        asked |= requirements(extra)
    for name, requirement in asked.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), name


def test_floor_file_pins_exactly_the_minimum_versions_of_setup(setup):
    pins = requirements((ROOT / "constraints-floor.txt").read_text())
    for name, requirement in requirements(setup["options"]["install_requires"]).items():
        (pin,) = pins[name].specifier
        if name != "torch":  # its floor has no CPU wheel on PyPI; the file says so
            assert padded(pin.version) == padded(floor(requirement)), name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:  # a copy, because setuptools would include stale files from a build/ folder of the checkout
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(build, check=True, stdin=subprocess.DEVNULL)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    words = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "shared.pth").write_text("\n".join(paths))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True, stdin=subprocess.DEVNULL)
    return folder


def run(clean: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(clean / "bin" / words[0]), *words[1:]],
        cwd=clean,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_wheel_contains_code_base_catalogue_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pave"}
    here = {
        f"pave/{path.relative_to(ROOT)}" if top != "pave" else str(path.relative_to(ROOT))
        for top in ("pave", "encoders", "patches")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if name.startswith("pave/")} == here


def test_the_clean_environment_runs_the_wheel(clean):
    done = run(clean, "python", "-c", "import pave, pave.encoders; print(pave.__file__, *pave.encoders.__path__)")
    assert done.returncode == 0, done.stderr
    assert all(str(clean) in path and str(ROOT) not in path for path in done.stdout.split())


def test_patch_list_from_the_wheel(clean):
    done = run(clean, "pave", "patch", "list")
    assert done.returncode == 0, done.stderr
    assert "audio-playroom" in done.stdout


def test_demo_from_the_wheel(clean):
    done = run(clean, "pave", "demo", "--clips", "1", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert "truth" in done.stdout and (clean / "demo" / "demo.png").stat().st_size > 10_000
    assert list((clean / "demo" / "clips").glob("*.mp4"))
