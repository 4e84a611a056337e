"""Claims about paired evaluations: all runs see the same frames, intervals are over clips, a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import make_clip, write_line
from typer.testing import CliRunner

from pave.cli.main import app
from pave.data import Example, Source
from pave.errors import DataError, UsageError
from pave.evaluation.accuracy import evaluate
from pave.evaluation.asking import batches
from pave.evaluation.intervals import Bootstrap
from pave.evaluation.metrics.answers import exact
from pave.evaluation.metrics.captions import bleu
from pave.evaluation.report import write_report
from pave.evaluation.result import Evaluation, Sample, references_of
from pave.evaluation.sides import changed, silent
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel

SIDES = ("base", "own", "off", "silent", "shuffled", "shifted")


@pytest.fixture(scope="module")
def seen(model: PatchedModel) -> dict[Source, ClipFeatures]:
    clips = model.encode(
        [make_clip(seed) for seed in range(5)], [*model.encoders(), *silent(model.encoders()).values()]
    )
    return {Source(Path(f"{i}.mp4")): features for i, features in enumerate(clips)}


@pytest.fixture(scope="module")
def questions(seen: dict[Source, ClipFeatures]) -> list[Example]:
    texts = ("What do you hear?", "Is it loud?", "What?", "How many?")
    return [Example(path, text, "x", i, {"kind": text}) for i, path in enumerate(seen) for text in texts]


@pytest.fixture(scope="module")
def file(workshop: Path) -> Path:
    """Three clips with sound and four questions each, whose kinds take turns."""
    file = workshop / "paired.jsonl"
    names = sorted(path.name for path in (workshop / "clips").glob("train-*.mp4"))[:3]
    turns = [part for i in range(4) for part in (f"what is this {i}?", ("yes", "no")[i % 2])]
    file.write_text("".join(write_line(f"clips/{name}", *turns, kind=f"kind {i % 2}") for i, name in enumerate(names)))
    return file


# Sides


def test_each_side_differs_from_the_others_as_it_says(model, seen) -> None:
    (key,) = [encoder.spec.preprocessing for encoder in model.encoders()]
    silences = silent(model.encoders())
    for source, clip in seen.items():
        own = clip.sides[key]
        assert own is not None
        found: dict[str, Any] = {side: changed(seen, side, 0, silences)[source].sides[key] for side in SIDES}
        assert found["base"] is own and found["own"] is own and found["off"] is None
        assert found["silent"].present and torch.equal(found["silent"].times, own.times)
        assert len(found["silent"].x.flatten(1).unique(dim=0)) == 1, "silence is the same all the time"
        half = len(own.x) // 2
        assert torch.equal(found["shifted"].x[half:], own.x[: len(own.x) - half]) and half
        assert torch.equal(found["shifted"].times, own.times)
        assert not torch.equal(found["shuffled"].x[: len(own.x)], own.x[: len(found["shuffled"].x)])
        assert torch.equal(changed(seen, "shifted", 0, {})[source].tokens, clip.tokens), "the same frames"


def test_a_sensor_is_silent_with_zeros_of_the_same_length(model, seen) -> None:
    (key,) = [encoder.spec.preprocessing for encoder in model.encoders()]
    clip: Any = next(iter(changed(seen, "silent", 0, {}).values()))
    first = next(iter(seen.values()))
    assert not clip.sides[key].x.any() and clip.sides[key].valid.equal(first.sides[key].valid)


def test_runs_of_one_evaluation_are_those_of_single_ones(model, file) -> None:
    found = evaluate(model, file, side=SIDES, max_new_tokens=4)
    assert list(found.runs) == list(SIDES)
    for side in SIDES:
        alone = evaluate(model, file, side=side, max_new_tokens=4)
        assert found.runs[side] == tuple(sample.answer for sample in alone.samples), side
    bare = evaluate(model, file, patches=(), max_new_tokens=4)
    assert found.runs["base"] == found.runs["off"] == tuple(sample.answer for sample in bare.samples)
    assert found.samples == tuple(
        Sample(sample.example, answer) for sample, answer in zip(found.samples, found.runs["own"], strict=True)
    )
    assert len(set(found.runs.values())) >= 4, "the patch reacts to what it is given"


def test_silence_needs_the_clips(model, questions, seen) -> None:
    with pytest.raises(UsageError, match="leave features= out"):
        evaluate(model, questions, features=seen, side="silent")


def test_batches_hold_whole_clips_and_every_question_once() -> None:
    clips = [Source(Path(name)) for name in "abacbaacaaaaaaa"]
    examples = [Example(clip, "?", "x", i) for i, clip in enumerate(clips)]
    for size in (1, 2, 4, 5, 100):
        found = list(batches(examples, size))
        assert sorted(place for batch in found for place in batch) == list(range(len(examples)))
        assert max(map(len, found)) <= size
    (first, second, third, *_) = batches(examples, 4)
    assert [clips[i].video.name for i in (*first, *second, *third)] == ["a"] * 11, "a clip stands together"


# Names that are wrong


def test_a_misspelt_field_is_refused_with_the_nearest(model, questions, seen) -> None:
    with pytest.raises(UsageError, match=r"by='knd': no question has this key; did you mean 'kind'\?"):
        evaluate(model, questions, features=seen, by="knd")


def test_a_misspelt_signal_is_refused_with_the_nearest(model, seen) -> None:
    wrong = [Example(Source(Path("0.mp4"), (("audoi", "x.wav"),)), "?", "x", 1)]
    with pytest.raises(DataError, match=r"1 clip of 1 have a signal 'audoi', .* did you mean 'audio'\?"):
        evaluate(model, wrong, features=seen)


def test_a_signal_of_another_patch_is_told_not_refused(model, seen) -> None:
    source = Source(Path("0.mp4"), (("imu", "x.npy"),))
    found = evaluate(model, [Example(source, "?", "x", 1)], features={source: seen[Source(Path("0.mp4"))]})
    assert found.notes == ("1 clip of 1 have a signal 'imu', which no applied patch reads",)
    assert str(found).splitlines()[-1].startswith("note: 1 clip of 1")


def test_a_misspelt_metric_or_side_is_refused_before_a_clip_is_read(model) -> None:
    with pytest.raises(UsageError, match="'cider'"):
        evaluate(model, Path("gone.jsonl"), metrics=["cidr"])
    with pytest.raises(UsageError, match="'shuffled'"):
        evaluate(model, Path("gone.jsonl"), side=["own", "shufled"])  # type: ignore[list-item]


# Figures


def runs_of(**answers: str) -> Evaluation:
    """Answers of one letter each, y is right; two questions about each clip, of the kinds a and b."""
    count = len(next(iter(answers.values())))
    examples = [Example(Source(Path(f"{i // 2}")), "?", "y", i, {"kind": "ab"[i % 2]}) for i in range(count)]
    runs = {name: tuple(letters) for name, letters in answers.items()}
    main = tuple(Sample(example, answer) for example, answer in zip(examples, runs.get("own", ()), strict=True))
    return Evaluation(main, runs=runs, metrics=("exact",), fields=("kind",))


def test_figures_are_by_group_and_differences_are_paired() -> None:
    found = runs_of(base="ynynynyn", own="yyyyynyn")
    figures: dict[Any, Any] = {group: own["exact"] for group, own in found.figures.items()}
    assert [figures["all", "all"][run].value for run in ("base", "own", "own - base")] == [0.5, 0.75, 0.25]
    assert [figures["kind", kind]["own"].value for kind in "ab"] == [1.0, 0.5]
    assert figures["kind", "a"]["own - base"].low == figures["kind", "a"]["own - base"].high == 0
    better = figures["all", "all"]["own - base"]
    assert better.low is not None and better.high is not None and 0 <= better.low < 0.25 < better.high <= 0.5


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """40 clips with three questions that are all right or all wrong: to draw questions would be far too sure."""
    random, covered, questions = np.random.default_rng(0), 0, 0
    for trial in range(200):
        right = np.repeat(random.random(40) < 0.6, 3)
        clips = np.repeat(np.arange(40), 3)
        measured = exact(["y" if each else "n" for each in right], [["y"]] * 120)
        for owner in (clips, np.arange(120)):
            figure = Bootstrap(list(owner), trial).figure(measured, np.ones(120, bool))
            assert figure.low is not None and figure.high is not None
            covered += (owner is clips) and figure.low <= 0.6 <= figure.high
            questions += (owner is not clips) and figure.low <= 0.6 <= figure.high
    assert 0.9 <= covered / 200 <= 0.99 and questions / 200 < 0.8


def test_the_interval_of_bleu_is_that_of_resampled_corpora() -> None:
    answers, references = ["a b c d", "a b x d e", "q", "a b c"], [["a b c d"], ["a b c d e"], ["a b"], ["a b d"]]
    measured, draws = bleu(2, answers, references), Bootstrap("wxyz", 0)
    drawn = draws._drawn(measured, np.ones(4, bool))
    assert drawn is not None
    for i in (0, 1, 2):
        places = np.repeat(np.arange(4), draws.draws[i])
        again = bleu(2, [answers[j] for j in places], [references[j] for j in places])
        assert drawn[i] == pytest.approx(again.value)


def test_the_answers_of_the_file_are_references() -> None:
    example = Example(Source(Path("a")), "?", "cup", 1, {"answers": ["cup", "mug", {"answer": "beaker"}, 3, ""]})
    assert references_of(example) == ["cup", "mug", "beaker"]
    found = Evaluation((Sample(example, "the mug."),), metrics=("match",))
    assert found.figures["all", "all"]["match"]["own"].value == 1  # type: ignore[union-attr]


def test_a_table_shows_what_is_missing_and_escapes_what_answers_contain(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    example = Example(Source(Path("<b>.mp4")), "<script>?", "\x1b[31m", 1, {"kind": "<i>", "optimum": 0.5})
    runs = {"base": ("<u>",), "own": ("\x1b[31m",)}
    found = Evaluation((Sample(example, "\x1b[31m"),), runs=runs, metrics=("match", "meteor"), fields=("kind",))
    assert "meteor n/a: no `java`" in str(found) and "\x1b" not in str(found)
    rows = [line.split() for line in str(found).splitlines()[1:4]]
    assert rows[0] == ["questions", "base", "own", "own", "-", "base", "best", "without"]
    assert rows[1][:2] == ["match", "1"] and rows[1][-1] == "0.500" and rows[2][2:] == ["n/a", "n/a", "n/a"]
    assert "<i>" not in found._repr_html_() and "&lt;i&gt;" in found._repr_html_()
    page = write_report(found, tmp_path).read_text("utf-8")
    assert not {"<script>?", "<u>", "<b>", "<i>", "\x1b"} & {
        piece for piece in ("<script>?", "<u>", "<b>", "<i>", "\x1b") if piece in page
    }


# Folders


def test_a_folder_holds_everything_and_the_same_again(model, file, tmp_path: Path) -> None:
    options: Any = {"side": ["base", "own", "shuffled"], "by": "kind", "max_new_tokens": 4, "folder": tmp_path / "out"}
    first = evaluate(model, file, **options)
    told = (tmp_path / "out/evaluation.json").read_bytes()
    value = json.loads(told)
    assert value["base"]["frames"] == model.host.frames and value["base"]["prompt"] == model.host.template
    assert value["decoder"]["max_new_tokens"] == 4 and value["sides"] == ["base", "own", "shuffled"]
    assert set(value["figures"]) == {"all", "kind"} and set(value["figures"]["kind"]) == {"kind 0", "kind 1"}
    assert {"versions", "patches", "data", "seed", "left_out"} <= value.keys()
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["answers"]["own"] for line in lines] == [sample.answer for sample in first.samples]
    assert {"clip", "question", "references", "scores", "facts"} <= lines[0].keys()
    asked = []
    again = evaluate(model, file, **options, on_answers=lambda done, total: asked.append((done, total)))
    assert again.runs == first.runs and asked[-1] == (12, 12)
    assert (tmp_path / "out/evaluation.json").read_bytes() == told


def test_a_folder_of_another_evaluation_is_refused(model, file, tmp_path: Path) -> None:
    evaluate(model, file, folder=tmp_path / "out", max_new_tokens=2)
    with pytest.raises(UsageError, match="holds another evaluation, with other decoder, seed; choose another folder"):
        evaluate(model, file, folder=tmp_path / "out", max_new_tokens=3, seed=1)


def test_a_cut_last_line_is_asked_again_and_a_damaged_one_is_refused(model, file, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    evaluate(model, file, folder=folder, max_new_tokens=2, batch=4)
    told, samples = (folder / "evaluation.json").read_bytes(), (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").write_bytes(samples[:-30])
    evaluate(model, file, folder=folder, max_new_tokens=2, batch=4)
    assert (folder / "evaluation.json").read_bytes() == told and (folder / "samples.jsonl").read_bytes() == samples
    (folder / "samples.jsonl").write_bytes(b'{"place": 1}\n' + samples)
    with pytest.raises(Exception, match="has no place or answers; delete the folder"):
        evaluate(model, file, folder=folder, max_new_tokens=2, batch=4)


ASKED = ["--by", "kind", "--batch", "2", "--max-new-tokens", "2", "--side", "own,shuffled"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_give_the_result_of_none(model, file, tmp_path: Path) -> None:
    """A process that has encoded one more clip, or asked one more question, is killed; the next one goes on."""

    def run(folder: Path, killed: bool) -> int:
        """The exit status of a process that evaluates; below 0: a signal."""
        child = os.fork()
        if child == 0:
            try:
                known = (
                    (folder / "samples.jsonl").read_bytes().count(b"\n") if (folder / "samples.jsonl").exists() else 0
                )

                def die(done: int, total: int, least: int = 0) -> None:
                    if killed and done > least:
                        os.kill(os.getpid(), signal.SIGKILL)

                options: Any = {"side": ["base", "own", "silent"], "by": "kind", "max_new_tokens": 2, "batch": 1}
                evaluate(model, file, **options, folder=folder, on_clip=die, on_answers=partial(die, least=known))
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert [run(tmp_path / "killed", True) for _ in range(10)] == [-signal.SIGKILL] * 10
    assert not (tmp_path / "killed/evaluation.json").exists()
    assert run(tmp_path / "killed", False) == 0 and run(tmp_path / "whole", False) == 0
    for name in ("evaluation.json", "samples.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_command_writes_a_page_that_stands_alone(workshop: Path, model, file, tmp_path: Path) -> None:
    patch = tmp_path / "ears"
    model.export("ears").save(patch)
    asked = [
        "eval",
        str(file),
        "--base",
        str(workshop / "base"),
        "--patch",
        str(patch),
        *ASKED,
        "--to",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "12 questions about 3 clips" in done.output and "own - base" in done.output
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert page.count("<video") == 3 and page.count('data-kind="') == 12 and "<svg" in page
    assert "http" not in page.replace("http-equiv", "") and 'src="data:video/webm;base64,' in page


def test_a_side_without_a_patch_is_refused(file, workshop: Path) -> None:
    done = CliRunner().invoke(app, ["eval", str(file), "--base", str(workshop / "base"), "--side", "shuffled"])
    assert isinstance(done.exception, UsageError) and "give --patch NAME" in str(done.exception)
