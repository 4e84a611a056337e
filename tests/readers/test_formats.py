"""Published layouts: every record of an excerpt is understood, and a broken one is refused with place and remedy."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from breaking import Change, asking, choosing
from excerpt import spoken
from excerpts import EXCERPTS, write_excerpt

from pave.data import Example
from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers.check import check
from pave.readers.questions import Reading, described, formats, read_data


def options(folder: Path, name: str, **more: Any) -> DataSet:
    """The data set of an excerpt; relative paths are in its folder."""
    given = dict(EXCERPTS[name].options)
    if "maps" in given:
        given["maps"] = {key: folder / file for key, file in given["maps"].items()}
    return DataSet(file=folder / EXCERPTS[name].file, **given | more)


def by_clip(examples: list[Example], folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for example in examples:
        clip = example.video.relative_to(folder).as_posix()
        found.setdefault(clip, []).append((example.question, example.answer))
    return list(found.items())


@pytest.mark.parametrize("name", EXCERPTS)
def test_every_record_of_a_published_layout_is_understood(tmp_path: Path, name: str) -> None:
    excerpt = EXCERPTS[name]
    write_excerpt(tmp_path, name)
    data = options(tmp_path, name)
    assert Reading(data).format == excerpt.format
    examples = read_data(data)
    assert by_clip(examples, tmp_path) == excerpt.understood
    first = examples[0]
    assert excerpt.facts.items() <= first.facts.items()

    def relative(named: Any) -> Any:
        return tuple(map(relative, named)) if isinstance(named, tuple) else Path(named).relative_to(tmp_path).as_posix()

    assert {key: relative(each) for key, each in first.source.signals} == excerpt.signals


@pytest.mark.parametrize("name", EXCERPTS)
def test_a_check_counts_the_same_and_tells_of_missing_media(tmp_path: Path, name: str) -> None:
    write_excerpt(tmp_path, name)
    found = check(options(tmp_path, name))
    clips = EXCERPTS[name].understood
    assert (found.clips, found.questions) == (len(clips), sum(len(turns) for _, turns in clips))
    assert not found.broken and {str(tmp_path / clip) for clip, _ in clips} <= set(found.missing) and not found.ok
    for file in found.missing:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert check(options(tmp_path, name)).ok


def test_every_format_has_an_excerpt_and_says_what_it_is() -> None:
    assert {excerpt.format for excerpt in EXCERPTS.values()} == set(formats()) == set(described())
    assert all(len(what) < 120 and what.endswith(".") for what in described().values())


# Broken records


def row(old: str, new: str) -> Change:
    """A change of the text of a table."""
    return lambda text: text.replace(old, new, 1)


NEXT_QA: list[tuple[Change, str]] = [
    *(
        (row(f",{bad[0]},8", f",{bad[1]},8"), "line 2: 'answer' must be the place")
        for bad in zip("222222", "5x-A ?", strict=True)
    ),
    (row("why did the boy run", ""), "line 2: needs 'question', a text; got ''"),
    (row("2574", ""), "line 2: needs 'video', a text; got ''"),
    (row("red", ""), "line 2: needs 'a0', a text; got ''"),
    (row("black", " "), "line 2: needs 'a4', a text; got ' '"),
    (row(",CW,", ","), "line 2: has 12 cells under 13 names"),
]
CHANGES: dict[str, list[tuple[Change, str]]] = {
    "llava list": [
        (lambda v: v[1].pop("video"), "item 2: needs 'video'"),
        (lambda v: v[1].update(video=["a", "b"]), "item 2: 'video' is .* not a valid file name"),
        (lambda v: v[1].update(image="a.png"), "item 2: has 'video' and 'image'"),
        (lambda v: v[1].pop("conversations"), "item 2: needs 'conversations'"),
        (lambda v: v[1]["conversations"].pop(), "item 2: .* has 1 turn"),
        (lambda v: v[1]["conversations"].reverse(), "item 2: expected a turn"),
        (lambda v: v[1]["conversations"][0].update(value="<video> <video>?"), "2 placeholders of media"),
        (lambda v: v[1]["conversations"][0].update(value="<video>"), "must not be empty"),
        (lambda v: v[1].update(signals=["imu.npy"]), "'signals' must map names to paths"),
        (lambda v: v[1].update(signals={"imu": 3}), "signal 'imu' must be a path"),
        (lambda v: v.insert(1, "text"), "item 2: expected a JSON object, got str"),
    ],
    "sharegpt": [
        (lambda v: v[1].pop("videos"), "item 2: needs one clip in 'videos' or 'images', has none"),
        (lambda v: v[1]["videos"].append("c.mp4"), "item 2: .* has 2"),
        (lambda v: v[1].update(images=["c.png"]), "item 2: .* has 2"),
        (lambda v: v[1].update(videos=[3]), "item 2: 'video' is 3, which is not a valid file name"),
        (lambda v: v[1].update(audios=["a.wav", "b.wav"]), "'audios' must be a list of one path"),
        (lambda v: v[1].update(audios="a.wav"), "'audios' must be a list of one path"),
        (lambda v: v[1].update(conversations={}), "needs 'conversations', .* has dict"),
        (lambda v: v[1].update(conversations=[]), "has 0 turns"),
        (lambda v: v[1]["conversations"][0].update({"from": "tool"}), "expected a turn {'from': 'human'"),
        (lambda v: v[1]["conversations"][1].update(value=None), "expected a turn {'from': 'gpt'"),
    ],
    "messages": [
        (lambda v: v[1].pop("videos"), "line 2: needs one clip in 'videos' or 'images'"),
        (lambda v: v[1].update(videos=["a.mp4", "b.mp4"]), "line 2: .* has 2"),
        (lambda v: v[1].update(videos=[""]), "line 2: 'video' is ''"),
        (lambda v: v[1].update(audios=3), "'audios' must be a list of one path, got 3"),
        (lambda v: v[1].update(messages="text"), "needs 'messages', .* has str"),
        (lambda v: v[1]["messages"].pop(), "has 1 turn"),
        (lambda v: v[1]["messages"][0].update(role="tool"), "expected a turn {'role': 'user'"),
        (lambda v: v[1]["messages"].insert(0, {"role": "user", "content": "?"}), "has 3 turns"),
        (lambda v: v[1]["messages"][0].update(content=[{"type": "tool"}]), "expected a part of type text"),
        (lambda v: v[1]["messages"][0].update(content=[{"type": "video", "video": "c.mp4"}]), "has 2"),
    ],
    "avsd": [
        (lambda v: v["XY34Z"].update(data="text"), "entry 2: needs 'data', a list"),
        (lambda v: v["XY34Z"].update(data=[]), "entry 2: needs 'data', a list"),
        (lambda v: v["XY34Z"].update(data=["?"]), "entry 2: needs 'data', a list"),
        (lambda v: v["XY34Z"].pop("data"), "entry 2: needs 'data', a list"),
        (lambda v: v["XY34Z"]["data"][0].pop("answer"), "entry 2: needs 'answer', a text; has the keys"),
        (lambda v: v["XY34Z"]["data"][0].pop("question"), "entry 2: needs 'question', a text"),
        (lambda v: v["XY34Z"]["data"][1].update(answer=" "), "entry 2: needs 'answer', a text; got ' '"),
        (lambda v: v["XY34Z"]["data"][1].update(answer=["no"]), "entry 2: needs 'answer', a text; got"),
        (lambda v: v["XY34Z"]["data"][1].update(answer="__UNDISCLOSED__"), "entry 2: an answer is __UNDIS.*copy"),
        (lambda v: v["XY34Z"]["data"][1].update(question=None), "entry 2: needs 'question'"),
    ],
    "avqa": [
        (lambda v: v[0].update(answer=4), "item 1: 'answer' must be the place of a choice, 0 to 3, got 4"),
        (lambda v: v[0].update(answer=-1), "'answer' must be the place"),
        (lambda v: v[0].update(answer="1"), "'answer' must be the place"),
        (lambda v: v[0].update(answer=True), "'answer' must be the place"),
        (lambda v: v[0].pop("answer"), "'answer' must be the place"),
        (lambda v: v[0].update(multi_choice=[]), "needs 'multi_choice', a list of 1 to 32 texts"),
        (lambda v: v[0].update(multi_choice="a kettle"), "needs 'multi_choice'"),
        (lambda v: v[0].update(multi_choice=[1, 2]), "needs 'multi_choice'"),
        (lambda v: v[0].update(question_text=""), "needs 'question_text'"),
        (lambda v: v[0].update(video_name=None), "needs 'video_name'"),
    ],
    "music-avqa": [
        (lambda v: v[0].update(templ_values='["flute"]'), "item 1: 2 slots in .*, but 1 value in 'templ_values'"),
        (lambda v: v[0].update(templ_values="[]"), "2 slots in .*, but 0 values"),
        (lambda v: v[0].update(templ_values="[flute, drum]"), "'templ_values' must be a list of texts"),
        (lambda v: v[0].update(templ_values={"a": 1}), "'templ_values' must be a list of texts"),
        (lambda v: v[0].update(templ_values="[1, 2]"), "'templ_values' must be a list of texts"),
        (lambda v: v[0].update(type="Audio"), "'type' must be a list of texts, got 'Audio'"),
        (lambda v: v[0].pop("anser"), "needs 'anser', a text"),
        (lambda v: v[0].update(anser=""), "needs 'anser', a text"),
        (lambda v: v[0].pop("question_content"), "needs 'question_content'"),
        (lambda v: v[0].update(video_id=""), "needs 'video_id'"),
    ],
    "scanqa": [
        (lambda v: v[1].update(answers=[]), "item 2: needs 'answers', a list of 1 to 32 texts"),
        (lambda v: v[1].pop("answers"), "item 2: needs 'answers'"),
        (lambda v: v[1].update(answers="brown"), "item 2: needs 'answers'"),
        (lambda v: v[1].update(answers=[None]), "item 2: needs 'answers'"),
        (lambda v: v[1].update(answers=["x"] * 33), "item 2: needs 'answers'"),
        (lambda v: v[1].update(answers=[" "]), "item 2: question and answer must not be empty"),
        (lambda v: v[1].pop("question"), "item 2: needs 'question', a text; has the keys"),
        (lambda v: v[1].update(question=["?"]), "item 2: needs 'question', a text; got"),
        (lambda v: v[1].update(scene_id=None), "item 2: needs 'scene_id'"),
        (lambda v: v[1].update(scene_id="x" * 300), "item 2: 'video' is .* not a valid file name"),
    ],
    "sqa3d": [
        (lambda v: v["questions"][1].update(question_id=5), "questions, item 2: question_id 5 is not one of the 2"),
        (lambda v: v["questions"][1].pop("question_id"), "question_id None is not one of the 2 with answers"),
        (lambda v: v["questions"][1].pop("situation"), "questions, item 2: needs 'situation'"),
        (lambda v: v["questions"][1].update(situation=3.5, question=None), "needs 'question', a text; got None"),
        (lambda v: v["questions"][1].update(question=""), "needs 'question'"),
        (lambda v: v["questions"][1].pop("question"), "needs 'question'"),
        (lambda v: v["questions"][1].pop("scene_id"), "needs 'scene_id'"),
        (lambda v: v["questions"][1].update(scene_id="a\0b"), "not a valid file name"),
        (lambda v: v["questions"].insert(0, [1]), "questions, item 1: expected a JSON object, got list"),
        (lambda v: v["questions"].append(None), "questions, item 3: expected a JSON object, got NoneType"),
    ],
    "ego-exo4d": [
        (
            lambda v: v["annotations"][1].update(proficiency_score="Expert"),
            "item 2: 'proficiency_score' must be one of",
        ),
        (lambda v: v["annotations"][1].pop("proficiency_score"), "item 2: needs 'proficiency_score'"),
        (lambda v: v["annotations"][1].update(proficiency_score=None), "item 2: needs 'proficiency_score'"),
        (lambda v: v["annotations"][1].update(video_paths=[]), "needs 'video_paths' with 'ego'"),
        (lambda v: v["annotations"][1].update(video_paths="a.mp4"), "needs 'video_paths' with 'ego'"),
        (lambda v: v["annotations"][1].pop("video_paths"), "needs 'video_paths' with 'ego'"),
        (lambda v: v["annotations"][1]["video_paths"].pop("ego"), "needs 'video_paths' with 'ego'"),
        (lambda v: v["annotations"][1]["video_paths"].update(ego=""), "'video' is ''"),
        (lambda v: v["annotations"][1]["video_paths"].update(exo1=7), "signal 'views' must be a path"),
        (lambda v: v["annotations"][1]["video_paths"].update(exo1=[]), "signal 'views' must be a path"),
    ],
    "pave-dataset": [
        (lambda v: v[1].update(video=3.5), "item 2: the map of videos has 3.5 for 3.5, not a path"),
        (lambda v: v[1].update(video=""), "item 2: needs 'video'"),
        (lambda v: v[1].update(conversations=[]), "item 2: needs 'conversations', .* has 0 turns"),
        (lambda v: v[1]["conversations"].pop(0), "item 2: .* has 1 turn"),
        (lambda v: v[1]["conversations"].extend(spoken("a")), "item 2: .* has 3 turns"),
        (lambda v: v[1]["conversations"][0].pop("from"), "item 2: expected a turn"),
        (lambda v: v[1]["conversations"][0].pop("value"), "item 2: expected a turn"),
        (lambda v: v[1]["conversations"][1].update(value=""), "item 2: question and answer must not be empty"),
        (lambda v: v[1].update(audio_track=-1), "item 2: 'audio_track' must be a whole number"),
        (lambda v: v.insert(1, []), "item 2: expected a JSON object, got list"),
    ],
    "columns in lines": [
        (lambda v: v[0].pop("videos"), "line 1: is in no known format|needs one clip"),
        (lambda v: v[0].update(videos=["a.mp4", "b.mp4"]), "line 1: needs one clip in 'videos', has 2"),
        (lambda v: v[0].update(videos=[7]), "line 1: 'video' is 7"),
        (lambda v: v[0].update(video="b.mp4"), "line 1: needs one clip in 'video' or 'videos', has 2"),
        (lambda v: v[0].pop("query"), "line 1: needs a column 'question', .*name yours in columns:"),
        (lambda v: v[0].update(query=["?"]), "line 1: needs 'query', a text; got"),
        (lambda v: v[0].update(query="<video> "), "line 1: question and answer must not be empty"),
        (lambda v: v[0].update(response=None), "line 1: needs 'response', a text; got None"),
        (lambda v: v[0].update(response=" "), "line 1: needs 'response', a text; got ' '"),
        (lambda v: v[0].update({"signals.imu": {"a": 1}}), "line 1: signal 'imu' must be a path"),
    ],
    "videomme": [
        *choosing(lambda v: v[1], "question", "options", "answer"),
        (lambda v: v[1]["options"].reverse(), "line 2: an option must begin with 'A.', got 'D. white'"),
        (lambda v: v[1].pop("videoID"), "line 2: needs 'videoID', a text; has the keys"),
    ],
    "mvbench": [
        *choosing(lambda v: v[0], "question", "candidates", "answer"),
        (lambda v: v[0].pop("end"), "item 1: 'start' and 'end' must be seconds, got 2.5 and None"),
        (lambda v: v[0].update(end=1), "item 1: its seconds must be 0 or more, the end behind the start, got"),
        (lambda v: v[0].update(start=float("inf")), "item 1: its seconds must be|not JSON|Infinity"),
    ],
    "mlvu": [
        change
        for change in choosing(lambda v: v[1], "question", "candidates", "answer")
        if "'Z'" not in change[1]  # an answer that is no option is known in this data
    ]
    + [(lambda v: v[0].update(candidates="[" * 300), "item 1: 'candidates' must be a list of texts, got")],
    "egoschema": asking(lambda v: v[2], "question", *(f"option {place}" for place in range(5))),
    "perception-test": [
        *choosing(lambda v: v["video_10"]["mc_question"][1], "question", "options", "answer_id"),
        (lambda v: v["video_10"].update(mc_question={}), "entry 1: needs 'mc_question', a list of questions"),
    ],
    "omnibench": choosing(lambda v: v[0], "question", "options", "answer"),
    "daily-omni": choosing(lambda v: v[0], "Question", "Choice", "Answer"),
    "worldsense": [
        *choosing(lambda v: v["aBcD"]["task1"], "question", "candidates", "answer"),
        (lambda v: v["aBcD"].update(task1="?"), "entry 1: needs 'task0', a question, got"),
    ],
    "activitynet-qa": [
        *asking(lambda v: v[1], "video_name", "question", "question_id"),
        (lambda v: v[1].update(question_id="v_9_9"), "item 2: question_id 'v_9_9' is not one of the 2 with answers"),
    ],
    "msrvtt-qa": asking(lambda v: v[1], "question", "answer", "video_id"),
    "msvd-qa": [
        *asking(lambda v: v[1], "question", "answer", "video_id"),
        (lambda v: v[1].update(video_id=9), "item 2: 'vid9' is not one of the 3 names in youtube_mapping.txt"),
    ],
    "vatex": [
        *asking(lambda v: v[1], "videoID"),
        (lambda v: v[1].update(enCap=[]), "item 2: needs 'enCap', a list of 1 to 32 texts"),
        (lambda v: v[1].update(enCap=[" "]), "item 2: question and answer must not be empty"),
    ],
    "valor": asking(lambda v: v[1], "video_id", "desc"),
    "video-chatgpt": asking(lambda v: v[1], "video_name", "Q", "A"),
    "avhbench": asking(lambda v: v[1], "video_id", "text", "label"),
    "save-bench": [
        *asking(lambda v: v[0], "question"),
        (lambda v: v[0].update(answer=[]), "item 1: needs 'answer', a list of 1 to 32 texts"),
        (lambda v: v[0].update(image=[]), "item 1: needs 'image', a file or a list of two, got"),
        (lambda v: v[0].update(image=["a", "b", "c"]), "item 1: needs 'image', a file or a list of two"),
        (lambda v: v[3].update(answer="a man"), "item 4: 'answer' must be one of .*, got 'a man'"),
        (lambda v: v[4].update(conversation=["Who?"]), r"item 5: needs 'conversation', a list of \[question, answer\]"),
        (lambda v: v[4].update(conversation=[["Who?", ""]]), "item 5: question and answer must not be empty"),
    ],
    "next-qa": [(line, cause) for line, cause in NEXT_QA],
}
BROKEN = [(name, place) for name, changes in CHANGES.items() for place in range(len(changes))]


def test_each_format_has_ten_broken_records() -> None:
    assert {EXCERPTS[name].format for name in CHANGES} == set(formats())
    assert all(len(changes) >= 10 for changes in CHANGES.values())


@pytest.mark.parametrize(("name", "number"), BROKEN)
def test_a_broken_record_is_refused_with_its_place_and_a_remedy(tmp_path: Path, name: str, number: int) -> None:
    change, cause = CHANGES[name][number]
    content = deepcopy(EXCERPTS[name].content)
    changed = change(content)  # a text cannot be changed in place
    write_excerpt(tmp_path, name, changed if isinstance(content, str) else content)
    data = options(tmp_path, name, format=EXCERPTS[name].format)
    with pytest.raises(DataError, match=rf"(?s){EXCERPTS[name].file}, .*(?:{cause}).*(; |fix or delete)"):
        read_data(data)
    found = check(data)
    assert len(found.broken) == 1 and not found.ok


def test_without_its_answers_sqa3d_says_where_they_are_sought(tmp_path: Path) -> None:
    write_excerpt(tmp_path, "sqa3d")
    (answers,) = EXCERPTS["sqa3d"].beside
    (tmp_path / answers).rename(tmp_path / "a.json")
    with pytest.raises(DataError, match=rf"{answers} is not there; name it with maps: {{answers: FILE}}"):
        read_data(options(tmp_path, "sqa3d"))
    assert len(read_data(options(tmp_path, "sqa3d", maps={"answers": tmp_path / "a.json"}))) == 2
    (tmp_path / "a.json").write_text(json.dumps({"annotations": 3}))
    with pytest.raises(DataError, match=r"a.json: has no list 'annotations'"):
        read_data(options(tmp_path, "sqa3d", maps={"answers": tmp_path / "a.json"}))


def test_the_authors_layout_needs_its_map(tmp_path: Path) -> None:
    write_excerpt(tmp_path, "pave-dataset")
    with pytest.raises(DataError, match=r"its videos are ids; name the map to files with maps: {videos: FILE}"):
        read_data(options(tmp_path, "pave-dataset", maps={}))
    (tmp_path / "map.json").write_text('{"abc": 3}')
    with pytest.raises(DataError, match=r"item 1: the map of videos has 3 for 'x/abc.mp4', not a path"):
        read_data(options(tmp_path, "pave-dataset"))


def test_a_question_of_ones_own_replaces_the_default(tmp_path: Path) -> None:
    write_excerpt(tmp_path, "ego-exo4d")
    assert {each.question for each in read_data(options(tmp_path, "ego-exo4d", question="Skill?"))} == {"Skill?"}
