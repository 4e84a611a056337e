"""Does `pave curate` lose, repeat or pay an entry twice when it is killed? 200 clips of the Playroom, killed twice.

    python benchmarks/curate.py            # writes benchmarks/results/curate.json; about half an hour on two cores
    python benchmarks/curate.py --clips 20
    python benchmarks/curate.py --folder work    # keeps the clips and both folders there

Captioners: a small random BLIP and a small random AST, by their pipelines. Writer: a scripted one behind a real server
on this machine, which turns requests away, refuses some, and replies to others in a way that cannot be read. One run is
killed (SIGKILL) while it captions and again while it asks, and goes on; another beside it is not. Both folders must be
equal, byte by byte; each is checked on its own, too: every number of entries, every line by `pave data check`, and the
counts of the report against the lines of the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from study import Study

sys.path.append(str(Path(__file__).parents[1] / "tests" / "parts"))
from author import Author
from captioners import write_of_pictures, write_of_sounds
from chat_server import serving
from killing import flaws, killed, lines

from pave.playroom.writer import write_clips

AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    clips = asked.clips
    with TemporaryDirectory() as folder:
        figures = measured((asked.folder or Path(folder)).absolute(), clips)
    print(json.dumps(figures, indent=1))
    if clips == 200:
        Study("curate").add("killed twice", figures)


def measured(folder: Path, clips: int) -> dict:
    """Both runs, and what is to be compared."""
    write_clips(folder, clips)
    models = ["--pictures", str(write_of_pictures(folder / "blip")), "--sounds", str(write_of_sounds(folder / "ast"))]

    def command(out: Path, url: str) -> list[str]:
        options = ["--writer", url, "--writer-model", "author-1", "--option", f"at_once={AT_ONCE}"]
        options += ["--option", "frames=2", "--option", "segments=2", "--option", "longest=6"]
        return [sys.executable, "-m", "pave", "curate", str(folder / "clips"), str(out), *options, *models]

    def finish(out: Path, url: str) -> float:
        begin = time.perf_counter()
        subprocess.run(command(out, url), check=True)
        return time.perf_counter() - begin

    whole, broken = folder / "whole", folder / "broken"
    with serving(Author(0.1)) as other, serving(author := Author(0.1)) as server, ThreadPoolExecutor(1) as pool:
        unharmed, captions = pool.submit(finish, whole, other.url), broken / "captions.jsonl"
        killed(
            subprocess.Popen(command(broken, server.url), stderr=subprocess.DEVNULL),
            lambda: len(lines_so_far(captions)) >= clips // 3,
        )
        before = len(lines_so_far(captions))
        killed(
            subprocess.Popen(command(broken, server.url), stderr=subprocess.DEVNULL),
            lambda: author.paid.total() >= 7 * clips,
        )
        paid = author.paid.total()
        finish(broken, server.url)
        seconds = unharmed.result()
    report = json.loads((broken / "report.json").read_text())
    kept, replies = lines(broken / "captions.jsonl"), lines(broken / "replies.jsonl")
    again = sum(count - 1 for count in author.paid.values())
    return {
        "clips": clips,
        "killed with so many captioned": before,
        "killed with so many requests answered": paid,
        "wrong": [*flaws(whole), *flaws(broken)],
        "equal to the run that was not killed": {
            name: (whole / name).read_bytes() == (broken / name).read_bytes()
            for name in ("instructions.jsonl", "dropped.jsonl")
        },
        "captions written twice": len(kept) - len({each["key"] for each in kept}),
        "replies written twice": len(replies) - len({each["key"] for each in replies}),
        "requests answered": author.paid.total(),
        "answered again, as they were under way when it was killed": again,
        "turned away and tried again": sum(author.tries.values()) - author.paid.total(),
        **{name: report[name] for name in ("entries", "questions", "kept", "dropped", "lacking", "requests", "tokens")},
        "seconds, not killed": round(seconds, 1),
    }


def lines_so_far(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []


if __name__ == "__main__":
    main()
