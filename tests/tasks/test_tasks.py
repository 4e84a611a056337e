"""Claims about the published benchmarks: every item of an excerpt in their layout is asked as they ask it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from excerpts import EXCERPTS, write_excerpt

from pave.data import Example
from pave.errors import DataError, UsageError
from pave.evaluation.metrics.known import METRICS
from pave.readers.questions import formats
from pave.tasks.known import HEAD, lines, names, rows, task_of

# For each task the excerpt in its layout, and under which name its publisher has the file.
FILES = {
    "avsd": ("avsd of the challenge", "mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json"),
    "avqa": ("avqa", "val_qa.json"),
    "music-avqa": ("music-avqa", "data/json_update/avqa-test.json"),
    "music-avqa-r": ("music-avqa", "avqa-test-headtail.json"),
    "scanqa": ("scanqa", "ScanQA_v1.0_val.json"),
    "sqa3d": ("sqa3d", "v1_balanced_questions_test_scannetv2.json"),
    "ego-exo4d": ("ego-exo4d", "annotations/proficiency_demonstrator_val.json"),
    "videomme": ("videomme", "videomme/test-00000-of-00001.parquet"),
    "videomme-subtitles": ("videomme", "test-00000-of-00001.parquet"),
    "mvbench": ("mvbench", "json/action_sequence.json"),
    "mlvu": ("mlvu", "json/2_needle.json"),
    "activitynet-qa": ("activitynet-qa", "test_q.json"),
    "egoschema": ("egoschema", "questions.json"),
    "next-qa": ("next-qa", "nextqa/test.csv"),
    "perception-test": ("perception-test", "mc_question_valid.json"),
    "omnibench": ("omnibench", "dataset/batch-5_1142_20240817.jsonl"),
    "daily-omni": ("daily-omni", "qa.json"),
    "worldsense": ("worldsense", "worldsense_qa.json"),
    "avhbench": ("avhbench", "json/00191.json"),
    "avhbench-captions": ("avhbench", "QA.json"),
    "msrvtt-qa": ("msrvtt-qa", "test_qa.json"),
    "msvd-qa": ("msvd-qa", "test_qa.json"),
    "vatex": ("vatex", "vatex_public_test_english_v1.1.json"),
    "valor-32k": ("valor", "desc_test.json"),
    "video-chatgpt": ("video-chatgpt", "generic_qa.json"),
    "video-chatgpt-temporal": ("video-chatgpt", "temporal_qa.json"),
    "video-chatgpt-consistency": ("video-chatgpt in pairs", "consistency_qa.json"),
    "aveb-avsd": ("save-bench", "avsd_textformat_subset.json"),
    "aveb-avsr": ("save-bench", "how2_test.json"),
    "aveb-avssd": ("save-bench", "testdata_formatted.json"),
    "aveb-avm": ("save-bench", "audiovisualmatching_combined.json"),
    "aveb-captions": ("save-bench", "flickr30k_captions.json"),
    "aveb-ocr": ("save-bench", "textvqa.json"),
    "aveb-vqa": ("save-bench", "testdev_balanced_questions_with_images.json"),
    "aveb-video-qa": ("save-bench", "nextqa_test.json"),
}
# Where a task asks fewer questions than its format has turns.
ASKED = {"avsd": 1, "avhbench": 1, "avhbench-captions": 1, "aveb-avsd": 5}


def publish(folder: Path, name: str) -> Path:
    """The excerpt of a task as its publisher's file, with those beside it."""
    excerpt, file = FILES[name]
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    written = write_excerpt(path.parent, excerpt)
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(EXCERPTS[excerpt].content)
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
        written.unlink()
    else:
        written.rename(path)
    for beside in EXCERPTS[excerpt].beside if excerpt == "sqa3d" else ():
        (path.parent / beside).rename(path.parent / beside.replace("train", "test"))
    return path


def read(folder: Path, name: str) -> list[Example]:
    publish(folder, name)
    return task_of(name).read(folder)


def test_every_task_has_an_excerpt() -> None:
    assert set(FILES) == set(names())


@pytest.mark.parametrize("name", names())
def test_a_task_is_complete(name: str) -> None:
    task = task_of(name)
    assert (
        task.name == name and task.format in formats() and task.what and task.data.startswith("http") and task.licence
    )
    assert task.metrics and set(task.metrics) <= METRICS.keys()
    assert task.questions is None or task.questions > 0
    lettered = task.wording is not None and task.wording.letter
    assert lettered == (task.metrics[0] == "option"), "letters are scored as options"
    assert not task.balanced or task.balanced in task.by


@pytest.mark.parametrize("name", names())
def test_every_item_of_the_published_layout_is_asked(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name)
    excerpt = EXCERPTS[FILES[name][0]]
    expected = ASKED.get(name, sum(len(turns) for _, turns in excerpt.understood))
    assert len(found) == expected
    task = task_of(name)
    assert set(task.by) <= set().union(*(example.facts for example in found))
    for example in found:
        assert bool(example.choices) == bool(task.wording and task.wording.letter)
        assert example.video.is_relative_to(tmp_path)


@pytest.mark.parametrize("name", names())
def test_a_malformed_record_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    path = publish(tmp_path, name)
    if path.suffix in (".csv", ".parquet"):
        path = path.with_suffix(".csv") if path.suffix == ".csv" else path
        if path.suffix == ".csv":
            path.write_text(path.read_text() + "one cell\n")
        else:
            rows = [{**row, "answer": "Z"} for row in EXCERPTS["videomme"].content]
            pytest.importorskip("pyarrow.parquet").write_table(
                pytest.importorskip("pyarrow").Table.from_pylist(rows), path
            )
    else:
        text = path.read_text("utf-8")
        value = None if path.suffix == ".jsonl" else json.loads(text)
        held = value if not isinstance(value, dict) else next((v for v in value.values() if isinstance(v, list)), None)
        if isinstance(held, list):
            held.insert(0, [])
        elif isinstance(value, dict):
            value["broken"] = {"mc_question": 3, "task0": 3}
        path.write_text(text + "[]\n" if value is None else json.dumps(value), "utf-8")
    with pytest.raises(DataError, match=rf"{path.name}, (.*item|line|entry|row) \d+: .*; (fix or delete|.*)"):
        task_of(name).read(tmp_path)


# Prompts


def test_options_are_asked_as_the_publishers_ask(tmp_path: Path) -> None:
    options = "A. a kettle\nB. a train\nC. a bird\nD. rain"
    asked = {
        name: read(tmp_path / name, name)[0] for name in ("videomme", "mlvu", "mvbench", "daily-omni", "omnibench")
    }
    instruction = (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option."
    )
    assert asked["videomme"].question == (
        f"{instruction}\nWhat is heard first?\n{options}\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert asked["mlvu"].question == (
        "Question: What falls?\nOptions:\n(A) a cup\n(B) a bird's nest\nOnly give the best option.\nBest option: ("
    )
    assert asked["mvbench"].question == (
        "Question:What is put down?\nOption:\n(A) The cup.\n(B) The bag.\n(C) The lid.\nOnly give the best option."
    )
    listed = "Choices: ['A. a kettle', 'B. a train', 'C. a bird', 'D. rain']\nYour answer should be a capital letter"
    assert listed in asked["daily-omni"].question
    assert asked["omnibench"].question == (
        "Please answer the following question based on the given image and audio:\nWhat are they doing?.\n"
        f"Please choose only one answer from the following options:\n{options}."
    )
    assert [asked[name].answer for name in asked] == ["C", "B", "B", "D", "B"]


def test_subtitles_are_beside_the_films(tmp_path: Path) -> None:
    (first, _) = read(tmp_path, "videomme-subtitles")
    assert first.subtitles == tmp_path / "subtitle/aB-1.srt"
    assert first.question.startswith("This video's subtitles are listed below: \n{subtitles}\nSelect the best")
    assert first.question.endswith("D. rain\nThe best answer is:")


def test_a_dialogue_is_asked_its_last_question_after_the_others(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, "avsd")
    assert asked.question == "Is there a cup on shelf 9?" and len(asked.history) == 9


def test_questions_without_marks_get_them(tmp_path: Path) -> None:
    first, _ = read(tmp_path, "activitynet-qa")
    assert first.question == "Is the athlete tall? Answer the question using a single word or phrase."


def test_hallucinations_and_captions_are_two_tasks(tmp_path: Path) -> None:
    (asked,), (caption,) = read(tmp_path / "a", "avhbench"), read(tmp_path / "b", "avhbench-captions")
    assert asked.answer == "No" and caption.answer == "A cat sleeps while a clock ticks."


# Files


def test_a_folder_without_the_file_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no val_qa.json of avqa; download it from https://mn.cs"):
        task_of("avqa").read(tmp_path)
    with pytest.raises(DataError, match=r"no such folder; give the folder of avqa's files, from https"):
        task_of("avqa").read(tmp_path / "gone")


def test_two_files_of_a_task_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        publish(tmp_path / folder, "avqa")
    with pytest.raises(DataError, match=r"avqa could be a/val_qa.json and b/val_qa.json; give a folder nearer"):
        task_of("avqa").read(tmp_path)


def test_all_files_of_a_task_are_read_with_one_look_at_the_media(tmp_path: Path) -> None:
    publish(tmp_path, "mvbench")
    write_excerpt(tmp_path / "json", "mvbench of pictures")
    (tmp_path / "video/tvqa/frames_fps3_hq/ep_1").mkdir(parents=True)
    found = task_of("mvbench").read(tmp_path)
    assert [each.facts["kind"] for each in found] == ["action_sequence"] * 2 + ["episodic_reasoning"]
    assert found[2].video == tmp_path / "video/tvqa/frames_fps3_hq/ep_1"


def test_a_number_of_questions_that_is_not_the_benchmarks_is_told() -> None:
    assert task_of("mvbench").missing(4000) == "" and task_of("avqa").missing(3) == ""
    assert task_of("mvbench").missing(3) == (
        "3 questions were found, mvbench has 4,000: figures are not those of all of it"
    )


# The list


def test_the_list_has_every_task_and_an_unknown_name_gets_the_nearest() -> None:
    assert next(rows()) == HEAD and [row[0] for row in rows()][1:] == names()
    text = "\n".join(lines())
    assert all(f"\n{name} " in text and task_of(name).data in text for name in names())
    with pytest.raises(UsageError, match=r"no task 'videome'; did you mean 'videomme'\?"):
        task_of("videome")
