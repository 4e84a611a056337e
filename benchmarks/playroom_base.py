"""How accurate is the embedded base on video questions? Held-out scenes, from real mp4 files.

    python benchmarks/playroom_base.py [--base FOLDER] [--clips N]

Writes benchmarks/results/playroom_base.json: accuracy by kind of question, and the size of the base.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import gettempdir

from study import Study

from pave.evaluation.accuracy import evaluate
from pave.loading.base import EMBEDDED
from pave.model.patched import load
from pave.playroom.writer import write_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="playroom", help="default: the embedded one; another writes no result")
    parser.add_argument("--clips", type=int, default=600)
    options = parser.parse_args()
    folder = Path(gettempdir()) / "pave-playroom-base"
    data = write_clips(folder, options.clips, 1, "test", ("video",))
    model = load(options.base)
    evaluation = evaluate(model, data)
    kinds = evaluation.by("kind")
    for kind, score in kinds.items():
        print(f"{kind:12} {score.accuracy:.3f} of {score.asked}")
    print(f"{'all':12} {evaluation.accuracy:.4f} of {len(evaluation.samples)}")
    if options.base == "playroom":
        figures = {
            "video_accuracy": round(evaluation.accuracy, 4),
            "asked": len(evaluation.samples),
            "by_kind": {kind: round(score.accuracy, 4) for kind, score in kinds.items()},
            "parameters": sum(parameter.numel() for parameter in model.base.parameters()),
            "bytes": sum(file.stat().st_size for file in EMBEDDED.iterdir()),
        }
        Study("playroom_base").add("test split, mp4 files", figures)


if __name__ == "__main__":
    main()
