"""How much faster is an evaluation whose questions about one clip share its prefill? Four questions a clip.

    python benchmarks/evaluation.py [--clips N]

Writes benchmarks/results/evaluation.json: processor seconds of the same questions to the embedded base, with and
without a patch, one at a time, in batches with a prompt each, and sharing; and whether the answers are the same. Clips
are encoded before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from typing import Any

from study import Study

from pave.data import Source
from pave.features.cache import FeatureCache
from pave.model.answer import texts
from pave.model.patched import PatchedModel, load
from pave.model.shared import shared
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data

EACH, BATCH, MOST, TIMES = 4, 32, 6, 3  # questions of a clip and of a batch, tokens of an answer, measurements


def ask(
    model: PatchedModel, clips: list[Any], questions: list[str], patches: tuple[str, ...] | None, way: str
) -> list[str]:
    size, answers = 1 if way == "one at a time" else BATCH, list[str]()
    for i in range(0, len(clips), size):
        part, asked = clips[i : i + size], questions[i : i + size]
        if way == "shared":
            inputs, past = shared(model.calls, part, asked, patches)
            answers += texts(model.calls, inputs, MOST, past)
        else:
            answers += texts(model.calls, model.prepare(part, asked, patches=patches), MOST)
    return answers


def timed(call: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Processor seconds of this process: the machine may be busy with others."""
    begin = time.process_time()
    answers = call()
    return time.process_time() - begin, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48)
    options = parser.parse_args()
    model = load("playroom")
    model.apply_patch("audio-playroom")
    file = write_clips(
        Path(gettempdir()) / "pave-evaluation", options.clips, 3, "test", ("video", "audio", "audio+video")
    )
    of_clip: dict[Source, list[str]] = {}
    for example in read_data(file):
        of_clip.setdefault(example.source, []).append(example.question)
    chosen = {source: asked[:EACH] for source, asked in of_clip.items() if len(asked) >= EACH}
    features = FeatureCache(model, model.encoders()).read(list(chosen))
    seen = {source: features[source] for source in chosen}
    clips = [seen[source] for source, asked in chosen.items() for _ in asked]
    questions = [question for asked in chosen.values() for question in asked]
    study = Study("evaluation")
    for name, patches in (("base", ()), ("patched", None)):
        figures: dict[str, Any] = {"clips": len(chosen), "questions": len(questions)}
        given: dict[str, list[str]] = {}
        for way in ("one at a time", "batches", "shared"):
            runs = [
                timed(lambda way=way, patches=patches: ask(model, clips, questions, patches, way)) for _ in range(TIMES)
            ]
            figures[f"seconds, {way}"] = round(median(seconds for seconds, _ in runs), 3)
            given[way] = runs[0][1]
        for way in ("one at a time", "batches"):
            figures[f"times faster than {way}"] = round(figures[f"seconds, {way}"] / figures["seconds, shared"], 2)
        figures["same answers"] = sum(len({*each}) == 1 for each in zip(*given.values(), strict=True)) / len(questions)
        study.add(name, figures)


if __name__ == "__main__":
    main()
