"""Files of all kinds: lists are read in pieces, tables by columns, shards without trust, patterns and weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from excerpts import LLAVA, spoken, write_excerpt
from small import write_line

from pave.data import Example
from pave.data_sets import DataSet
from pave.errors import DataError
from pave.readers import records
from pave.readers.check import check
from pave.readers.questions import Reading, read_data, refuse_no_data


def item(number: int, **more: Any) -> dict[str, Any]:
    return {"video": f"{number}.mp4", "conversations": spoken(f"{number}?", "yes")} | more


def asked(examples: list[Example]) -> list[tuple[str, str, str]]:
    return [(example.video.name, example.question, example.place) for example in examples]


# Lists


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
) -> None:
    monkeypatch.setattr(records, "PIECE", piece)
    items = [item(number, note='ü [{"],\\' * number, count=number * 1000) for number in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(items, indent=indent, ensure_ascii=False), "utf-8-sig")
    examples = read_data(tmp_path / "a.json")
    assert asked(examples) == [(f"{n}.mp4", f"{n}?", f"item {n + 1}") for n in range(9)]
    assert [example.facts for example in examples] == [{"note": each["note"], "count": each["count"]} for each in items]


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join(json.dumps(item(number, note="x" * 5_000)) for number in range(4_000)) + "]")
    assert (tmp_path / "a.json").stat().st_size > 19 << 20
    tracemalloc.start()
    count = sum(1 for _ in records.json_records(tmp_path / "a.json"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4_000 and most < 12 << 20


GOOD = json.dumps(item(1))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f"[{GOOD}, {GOOD[:-1]}", "item 2: not JSON .*what follows it was not read"),
        (f"[{GOOD}, {{'a': 1}}]", "item 2: not JSON .*at column 2"),
        (f'[{GOOD}, {{\n\n"a" 1}}]', "item 2: not JSON .*at line 3, column 5"),
        (f'[{GOOD}, {{"a": 1, "a": 2}}]', "item 2: the key 'a' is there twice"),
        (f"[{GOOD}, {'[' * 40}{']' * 40}]", "item 2: nested over 32 deep"),
        (f"[{GOOD}, 7]", "item 2: expected a JSON object, got int"),
        (f"[{GOOD}\n\n{GOOD}]", "line 3: is no JSON list \\('{' where ',' is expected\\)"),
        (f"[{GOOD}", r"is no JSON list \(it ends without ','\)"),
        (f"[{GOOD}] 7", "something follows the list"),
        (f"[{GOOD},", "item 2: not JSON"),
        ("[]", "contains no question"),
        ("[" + GOOD.replace("1?", "x" * (records.LONGEST + 9)) + "]", "item 1: has over 4,194,304 characters"),
        (b"[" + GOOD.encode() + b", \xff]", "not UTF-8 behind line 1"),
        ('{"info": 1, "data": [{}, 3', "not JSON"),
        ('{"a": 1}', "object 1: is in no known format|line 1: is in no known format"),
        ("{\n}", "no known format"),
    ],
)
def test_a_broken_list_or_object_is_refused(tmp_path: Path, text: str | bytes, cause: str) -> None:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"(?s)a\.json.*{cause}.*; "):
        read_data(tmp_path / "a.json")


# Formats


def test_the_wrong_format_says_which_one_it_looks_like(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "music-avqa")
    with pytest.raises(DataError, match=r"item 1: needs .* As scanqa, it looks like music-avqa: its keys are"):
        read_data(DataSet(file=file, format="scanqa"))
    with pytest.raises(DataError, match="no format 'music'; did you mean 'music-avqa'"):
        read_data(DataSet(file=file, format="music"))


def test_records_that_fit_no_format_say_what_they_have_and_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"clip": "a.mp4", "question": "?", "answers": ["x"], "scene_id": "s"}\n')
    with pytest.raises(DataError, match=r"line 1: is in no known format .*scanqa, the nearest, needs question_id"):
        read_data(tmp_path / "a.jsonl")


# Tables


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("video,question,answer\na.mp4,?\n", "line 2: has 2 cells under 3 names of columns"),
        ("video,question,answer\na.mp4,?,x,y\n", "line 2: has 4 cells"),
        ('video,question,answer\na.mp4,"?\n', r"line 2: not CSV \(unexpected end of data\)"),
        ('video,question,answer\na.mp4,"?"x,y\n', "line 2: not CSV"),
        ("video,video,answer\na.mp4,?,x\n", "line 1: the names of columns must differ"),
        ("video,,answer\na.mp4,?,x\n", "line 1: the names of columns must differ, got .*; rename"),
        (b"video,question,answer\na.mp4,\xff,x\n", "not UTF-8; save"),
        ("video,question,answer\na.mp4,,x\n", "line 2: needs a column 'question'"),
        ("video,question,answer\na.mp4,?,\n", "line 2: needs 'answer', a text; got ''"),
        ("video,question,answer\n,?,x\n", "line 2: needs one clip in .*, has none"),
        ('video,question,answer\na.mp4,"1\n2",x\nb.mp4,?,\n', "line 4: needs 'answer'"),
        ("", "contains no question"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str | bytes, cause: str) -> None:
    (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"a\.csv.*{cause}"):
        read_data(tmp_path / "a.csv")


def rows() -> list[dict[str, Any]]:
    return [
        {"video": {"bytes": b"first film", "path": "deep/a.mp4"}, "question": "Why?", "answer": "It rains.", "n": 1},
        {"video": {"bytes": b"first film", "path": "a.mp4"}, "question": "Where?", "answer": "Here.", "n": 2},
        {"video": {"bytes": None, "path": "b.mp4"}, "question": "Who?", "answer": "I.", "n": 3},
    ]


def test_parquet_gives_its_rows_and_unpacks_the_media_in_it(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows()), tmp_path / "a.parquet")
    found = check(DataSet(file=tmp_path / "a.parquet"))
    assert (found.questions, found.clips, found.broken) == (3, 2, ()) and not (tmp_path / "a.parquet.media").exists()
    assert found.missing == (str(tmp_path / "a.parquet.media/b.mp4"),)
    examples = read_data(tmp_path / "a.parquet")
    one, same, other = (example.video for example in examples)
    assert one == same != other == tmp_path / "a.parquet.media/b.mp4"
    assert one.read_bytes() == b"first film" and one.suffix == ".mp4" and examples[0].place == "row 1"
    assert [example.facts for example in examples] == [{"n": 1}, {"n": 2}, {"n": 3}]
    changed = one.stat().st_mtime_ns
    read_data(tmp_path / "a.parquet")
    assert one.stat().st_mtime_ns == changed  # it was not written again
    (tmp_path / "b.parquet").write_bytes(b"no table at all")
    with pytest.raises(DataError, match=r"b.parquet: not Parquet .*download it again"):
        read_data(tmp_path / "b.parquet")


def test_a_saved_data_set_of_hugging_face_is_read_from_its_folder(tmp_path: Path) -> None:
    """The layout of `datasets.Dataset.save_to_disk`: streams of Arrow, named by state.json."""
    arrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (rows()[:2], rows()[2:]), strict=True):
        table = arrow.Table.from_pylist(part)
        with ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert [example.question for example in read_data(folder)] == ["Why?", "Where?", "Who?"]
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match=r"has the splits train; give the folder of one: \S+train"):
        read_data(tmp_path / "saved")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(DataError, match=r"state.json: names no files of data.*save the data set again"):
        read_data(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": names[0]}]}))
    (folder / names[0]).write_bytes(b"no stream")
    with pytest.raises(DataError, match="not Arrow"):
        read_data(folder)


def test_rows_in_memory_are_read_as_those_of_a_table() -> None:
    examples = read_data({"video": f"{n}.mp4", "question": "?", "answer": str(n)} for n in range(3))
    assert [(str(each.video), each.answer, each.place) for each in examples] == [
        (f"{n}.mp4", str(n), f"row {n + 1}") for n in range(3)
    ]
    assert read_data(examples) == examples
    with pytest.raises(DataError, match="rows, row 2: needs 'answer'"):
        read_data([{"video": "a.mp4", "question": "?", "answer": a} for a in ("x", None)])
    with pytest.raises(DataError, match="rows, row 1: expected a mapping of columns, got tuple"):
        read_data([("a.mp4", "?", "x")])
    with pytest.raises(DataError, match=r"rows, row 1: 'video' is <object .*, which is not a valid file name"):
        read_data([{"video": object(), "question": "?", "answer": "x"}])
    with pytest.raises(DataError, match=r"a\.jsonl: no such file"):
        read_data(["a.jsonl", Path("b.jsonl")])


# Shards


def test_a_folder_of_files_says_how_to_name_them(tmp_path: Path) -> None:
    """As `datasets` writes them; which of them belong to a split is not guessed."""
    (tmp_path / "train-00000-of-00001.parquet").touch()
    with pytest.raises(DataError, match=r"is a folder; name its files together: .*\*\.parquet$"):
        read_data(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"is a folder; give a file of questions"):
        read_data(tmp_path)


def shard(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            file.addfile(info, io.BytesIO(data))
    return path


def packed(number: int) -> dict[str, bytes]:
    talk = json.dumps({"conversations": spoken(f"{number}?", "yes"), "kind": number}).encode()
    return {f"set/{number:03}.mp4": b"film %d" % number, f"set/{number:03}.json": talk}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_samples_of_a_shard_are_read_and_their_media_unpacked_once(tmp_path: Path, ending: str) -> None:
    file = shard(tmp_path / f"a.{ending}", {**packed(1), **packed(2), "set/002.wav": b"sound"})
    found = check(DataSet(file=file))
    assert found.ok and (found.questions, found.clips, found.signals) == (2, 2, {"audio": 1})
    assert sorted(tmp_path.iterdir()) == [file]  # a check writes nothing
    examples = read_data(file)
    media = tmp_path / f"a.{ending}.media"
    assert asked(examples) == [("001.mp4", "1?", "sample 1"), ("002.mp4", "2?", "sample 2")]
    assert [each.video.read_bytes() for each in examples] == [b"film 1", b"film 2"]
    assert examples[1].source.signals == (("audio", str(media / "set/002.wav")),)
    assert examples[0].facts == {"__key__": "set/001", "kind": 1}
    assert read_data(DataSet(file=file, media=tmp_path / "m"))[0].video == tmp_path / "m/set/001.mp4"


def test_captions_of_a_shard_get_the_question_of_the_data_set(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", {"1.webm": b"film", "1.txt": b"Rain on a roof.\n", "1.meta": b""})
    (example,) = read_data(DataSet(file=file, question="Describe it."))
    assert (example.question, example.answer, example.video.name) == ("Describe it.", "Rain on a roof.", "1.webm")
    with pytest.raises(DataError, match="sample 1: needs a column 'question'"):
        read_data(file)


@pytest.mark.parametrize(
    ("members", "kind", "cause"),
    [
        ({"../1.mp4": b"x"}, tarfile.REGTYPE, "'../1.mp4' is no plain file inside the shard"),
        ({"/etc/1.mp4": b"x"}, tarfile.REGTYPE, "'/etc/1.mp4' is no plain file"),
        ({"a/../../1.mp4": b"x"}, tarfile.REGTYPE, "is no plain file"),
        ({"..\\1.mp4": b"x"}, tarfile.REGTYPE, "is no plain file"),
        ({"c:/1.mp4": b"x"}, tarfile.REGTYPE, "is no plain file"),
        ({"1.mp4": b""}, tarfile.SYMTYPE, "is no plain file"),
        ({"1.mp4": b""}, tarfile.LNKTYPE, "is no plain file"),
        ({"1.mp4": b""}, tarfile.FIFOTYPE, "is no plain file"),
        ({"1.mp4": b""}, tarfile.CHRTYPE, "is no plain file"),
        ({"1.mp4": b"x", "1.json": b"{"}, tarfile.REGTYPE, "'1.json': not JSON"),
        ({"1.mp4": b"x", "1.json": b"[1]"}, tarfile.REGTYPE, "'1.json' holds no JSON object"),
        ({"1.mp4": b"x", "1.txt": b"\xff"}, tarfile.REGTYPE, "'1.txt': .*utf-8"),
        ({"1.mp4": b"x", "1.json": b" " * (5 << 20)}, tarfile.REGTYPE, "'1.json' has over 4,194,304 bytes"),
        ({"1.json": json.dumps(LLAVA[0]).encode()}, tarfile.REGTYPE, ""),
        ({"1.mp4": b"x"}, tarfile.REGTYPE, "no known format"),
    ],
)
def test_a_shard_writes_nothing_outside_its_folder(
    tmp_path: Path, members: dict[str, bytes], kind: bytes, cause: str
) -> None:
    (tmp_path / "in").mkdir()
    file = shard(tmp_path / "in/a.tar", members, kind)
    before = sorted(tmp_path.rglob("*"))
    if cause:
        with pytest.raises(DataError, match=rf"a\.tar, sample 1: .*{cause}"):
            read_data(file)
    else:  # a path in the text of a sample is one in the folder of media
        assert read_data(file)[0].video == tmp_path / "in/a.tar.media/a.mp4"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("cut", [0, 100, 700, 1800])
def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    file = shard(tmp_path / "a.tar.gz", {**packed(1), **packed(2)})
    file.write_bytes(file.read_bytes()[:cut] if cut < 700 else b"x" * cut)
    with pytest.raises(DataError, match=r"a\.tar\.gz: (not a whole tar file|contains no question)"):
        read_data(file)


# Data sets


def test_patterns_name_shards_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"part-{number:03}.jsonl").write_text(write_line(f"{number}.mp4", "?", "x"))
    for pattern in ("part-*.jsonl", "part-{001..002}.jsonl"):
        found = [each.video.name for each in read_data(tmp_path / pattern)]
        assert found == ["1.mp4", "2.mp4", "10.mp4"][: len(found)] and len(found) == (3 if "*" in pattern else 2)
    for pattern, cause in (("no-*.jsonl", "no such file"), ("part-{001..003}.jsonl", "part-003.jsonl: no such file")):
        with pytest.raises(DataError, match=rf"{cause}; give a file of questions"):
            refuse_no_data(tmp_path / pattern)
    with pytest.raises(DataError, match="names over 100,000 files"):
        read_data(tmp_path / "part-{0..999999}.jsonl")


def test_several_data_sets_are_one_and_keep_their_weights(tmp_path: Path) -> None:
    write_excerpt(tmp_path, "llava list")
    (tmp_path / "b.jsonl").write_text(write_line("1.mp4", "?", "x"))
    sets = (DataSet(file=tmp_path / "train.json", weight=2), tmp_path / "b.jsonl")
    assert [each.weight for each in read_data(sets)] == [2, 2, 2, 1]
    with pytest.raises(DataError, match=r"no\.jsonl: no such file"):
        read_data((*sets, tmp_path / "no.jsonl"))


def test_only_the_first_entries_of_a_clip_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(write_line(f"{n % 2}.mp4", f"{n}?", "x") for n in range(6)))
    reading = Reading(DataSet(file=tmp_path / "a.jsonl", per_clip=2))
    assert [each.question for each in reading.examples()] == ["0?", "1?", "2?", "3?"]
    assert reading.left_out == 2 and check(reading.options).left_out == 2


def test_media_are_found_below_their_folder_by_name(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "music-avqa")
    clips = ["Real-1/00000272.mp4", "Synthetic/sff00000001.avi"]
    for clip in clips:
        (tmp_path / "m" / clip).parent.mkdir(parents=True)
        (tmp_path / "m" / clip).touch()
    data = DataSet(file=file, media=tmp_path / "m")
    assert [each.video for each in read_data(data)] == [tmp_path / "m" / clip for clip in clips]
    (tmp_path / "m/other").mkdir()
    (tmp_path / "m/other/00000272.mp4").touch()
    with pytest.raises(DataError, match=r"m: 00000272 is \S+ and \S+; remove one"):
        read_data(data)


def test_a_scan_with_depth_and_poses_is_its_own_signal(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "scanqa")
    for part in ("color", "depth", "pose"):
        (tmp_path / "scans/scene0000_00" / part).mkdir(parents=True)
    (tmp_path / "scans/scene0001_00").mkdir()
    first, second = read_data(DataSet(file=file, media=tmp_path / "scans"))
    assert first.source.signals == (("depth", str(tmp_path / "scans/scene0000_00")),) and not second.source.signals


def test_a_check_goes_on_behind_broken_lines(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    lines = [write_line("a.mp4", "?", "x"), "{\n", write_line("a.mp4", "?"), write_line("a.mp4", "?", "x")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    found = check(DataSet(file=tmp_path / "a.jsonl"))
    assert (found.records, found.questions, found.clips, found.missing) == (4, 2, 1, ())
    assert [each.partition(":")[0] for each in found.broken] == ["line 2", "line 3"] and not found.ok
    assert check(DataSet(file=tmp_path / "a.jsonl"), 1).ok


def test_a_broken_first_line_is_left_out_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    file, line = tmp_path / "a.jsonl", write_line("a.mp4", "?", "x")
    for first in ("{\n", "{\n\n", '{"video": \n', "}\n", "what\n", '"{"\n', "\ufeff{\n"):
        file.write_text(first + line * 2)
        found = check(DataSet(file=file))
        assert (found.records, found.questions) == (3, 2) and [each[:7] for each in found.broken] == ["line 1:"], first
        assert "line 2" not in found.broken[0]  # of a text of one line
    file.write_text(line.replace("{", "{\n").replace("}", "\n}"))  # one object over several lines
    assert check(DataSet(file=file)).questions == 1
