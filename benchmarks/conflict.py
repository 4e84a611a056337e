"""When a card and a sound disagree: is it noticed, and is the sense answered that the question asks for?

    python benchmarks/conflict.py [--folder FOLDER]      # an hour on one thread; continues after a stop

Playroom clips of held-out scenes with one card on the rug and one sound; about half of them name the same thing. Each
is asked what is heard, and what is seen. `conflict` of either question is compared with the truth (AUROC, Brier score);
on ordinary clips, where nothing contradicts anything, it is counted how often it is above 0.5. Two patches: the
shipped audio-playroom, and its recipe trained with such clips (`trained`), in FOLDER. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from study import Study

import pave
from pave.hub.catalogue import recipe
from pave.playroom import matches
from pave.playroom.questions import HEAR
from pave.playroom.world import Script, draw_scene
from pave.playroom.writer import clip_seeds, write_clip, write_clips
from pave.readers.questions import read_data

CLIPS, PART, SEED = 120, 20, 23
ORDINARY = 40  # clips
QUESTIONS = {"heard": HEAR[0], "seen": "what sign do you see?"}
CHANNELS = ("video", "audio", "audio+video", "order")
# audio-playroom's recipe with fewer clips, and questions about clips of this kind; the later runs begin with the patch
# of the one before, and have no captions
SOME = ["data.playroom.clips=580"]
FIRST = [
    *SOME,
    f"data.playroom.channels=[{', '.join(CHANNELS)}, caption, conflict]",
    "train.steps=240",
    "train.batch=20",
]
LATER = [*SOME, f"data.playroom.channels=[{', '.join(CHANNELS)}, conflict]", "train.steps=110", "train.batch=12"]
RUNS = (FIRST, LATER, LATER, LATER, LATER)


def trained(folder: Path) -> Path:
    """The patch of the last run, each trained once."""
    before: list[str] = []
    for i, run in enumerate(RUNS):
        output = folder / str(i)
        if not (output / "patch.safetensors").exists():
            pave.train(recipe("audio-playroom", [*run, *before, f"train.output={output}"]), resume=True)
        before = [f"train.start_from={output}"]
    return folder / str(len(RUNS) - 1)


def measured(model: Any, folder: Path, seed: int) -> dict[str, Any]:
    """One clip with a card and a sound."""
    scene = draw_scene(seed, "test")
    state = matches.draw(scene, seed)
    file = folder / f"{seed}.mp4"
    if not file.exists():
        write_clip(file, scene, Script("quiet", ()), seed, extra={"conflict": state})
    answers = {name: model.ask(file, question, conflict=True) for name, question in QUESTIONS.items()}
    return {
        "conflicts": state.card != state.sound,
        "heard": answers["heard"] == state.sound,
        "seen": answers["seen"] == state.card,
        **{f"conflict {name}": round(answer.conflict, 5) for name, answer in answers.items()},
    }


def ordinary(model: Any, folder: Path) -> dict[str, Any]:
    """Accuracy and alarms on clips without cards."""
    examples = read_data(write_clips(folder / "ordinary", ORDINARY, SEED, "test", CHANNELS))
    answers = [model.ask(each.video, each.question, conflict=True) for each in examples]
    figures: dict[str, Any] = {"questions": len(examples)}
    for channel in CHANNELS:
        own = zip(answers, examples, strict=True)
        figures[channel] = mean([answer == each.answer for answer, each in own if each.facts["channel"] == channel])
    return figures | {"above 0.5": mean([answer.conflict > 0.5 for answer in answers])}


def mean(values: Sequence[float | bool]) -> float:
    return round(sum(values) / len(values), 4)


def auroc(clips: Sequence[dict[str, Any]], name: str) -> float:
    """How often a clip that conflicts has the higher score of two; ties count half."""
    high, low = ([each[name] for each in clips if each["conflicts"] == state] for state in (True, False))
    return mean([(a > b) + (a == b) / 2 for a in high for b in low])


def figures(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"clips": len(clips), "that conflict": sum(each["conflicts"] for each in clips)}
    for name in QUESTIONS:
        score = f"conflict {name}"
        found[f"{name}, conflicting"] = mean([each[name] for each in clips if each["conflicts"]])
        found[f"{name}, congruent"] = mean([each[name] for each in clips if not each["conflicts"]])
        found[f"AUROC, {name}"] = auroc(clips, score)
        found[f"Brier, {name}"] = mean([(each[score] - each["conflicts"]) ** 2 for each in clips])
    return found


def parts(seeds: list[int]) -> Iterator[tuple[int, list[int]]]:
    yield from ((first, seeds[first : first + PART]) for first in range(0, len(seeds), PART))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pave-conflict")
    folder, study, seeds = parser.parse_args().folder, Study("conflict"), list(clip_seeds(CLIPS, SEED, "test"))
    sources = {"audio-playroom": "audio-playroom", "trained": trained}
    with tempfile.TemporaryDirectory() as clips:
        for name, source in sources.items():
            if name in study:
                continue
            model: Any = pave.load("playroom")
            model.apply_patch(source if isinstance(source, str) else source(folder))
            for first, own in parts(seeds):
                if f"{name} {first}" not in study:
                    study.add(f"{name} {first}", {"clips": [measured(model, Path(clips), seed) for seed in own]})
            every = [one for first, _ in parts(seeds) for one in study.runs[f"{name} {first}"]["clips"]]
            study.add(name, figures(every) | {"ordinary": ordinary(model, Path(clips))})
            print(name, study.runs[name], flush=True)


if __name__ == "__main__":
    main()
