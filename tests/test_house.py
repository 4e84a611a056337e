"""The plan of the house: wings import one way only, no files import each other in a circle, and few stand outside.

The order below is the law. Imports inside functions and for type checkers count, too: whoever reads the code follows
them all the same.
"""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from places import ROOT

import pave

# From the top down: a wing imports from those further down, and files of one wing from each other.
ORDER = (
    "cli",
    "serving",
    "evaluation",
    "tasks",
    "training",
    "curation",
    "playroom",
    "features",
    "encoders",
    "model",
    "explaining",
    "senses",
    "hub",
    "patch",
    "streaming",
    "loading",
    "bases",
    "encoder base",  # the contracts of the two kinds of plug-in
    "fusion",
    "media",
    "readers",
    "packing",
    "endpoint",
    "data prompt recipe data_sets sidechannel config",  # the vocabulary
    "files",
    "errors ambient",
    "text",
)
FACE = "pave"  # hands on the names of all wings, when they are asked for


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for top, prefix in (("pave", "pave"), ("encoders", "pave.encoders")):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([prefix, *(part for part in parts if part != "__init__")])] = file
    return found


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module names in an import, wherever it stands."""
    named = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                named.add(inside if inside in MODULES else node.module)
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return frozenset(named & MODULES.keys() - {module, FACE})


def floor(module: str) -> int:
    """How far down a module's wing lies."""
    wing = module.split(".")[1].replace("__main__", "cli")  # `python -m pave` is the command
    return next(place for place, names in enumerate(ORDER) if wing in names.split())


def climbs() -> Iterator[str]:
    for module in MODULES.keys() - {FACE}:
        yield from (f"{module} imports {other}" for other in imports(module) if floor(other) < floor(module))


def circles() -> Iterator[str]:
    """Modules that reach themselves through the imports of others."""
    for module in MODULES:
        reached, left = set(), [*imports(module)]
        while left:
            if (other := left.pop()) not in reached:
                reached.add(other)
                left += imports(other)
        if module in reached:
            yield module


def test_every_module_stands_in_the_order():
    for module in MODULES.keys() - {FACE}:
        assert floor(module) >= 0


def test_no_wing_imports_from_a_higher_one():
    assert not sorted(climbs())


def test_no_files_import_each_other_in_a_circle():
    assert not sorted(circles())


def test_few_files_stand_beside_the_wings():
    assert len(list((ROOT / "pave").glob("[!_]*.py"))) <= 10


def test_the_list_of_packages_ends_and_holds_each_module_once():
    found = [module.name for module in pkgutil.walk_packages(pave.__path__, "pave.")]
    assert len(found) == len(set(found)) and set(found) <= MODULES.keys()


def test_encoders_are_found_in_a_checkout_that_is_not_installed(tmp_path: Path):
    code = "import pave.encoders, importlib.util; print(*pave.encoders.__path__, importlib.util.find_spec('pave.pave'))"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [str(ROOT / "encoders"), "None"], done.stderr
