"""What the pages say can be run, their links lead somewhere, and the generated ones are those of the code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import RUN, anchors, blocks, links, pages, shows
from places import ROOT

import pave

PAGES = pages()
REASONS = ("GPU", "Hub", "weights", "Lightning", "processes")  # what a test machine lacks


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runs(page: Path) -> bool:
    return any(block.kind in RUN and block.mark != "not run" for block in blocks(page))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pages")
    out = folder / "results.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/parts")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "PAVE_HOME": str(folder / "home"),
    }
    command = [sys.executable, str(ROOT / "tests/parts/page_runner.py"), str(out), str(folder)]
    done = subprocess.run(
        [*command, *map(str, filter(runs, PAGES))],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=name)
def test_every_snippet_of_a_page_runs_and_prints_what_the_page_shows(page, results):
    assert not results[name(page)][1], results[name(page)][1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_snippet_that_is_not_run_says_what_it_needs(page):
    for block in blocks(page):
        if block.mark == "not run":
            assert any(word in block.reason for word in REASONS), (name(page), block.line)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_has_a_kind(page):
    for block in blocks(page):
        assert block.kind in (*RUN, "text", "json", "yaml"), (name(page), block.line, block.kind)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists() and found.is_relative_to(ROOT), (name(page), link)
        if anchor:
            assert anchor in anchors(found), (name(page), link, sorted(anchors(found)))


def test_pages_of_the_site_link_to_nothing_outside_docs():
    for page in (ROOT / "docs").rglob("*.md"):
        for link in links(page):
            assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs"), (name(page), link)


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, name(page)


def test_reference_pages_are_those_of_the_code():
    spec = spec_from_file_location("make_reference", ROOT / "docs/make_reference.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for file, text in module.pages().items():
        assert (ROOT / "docs/reference" / file).read_text("utf-8") == text, "run python docs/make_reference.py"


def test_the_architecture_shows_the_wings_in_their_order():
    tree = ast.parse((ROOT / "tests/test_house.py").read_text("utf-8"))
    order = next(ast.literal_eval(each.value) for each in tree.body if isinstance(each, ast.Assign))
    drawing = blocks(ROOT / "ARCHITECTURE.md")[0].text
    drawn = [re.split(r" {2,}", line.strip())[0] for line in drawing.splitlines() if line.strip("│ ")]
    names = [each.replace("/", "").replace(",", "") for each in drawn]
    expected = ["vocabulary" if "recipe" in each.split() else each for each in order]
    assert [sorted(each.split()) for each in names] == [sorted(each.split()) for each in expected]


def test_files_that_the_architecture_names_exist():
    for line in (ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines():
        folder = ROOT
        for file in re.findall(r"`([\w/]+\.py)`", line):
            folder = (ROOT / file).parent if "/" in file else folder
            assert (folder / Path(file).name).is_file(), file


def test_pictures_are_small():
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 300_000, name(picture)


def test_an_output_may_leave_parts_out_and_no_more():
    assert shows("step 2: ...\nend", "x\nstep 2: loss 0.3\nend\n") and shows("red", "a\nred  \n")
    assert not shows("step 3: ...", "step 2: loss") and not shows("red\nblue", "blue\nred")


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == pave.__version__ and cited["license"] == "Apache-2.0"
    assert cited["preferred-citation"]["url"] == "https://arxiv.org/abs/2503.19794"
