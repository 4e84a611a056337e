"""Run the snippets of pages as a reader would: in order, in a folder that holds `examples/`.

    python tests/parts/page_runner.py RESULTS FOLDER PAGE...

Out: a JSON file of page -> [seconds, complaint]; no complaint, no fault. torch and the rest are imported once: each
page's Python, and each command of `pave`, is a fork of this process. Other lines of `sh` run in bash; `make` only says
what it would do, since its targets set up environments and are run by CI.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from io import TextIOWrapper
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from pages import RUN, Block, blocks, shows
from places import ROOT

MAINS = {"pave": "pave.cli.main", "pave-train": "pave.cli.train"}
FORK = get_context("fork")
MAKE = f'make() {{ command make -n -C "{ROOT}" "$@"; }}\n'


def run_page(page: Path, folder: Path) -> str:
    """The complaint about the first snippet that does not do what the page says."""
    (folder / "examples").symlink_to(ROOT / "examples")
    ours, theirs = FORK.Pipe()
    python = FORK.Process(target=_python, args=(theirs, folder), daemon=False)
    python.start()
    try:
        for block in blocks(page):
            if block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.text, "utf-8")
            if block.kind not in RUN or block.mark == "not run":
                continue
            if block.kind == "python":
                ours.send((block.text, f"{page.name}, line {block.line}"))
                failed, output = ours.recv()
            else:
                failed, output = _shell(block, folder)
            if failed != (block.mark == "fails"):
                return f"{page.name}, line {block.line}: {'fails' if failed else 'does not fail'}\n{output}"
            if block.printed is not None and not shows(block.printed, output):
                return f"{page.name}, line {block.line}: shows\n{block.printed}\nbut prints\n{output}"
        return ""
    finally:
        ours.send(None)
        python.join()


def _python(pipe: Any, folder: Path) -> None:
    """Snippets of one page share their names, as in one session."""
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    while (snippet := pipe.recv()) is not None:
        with tempfile.TemporaryFile("w+") as log:
            _redirect(log)
            try:
                exec(compile(snippet[0], snippet[1], "exec"), names)
                failed = False
            except BaseException:
                traceback.print_exc()
                failed = True
            pipe.send((failed, _written(log)))


def _shell(block: Block, folder: Path) -> tuple[bool, str]:
    output = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        line, forgiven, _ = line.partition("|| true")
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] in MAINS and not set(line) & set("|><;&"):
            expanded = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {line}"], cwd=folder, stdout=subprocess.PIPE, check=True
            )
            words = expanded.stdout.decode().split("\0")[:-1]
            with tempfile.TemporaryFile("w+") as log:
                process = FORK.Process(target=_command, args=(words, folder, log))
                process.start()
                process.join()
                code, said = process.exitcode, _written(log)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", MAKE + line],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            code, said = done.returncode, done.stdout
        output += said
        if code and not forgiven:
            return True, f"{line}: exit code {code}\n{output}"
    return False, output


def _command(words: list[str], folder: Path, log: IO[str]) -> None:
    """What the console scripts do."""
    from importlib import import_module

    _redirect(log)
    os.chdir(folder)
    sys.argv = words
    import_module(MAINS[words[0]]).main()


def _redirect(log: IO[str]) -> None:
    """Everything that is printed, also by child processes, as it would be seen in a terminal."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(log.fileno(), number)
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)


def _written(log: IO[str]) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    log.seek(0)
    return log.read()


def main(results: Path, folder: Path, pages: list[Path]) -> None:
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYTHONPATH"] = str(ROOT)
    import pave.cli.main
    import pave.evaluation.accuracy
    import pave.evaluation.cost
    import pave.model.patched
    import pave.patch.peft
    import pave.training.run  # noqa: F401

    found = {}
    for number, page in enumerate(pages):
        begin = time.perf_counter()
        place = folder / f"{number}-{page.stem}"
        place.mkdir()
        complaint = run_page(page, place)
        found[page.relative_to(ROOT).as_posix()] = (time.perf_counter() - begin, complaint)
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
