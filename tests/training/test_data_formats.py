"""Training from other people's files: the patch is the one that our own format gives, to the last byte."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import quiet, trained
from scans import room, write_scannet
from small import write_line

from pave.cli import train as command
from pave.data_sets import data_sets
from pave.evaluation.accuracy import evaluate
from pave.model.patched import load
from pave.recipe import Recipe, read_recipe
from pave.training.plan import order as _order
from pave.training.run import Run, train

Make = Callable[..., Recipe]


def lines(workshop: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workshop / "train.jsonl").read_text().splitlines()]


def turns(line: dict[str, Any]) -> tuple[str, str]:
    asked, answered = line["conversations"]
    return asked["value"], answered["value"]


def llava(folder: Path, workshop: Path) -> Path:
    (folder / "llava.json").write_text(json.dumps(lines(workshop), indent=1))
    return folder / "llava.json"


def messages(folder: Path, workshop: Path) -> Path:
    with (folder / "swift.jsonl").open("w") as file:
        for line in lines(workshop):
            roles = zip(("user", "assistant"), turns(line), strict=True)
            spoken = [{"role": role, "content": text} for role, text in roles]
            file.write(json.dumps({"messages": spoken, "videos": [line["video"]]}) + "\n")
    return folder / "swift.jsonl"


def table(folder: Path, workshop: Path) -> Path:
    with (folder / "a.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "question", "answer"])
        rows.writerows([line["video"], *turns(line)] for line in lines(workshop))
    return folder / "a.csv"


def shard(folder: Path, workshop: Path) -> Path:
    """One sample per clip, with all questions about it."""
    talks: dict[str, list[Any]] = {}
    for line in lines(workshop):
        talks.setdefault(line["video"], []).extend(line["conversations"])
    with tarfile.open(folder / "a.tar", "w") as file:
        for place, (video, talk) in enumerate(talks.items()):
            (folder / "talk.json").write_text(json.dumps({"conversations": talk}))
            file.add(workshop / video, f"{place:03}.mp4")
            file.add(folder / "talk.json", f"{place:03}.json")
    return folder / "a.tar"


def parquet(folder: Path, workshop: Path) -> Path:
    arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for line in lines(workshop):
        video = workshop / line["video"]
        asked, answered = turns(line)
        rows.append({"video": {"bytes": video.read_bytes(), "path": video.name}, "question": asked, "answer": answered})
    tables.write_table(arrow.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def of_datasets(workshop: Path) -> Any:
    """Hugging Face's data set, whose videos are files."""
    datasets = pytest.importorskip("datasets")
    rows = ((str(workshop / line["video"]), *turns(line)) for line in lines(workshop))
    table = datasets.Dataset.from_list([dict(zip(("video", "question", "answer"), row, strict=True)) for row in rows])
    return table.cast_column("video", datasets.Video(decode=False))


def saved(folder: Path, workshop: Path) -> Path:
    of_datasets(workshop).save_to_disk(folder / "saved")
    return folder / "saved"


def exported(folder: Path, workshop: Path) -> Path:
    (folder / "parquet").mkdir()
    of_datasets(workshop).to_parquet(folder / "parquet" / "train-00000.parquet")
    return folder / "parquet" / "*.parquet"


@pytest.fixture(scope="module")
def ours(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    recipe = read_recipe(workshop, [f"train.output={tmp_path_factory.mktemp('ours') / 'out'}"])
    return train(recipe).patch.read_bytes()


@pytest.mark.parametrize("write", [llava, messages, table, shard, parquet, saved, exported])
def test_any_format_trains_the_same_patch(
    recipe: Make, workshop: Path, tmp_path: Path, ours: bytes, write: Callable[[Path, Path], Path]
) -> None:
    (tmp_path / "clips").symlink_to(workshop / "clips")
    file = write(tmp_path, workshop)
    result = train(recipe(f"data.train={file}"))
    assert not json.loads(result.patch.with_name("metrics.json").read_text())["unreadable"]
    assert result.patch.read_bytes() == ours


def test_a_data_set_in_memory_is_evaluated_as_its_file_is(workshop: Path, tmp_path: Path) -> None:
    model = load(workshop / "base")
    found = [evaluate(model, data).samples for data in (of_datasets(workshop), workshop / "train.jsonl")]
    one, other = ([(each.example.question, each.example.answer, each.answer) for each in samples] for samples in found)
    assert one == other and len(one) == len(lines(workshop))


def test_a_llava_list_trains_on_the_embedded_base(
    tmp_path: Path, workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole: from the command line, with real mp4 files, to answers of the patch."""
    (tmp_path / "clips").symlink_to(workshop / "clips")
    llava(tmp_path, workshop)
    (tmp_path / "patch.yaml").write_text("""\
name: mine
base: playroom
senses: {audio: {encoder: logmel, options: {bands: 48, rate: 20}}}
fusion: {width: 64}
data:
  train: [{file: llava.json, weight: 0.5}, {file: llava.json, format: llava, media: .}]
  val: llava.json
train: {steps: 2, batch: 2, eval_every: 2, output: out}
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pave-train", "patch.yaml", f"train.output={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert "held-out questions" in out and (tmp_path / "out/patch.safetensors").is_file()
    model = load("playroom")
    model.apply_patch(tmp_path / "out/patch.safetensors")
    assert evaluate(model, tmp_path / "llava.json").samples


def test_sound_that_a_line_drops_is_dropped_as_in_ask(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    """`signals: {"audio": null}` and `audio=None` leave the same clip; a path replaces the sound."""
    clip, other = (str(each) for each in sorted((workshop / "clips").glob("train-*.mp4"))[:2])
    kinds: list[Any] = [{}, {"signals": {"audio": None}}, {"signals": {"audio": other}}]
    (tmp_path / "a.jsonl").write_text("".join(write_line(clip, "what do you hear?", "a", **kind) for kind in kinds))
    run = trained(recipe(f"data.train={tmp_path / 'a.jsonl'}", "train.steps=1"))
    own, without, replaced = run.dataset.train
    (encoder,) = run.setup.senses.values()
    assert own.has(encoder) and not without.has(encoder) and replaced.has(encoder)
    key = encoder.spec.preprocessing
    signals: list[dict[str, Any]] = [{}, {"audio": None}, {"audio": other}]
    for row, given in zip((own, without, replaced), signals, strict=True):
        state, side = run.setup.model.ask(clip, "?", **given).signals["audio"], row.features.sides[key]
        assert state == (
            row.features.absent[key] if side is None else f"present: {len(side.x)} steps from {side.times[0]:.2f} s"
        )
    first, instead = own.features.sides[key], replaced.features.sides[key]
    assert first and instead and not torch.equal(first.x, instead.x)


def test_a_scan_is_its_own_video(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    """ScanQA about a folder of posed images: key frames are the views whose geometry the patch reads."""
    write_scannet(tmp_path / "scene0000_00", room(4))
    entry = {"scene_id": "scene0000_00", "question_id": "1", "question": "what?", "answers": ["a desk"]}
    (tmp_path / "ScanQA.json").write_text(json.dumps([entry]))
    sense = "senses={depth: {encoder: rgbd-geometry, align: index, options: {frames: 4}}}"
    run = trained(recipe(sense, f"data.train={tmp_path / 'ScanQA.json'}", "train.steps=1"))
    (clip,) = run.dataset.train
    (encoder,) = run.setup.senses.values()
    assert clip.has(encoder) and len(clip.features.tokens) == 4 and not run.dataset.refused


def test_clips_come_as_often_as_their_data_set_weighs(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(workshop / "clips")
    clips = sorted((workshop / "clips").glob("train-*.mp4"))
    for name, part in (("a", clips[:2]), ("b", clips[2:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(write_line(str(clip), "?", name) for clip in part))
    sets = f"data.train=[{{file: {tmp_path / 'a.jsonl'}, weight: 3}}, {{file: {tmp_path / 'b.jsonl'}, weight: 0.5}}]"
    run = Run.begin(recipe(sets, "train.steps=4", "train.batch=2"))
    run.fit(quiet)
    for epoch in range(5):  # 3 x 2 + 4 / 2 = 8 clips: four steps of two
        seen = [clip for step in range(4) for clip in run.clips_of(4 * epoch + step)]
        counts = Counter(clip.examples[0].source for clip in seen)
        assert sorted(counts[each.examples[0].source] for each in run.dataset.train if each.weight == 3) == [3, 3]
        assert sum(counts[each.examples[0].source] for each in run.dataset.train if each.weight == 0.5) == 2
    assert len({frozenset(_order([0.5] * 4, 0, epoch)) for epoch in range(9)}) > 1  # not always the same half


def test_equal_weights_leave_the_order_of_earlier_runs() -> None:
    for epoch in range(3):
        draw = torch.Generator().manual_seed(5 * 1_000_003 + epoch)
        assert _order([1.0] * 50, 5, epoch) == torch.randperm(50, generator=draw).tolist()


def test_a_dry_run_unpacks_nothing(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shard(tmp_path, workshop)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["pave-train", str(workshop), f"data.train={file}", "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    out, _ = capsys.readouterr()
    assert not stop.value.code and f"{len(lines(workshop))} questions" in out and out.endswith("clips can be used\n")
    assert "sample 1 as the loss sees it" in out and sorted(tmp_path.rglob("*")) == before


def test_the_paths_of_data_sets_are_relative_to_the_recipe(workshop: Path, tmp_path: Path) -> None:
    shutil.copy(workshop / "patch.yaml", tmp_path)
    text = (tmp_path / "patch.yaml").read_text()
    sets = "[a.jsonl, {file: b.json, media: films, maps: {videos: m.json}, format: pave-dataset}]"
    (tmp_path / "patch.yaml").write_text(text.replace(str(workshop / "train.jsonl"), sets))
    one, two = data_sets(read_recipe(tmp_path).data.train)
    assert one.file == tmp_path / "a.jsonl"
    assert (two.file, two.media, two.maps["videos"]) == tuple(tmp_path / each for each in ("b.json", "films", "m.json"))
