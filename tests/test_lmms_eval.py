"""The plug-in for lmms-eval asks what the tasks of PAVE ask, and measures it with their metrics.

The model itself needs lmms-eval, which has an environment of its own (examples/lmms-eval/README.md)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml
from excerpts import write_excerpt
from places import ROOT

import pave
from pave.errors import UsageError
from pave.evaluation.metrics.known import measure
from pave.evaluation.metrics.measured import Measured
from pave.tasks.known import task_of

sys.path.append(str(ROOT / "examples/lmms-eval"))
from pave_lmms_eval import TASKS, models, questions
from pave_lmms_eval.rows import cut, heard, options_of, row_of, turn

NAMES = ("avqa", "avsd", "music-avqa", "scanqa", "sqa3d")
FILM = {"type": "video", "url": "a.mp4"}
ASKED = {"type": "text", "text": "What do you hear?"}


def docs_of(task: str) -> list[Any]:
    """The questions of a task, as lmms-eval gives them to its model."""
    return list(questions.questions(datasets.Dataset.from_list([{"task": task}])))


class Loader(yaml.SafeLoader):
    """YAML with lmms-eval's tag for functions."""


Loader.add_constructor(
    "!function", lambda _, node: getattr(questions, node.value.removeprefix(f"{questions.__name__}."))
)


def configured(name: str) -> dict[str, Any]:
    """The YAML of a task, with what it includes."""
    own = yaml.load((TASKS / f"{name.replace('-', '_')}.yaml").read_text(), Loader)
    return yaml.load((TASKS / own.pop("include")).read_text(), Loader) | own


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def test_there_are_five_tasks() -> None:
    assert sorted(file.stem for file in TASKS.glob("*.yaml")) == [name.replace("-", "_") for name in NAMES]
    assert all(file.is_file() for file in (TASKS / "_published_yaml", TASKS / "tasks.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_has_the_metrics_and_the_length_of_the_benchmark(name: str) -> None:
    task, config = task_of(name), configured(name)
    assert config["task"] == f"pave_{name.replace('-', '_')}" and config["dataset_kwargs"]["field"] == name
    assert yaml.safe_load((TASKS / "tasks.json").read_text())[name] == [{"task": name}]
    assert tuple(each["metric"] for each in config["metric_list"]) == task.metrics
    assert config["generation_kwargs"]["max_new_tokens"] == task.max_new_tokens
    found = [{"answer": "a dog barks", "references": ["the dog barks loudly"]}, {"answer": "b", "references": ["c"]}]
    for each in config["metric_list"]:
        own = measure(each["metric"], ["a dog barks", "b"], [["the dog barks loudly"], ["c"]])
        assert each["aggregation"](found) == (own.value if isinstance(own, Measured) else f"n/a: {own}")


def test_a_dialogue_reaches_the_model_as_turns(tmp_path, monkeypatch) -> None:
    (tmp_path / "avsd").mkdir()
    write_excerpt(tmp_path / "avsd", "avsd of the challenge")
    monkeypatch.setenv("PAVE_DATA", str(tmp_path))
    (own,) = task_of("avsd").read(tmp_path / "avsd")
    (doc,) = docs_of("avsd")
    row = row_of(questions.messages(doc), doc)
    assert row == {"clip": str(own.video), "question": own.question, "history": list(own.history)}
    assert len(own.history) == 9 and questions.text(doc).endswith(f"{own.history[-1][1]}\n{own.question}")
    assert questions.results(doc, ["yes"])["cider"] == {"answer": "yes", "references": [own.answer]}


def test_several_right_answers_are_all_references(tmp_path, monkeypatch) -> None:
    (tmp_path / "scanqa").mkdir()
    write_excerpt(tmp_path / "scanqa", "scanqa").rename(tmp_path / "scanqa/ScanQA_v1.0_val.json")
    monkeypatch.setenv("PAVE_DATA", str(tmp_path))
    first, _ = docs_of("scanqa")
    assert questions.results(first, ["dark brown"])["em"]["references"] == ["brown", "dark brown"]
    assert questions.em([*questions.results(first, ["dark brown"]).values()][:1]) == 1


def test_without_a_folder_of_data_it_is_said_which_is_wanted(monkeypatch) -> None:
    monkeypatch.delenv("PAVE_DATA", raising=False)
    with pytest.raises(UsageError, match=r"no PAVE_DATA is set; .* has avqa's files in avqa/"):
        docs_of("avqa")


def test_further_signals_of_a_document_are_signals_of_its_row() -> None:
    doc = {"pave": '{"depth": "scene", "audio_track": 1}'}
    row = row_of(turn(["a.mp4", "b.WAV"], "Why?"), doc)
    assert row == {"clip": "a.mp4", "audio": "b.WAV", "question": "Why?", "history": [], "depth": "scene"} | {
        "audio_track": 1
    }
    left, unread = heard(row, {"audio"})
    assert unread == ["depth"] and left == {name: value for name, value in row.items() if name != "depth"}


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        (user(FILM, FILM, ASKED), "more than one video or picture; pave reads one"),
        (user({**FILM, "end_time": 2.0}, ASKED), "about a part of its video"),
        (user({"type": "video", "url": {"url": "a.mp4", "video_start": 1}}, ASKED), "about a part of its video"),
        ([{"role": "system", "content": "Be brief."}, *user(FILM, ASKED)], "messages of system, user"),
        (user(FILM, ASKED) * 3, "messages of user, user, user"),
    ],
)
def test_what_a_row_cannot_hold_is_refused(messages: list[Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        row_of(messages, {})


def test_generation_options_are_those_of_the_library() -> None:
    given = {"max_new_tokens": 16, "temperature": 0.7, "do_sample": False, "until": ["\n\n", ""], "image_size": 3}
    known, stops, others = options_of({**given, "top_p": None})
    assert known == {"max_new_tokens": 16, "do_sample": False, "stop_strings": ["\n\n"]} and others == ["image_size"]
    assert cut("yes\n\nno", stops) == "yes" and cut("yes", ()) == "yes"
    assert options_of({"temperature": 0.7, "until": "."})[0] == {"temperature": 0.7, "stop_strings": ["."]}


def test_the_model_answers_as_ask_does_and_prefers_the_likely_choice() -> None:
    pytest.importorskip("lmms_eval.api.model", reason="lmms-eval has an environment of its own")
    from pave_lmms_eval.model import Pave, PaveChat

    manifest = models()
    assert [manifest.simple_class_path, manifest.chat_class_path] == [
        f"{each.__module__}.{each.__name__}" for each in (Pave, PaveChat)
    ]
    film, question = str(ROOT / "examples/room.mp4"), "what colour is the ball when you hear the bell?"
    own = pave.load("playroom")
    own.apply_patch("audio-playroom")
    said = own.ask(film, question)
    model = Pave(patches="audio-playroom", batch_size=3)
    model.task_dict = {"t": {"test": [{}]}}
    where = (lambda _: [film], 0, "t", "test")
    options = {"max_new_tokens": 8, "until": ["\n\n"]}
    (answer,) = model.generate_until([SimpleNamespace(args=(question, options, *where))])  # pyright: ignore
    assert answer.text == said and answer.token_counts.output_tokens == said.tokens
    choices = (" cyan", " red and cyan", f" {said}")
    losses = model.loglikelihood([SimpleNamespace(args=(question, text, *where)) for text in choices])  # pyright: ignore
    assert [greedy for _, greedy in losses] == [False, False, True]
    assert min(losses)[1] and losses[2][0] > 0
    alone = model.loglikelihood([SimpleNamespace(args=(question, choices[2], *where))])  # pyright: ignore
    assert alone[0][0] == pytest.approx(losses[2][0], rel=1e-4)  # padding of others changes nothing
