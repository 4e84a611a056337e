"""Does lmms-eval, with the plug-in, find the scores of `pave eval`? AVSD, AVQA, MUSIC-AVQA, ScanQA, SQA3D.

    PYTHON benchmarks/lmms_eval_plugin.py [--folder FOLDER]    # writes benchmarks/results/lmms_eval.json

PYTHON: that of an environment with lmms-eval, PAVE and examples/lmms-eval, whose README.md says how to make it. The
files are small, in the publishers' layouts, about clips and scans of the Playroom. lmms-eval's own command asks them of
the embedded base with `audio-playroom` and `depth-playroom`, and `pave.evaluate` asks them again.
`equal answers`: the share of all questions; `largest difference`: of all scores. FOLDER keeps the files and
the results of lmms-eval. Without lmms-eval it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from study import Study

from pave.data import Example
from pave.evaluation.accuracy import Evaluation, evaluate
from pave.evaluation.intervals import Figure
from pave.model.patched import PatchedModel, load
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data

TASKS = ("avsd", "avqa", "music-avqa", "scanqa", "sqa3d")
PATCHES = ("audio-playroom", "depth-playroom")
CLIPS, SCANS, BATCH, MOST = 6, 4, 16, 8  # clips, scans, questions of a batch, tokens of an answer


def publish(folder: Path) -> None:
    """Questions of the Playroom in the five layouts, each in a folder with the name of its task."""
    heard = read_data(write_clips(folder / "clips", CLIPS, 0, "test", ("video", "audio")))
    seen = read_data(write_clips(folder / "scans", SCANS, 1, "test", ("depth",)))
    answers = sorted({each.answer for each in heard})
    films = list(dict.fromkeys(each.video for each in heard))
    for task in TASKS[:3]:
        (folder / task / "videos").mkdir(parents=True)
        for film in films:
            shutil.copyfile(film, folder / task / "videos" / film.name)
    dialogs = [
        {"image_id": film.stem, "caption": "a room", "summary": "toys", "dialog": list(_turns(heard, film))}
        for film in films
    ]
    _write(folder / "avsd/mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json", {"version": "0.1", "dialogs": dialogs})
    _write(folder / "avqa/val_qa.json", [_choice(i, each, answers) for i, each in enumerate(heard)])
    _write(folder / "music-avqa/json_update/avqa-test.json", [_template(i, each) for i, each in enumerate(heard)])
    scenes = {place: f"scene{i:04d}_00" for i, place in enumerate(dict.fromkeys(map(_scan, seen)))}
    for task in TASKS[3:]:
        for place, scene in scenes.items():
            shutil.copytree(place, folder / task / "scannet" / scene)
    named = [(i, scenes[_scan(each)], each) for i, each in enumerate(seen)]
    asked = [
        {"answers": [each.answer], "object_ids": [0], "object_names": ["card"], "question": each.question}
        | {"question_id": f"val-{scene}-{i}", "scene_id": scene}
        for i, scene, each in named
    ]
    _write(folder / "scanqa/ScanQA_v1.0_val.json", asked)
    situated = [
        {"scene_id": scene, "situation": "I stand by the door.", "alternative_situation": []}
        | {"question": each.question, "question_id": i}
        for i, scene, each in named
    ]
    right = [{"scene_id": s, "question_id": i, "answers": [{"answer": each.answer}]} for i, s, each in named]
    _write(folder / "sqa3d/v1_balanced_questions_test_scannetv2.json", {"questions": situated})
    _write(folder / "sqa3d/v1_balanced_sqa_annotations_test_scannetv2.json", {"annotations": right})


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _turns(asked: Sequence[Example], film: Path) -> Iterator[dict[str, str]]:
    for each in asked:
        if each.video == film:
            yield {"question": each.question, "answer": each.answer}


def _choice(place: int, asked: Example, answers: Sequence[str]) -> dict[str, Any]:
    others = [text for text in answers if text != asked.answer]
    choices = [asked.answer, *(others[(place + i) % len(others)] for i in range(3))]
    choices = choices[place % 4 :] + choices[: place % 4]
    facts = {"question_relation": "Sound", "question_type": "Which"}
    film = {"id": place, "video_name": asked.video.stem, "video_id": place, "question_text": asked.question}
    return {**film, "multi_choice": choices, "answer": choices.index(asked.answer), **facts}


def _template(place: int, asked: Example) -> dict[str, Any]:
    film = {"video_id": asked.video.stem, "question_id": place, "type": '["Audio", "Existential"]'}
    return {**film, "question_content": asked.question, "templ_values": "[]", "anser": asked.answer}


def _scan(asked: Example) -> Path:
    return Path(str(dict(asked.source.signals)["depth"]))


def command(out: Path) -> list[str]:
    """lmms-eval's own, which writes its results to a folder."""
    tasks = subprocess.run([sys.executable, "-m", "pave_lmms_eval"], check=True, capture_output=True, text=True)
    words = [sys.executable, "-m", "lmms_eval", "--model", "pave", "--include_path", tasks.stdout.strip()]
    words += ["--model_args", f"base=playroom,dtype=float32,patches={'+'.join(PATCHES)}", "--batch_size", str(BATCH)]
    words += ["--tasks", ",".join(map(named, TASKS)), "--gen_kwargs", f"max_new_tokens={MOST}"]
    return [*words, "--output_path", str(out), "--log_samples"]


def named(task: str) -> str:
    """The name of a task in lmms-eval."""
    return f"pave_{task.replace('-', '_')}"


def compared(model: PatchedModel, folder: Path) -> dict[str, Any]:
    """Scores and answers of both, each in its own process, at the same time."""
    out = folder / "lmms-eval"
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"PAVE_DATA": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(out), cwd=folder, env=environment, **pipes) as process:
        found = {task: evaluate(model, folder / task, task=task, max_new_tokens=MOST, batch=BATCH) for task in TASKS}
        said = process.communicate()[0]
    if process.returncode or not out.exists():  # it ends with 0 after an error, too
        raise SystemExit(f"lmms-eval failed:\n{said[-6000:]}")
    print(said[said.find("|") :], flush=True)
    (results,) = out.rglob("*_results.json")
    theirs = json.loads(results.read_text("utf-8"))["results"]
    figures: dict[str, Any] = {"patches": list(PATCHES)}
    pairs, largest = list[bool](), 0.0
    for task, own in found.items():
        (samples,) = out.rglob(f"*_samples_{named(task)}.jsonl")
        lines = sorted(map(json.loads, samples.read_text("utf-8").splitlines()), key=lambda line: line["doc_id"])
        answers = ["".join(line["filtered_resps"]) for line in lines]  # a text, or a list of one
        pairs += [text == sample.answer.strip() for text, sample in zip(answers, own.samples, strict=True)]
        figures[task] = {"questions": len(own.samples)}
        for metric, (other, ours) in scores(theirs[named(task)], own).items():
            figures[task][metric] = {"lmms-eval": other, "pave eval": ours}
            if type(other) is not type(ours):
                raise SystemExit(f"{task}: {metric} is {other} in lmms-eval and {ours} in pave eval")
            largest = max(largest, abs(other - ours)) if isinstance(ours, float) else largest
    return {**figures, "equal answers": sum(pairs) / len(pairs), "largest difference": largest}


def scores(results: dict[str, Any], own: Evaluation) -> dict[str, tuple[Any, Any]]:
    """Each metric of a task as lmms-eval and as `pave.evaluate` found it; a text says why there is none."""
    found = {}
    for metric in own.metrics:
        figure = own.figures["all", "all"][metric]["own"]
        found[metric] = results[f"{metric},none"], figure.value if isinstance(figure, Figure) else f"n/a: {figure}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores of lmms-eval and of pave eval.")
    parser.add_argument("--folder", type=Path, help="keeps files and results; default: a temporary one")
    options = parser.parse_args()
    try:
        key = f"lmms-eval {version('lmms_eval')}"
    except PackageNotFoundError:
        return print("no lmms-eval here: examples/lmms-eval/README.md says how to make an environment that has it")
    model = load("playroom", dtype="float32")
    for patch in PATCHES:
        model.apply_patch(patch)
    with TemporaryDirectory() as name:
        folder: Path = options.folder or Path(name)
        if not (folder / TASKS[-1]).exists():
            publish(folder)
        figures = compared(model, folder.resolve())
    print(f"{key}: {json.dumps(figures, indent=1)}", flush=True)
    Study("lmms_eval").add(key, figures)


if __name__ == "__main__":
    main()
