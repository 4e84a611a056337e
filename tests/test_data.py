"""Data files and packed rows: the error of a broken line has its number; packing changes no answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import make_base
from small import awaken, make_clip, make_config, write_line
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.errors import DataError
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.packing.rows import IGNORE, Row, collate, pack
from pave.readers.questions import read_data

QUESTIONS = (("What do you hear?", "a horn"), ("How often?", "three times or four"), ("Is there a bell?", "no"))


def test_a_line_is_one_question_with_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        write_line("clips/1.mp4", "<video>\n What do you hear? ", " a horn\n", channel="audio", optimum=0.5)
    )
    (example,) = read_data(file)
    assert (example.question, example.answer) == ("What do you hear?", "a horn")
    assert example.video == tmp_path / "clips/1.mp4"
    assert example.facts == {"id": "clips/1.mp4", "channel": "audio", "optimum": 0.5}


def test_a_line_of_several_turns_is_several_questions(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        "\n" + write_line("1.mp4", "<video>\none?", "1", "two?", "2") + "\n" + write_line("2.mp4", "?", "3")
    )
    found = [(example.question, example.answer, example.line) for example in read_data(file)]
    assert found == [("one?", "1", 2), ("two?", "2", 2), ("?", "3", 4)]


def test_paths_are_relative_to_the_file_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text(write_line("1.mp4", "?", "a") + write_line("/else/2.mp4", "?", "a"))
    monkeypatch.chdir(tmp_path)
    assert [example.video for example in read_data("set/a.jsonl")] == [Path("set/1.mp4"), Path("/else/2.mp4")]


def test_a_line_chooses_tracks_and_sound(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"audio_track": 1, "video_track": None}, {"signals": {"audio": "a.wav"}}, {}]
    (tmp_path / "a.jsonl").write_text("".join(write_line("1.mkv", "?", "a", **line) for line in lines))
    chosen, replaced, plain = (example.source for example in read_data(tmp_path / "a.jsonl"))
    assert chosen.options(hears=True) == {"audio": True, "audio_track": 1}
    assert replaced.options(hears=True) == {"audio": False}
    assert replaced.beside(hears=True) == {"audio": str(tmp_path / "a.wav")} and replaced.beside(hears=False) == {}
    assert plain.options(hears=False) == {"audio": False} and len({chosen, replaced, plain}) == 3


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\ufeff" + write_line("1.mp4", "Grüße?", "ja"), "utf-8")
    assert read_data(file)[0].question == "Grüße?"


GOOD = {"video": "1.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}
HUMAN, GPT = GOOD["conversations"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{'video': 1}", "not JSON.*column 2"),
        (json.dumps(GOOD)[:-5], "not JSON"),
        ("[" * 100_000, "nested"),
        (b'{"video": "\xff"}', "not UTF-8 .byte 12"),
        ("[1]", "expected a JSON object, got list"),
        ("7", "expected a JSON object, got int"),
        (GOOD | {"video": None}, r"needs 'video'.*\['conversations', 'video'\]"),
        (GOOD | {"video": ""}, "needs 'video'"),
        ({"clip": "1.mp4"}, r"needs 'video'.*\['clip'\]"),
        (GOOD | {"image": "1.png"}, "has 'video' and 'image', but an entry is about one clip"),
        ({"video": "1.mp4"}, "needs 'conversations'.*has NoneType"),
        (GOOD | {"audio_track": -1}, "'audio_track' must be a whole number, counted from 0, got -1"),
        (GOOD | {"video_track": True}, "'video_track' must be a whole number.*got True"),
        (GOOD | {"signals": {"audio": ["a.wav"]}}, "signal 'audio' must be one path, or null"),
        (GOOD | {"signals": {"audio": None}, "audio_track": 0}, "the signal 'audio' replaces it; give one"),
        (GOOD | {"channel": "\ud800"}, "'channel' names a group of figures: at most 100 printable characters"),
        (GOOD | {"channel": "c" * 101}, "'channel' names a group"),
        (GOOD | {"conversations": []}, "has 0 turns"),
        (GOOD | {"conversations": [HUMAN, GPT, HUMAN]}, "has 3 turns"),
        (GOOD | {"conversations": [GPT, HUMAN]}, "'from': 'human'.*got"),
        (GOOD | {"conversations": [HUMAN, HUMAN]}, "'from': 'gpt'.*got"),
        (GOOD | {"conversations": ["?", "a"]}, "'from': 'human'.*got '[?]'"),
        (GOOD | {"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, "'from': 'gpt'.*got"),
        (GOOD | {"conversations": [HUMAN | {"value": "<video>\n"}, GPT]}, "must not be empty"),
        (GOOD | {"conversations": [HUMAN, GPT | {"value": " "}]}, "must not be empty"),
    ],
)
def test_the_error_of_a_broken_line_has_its_number_and_a_remedy(tmp_path: Path, line: object, cause: str) -> None:
    file = tmp_path / "a.jsonl"
    raw = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    file.write_bytes(write_line("1.mp4", "?", "a").encode() + b"\n" + raw + b"\n")
    with pytest.raises(DataError, match=f"(?s)a.jsonl, line 3: .*{cause}.*fix or delete"):
        read_data(file)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"empty.jsonl: contains no question; write"):
        read_data(tmp_path / "empty.jsonl")
    for missing, cause in ((tmp_path / "no.jsonl", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=f"{cause}; give a file of questions"):
            read_data(missing)


# Packed rows


class Asker:
    """A small base with a patch that has an effect, and two clips of different length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = PatchedModel(make_base(tokenizer))
        self.model.attach("ears", make_config(self.model.host))
        awaken(self.model, "ears")
        self.clips = self.model.encode([make_clip(0, 4), make_clip(1, 2)])

    def row(self, clip: ClipFeatures, asked: Sequence[tuple[str, str]]) -> Row:
        host = self.model.host
        (before, _), (seen,) = host.prompt(""), self.model.lay_out([clip], ["ears"]).visual
        turns = [(host.prompt(question)[1], [*host.encode_text(answer), host.end]) for question, answer in asked]
        return pack([*before, *seen], turns)

    @torch.no_grad()
    def logits(self, clips: Sequence[ClipFeatures], tokens: dict[str, Tensor]) -> list[Tensor]:
        """For each row, the logits that predict answer tokens, in the order of the row."""
        inputs = {name: value for name, value in tokens.items() if name != "labels"}
        logits = self.model.forward(self.model.lay_out(clips, ["ears"]).inputs(**inputs)).logits
        predicts = tokens["labels"].roll(-1, 1) != IGNORE
        return [row[mask] for row, mask in zip(logits, predicts, strict=True)]


@pytest.fixture(scope="module")
def asker(tokenizer: PreTrainedTokenizerFast) -> Asker:
    return Asker(tokenizer)


def alone(asker: Asker, clip: ClipFeatures, asked: tuple[str, str]) -> Tensor:
    """A question in a separate row, under the base's own causal mask."""
    row = asker.row(clip, [asked])
    inputs = {"input_ids": row.ids[None], "attention_mask": torch.ones(1, len(row.ids)), "labels": row.labels[None]}
    return asker.logits([clip], inputs)[0]


def test_packed_answers_have_the_logits_of_separate_rows(asker: Asker) -> None:
    """Ragged rows: clips of 4 and 2 key frames with 3 questions and 1, so that the second is padded on the left."""
    rows = [asker.row(asker.clips[0], QUESTIONS), asker.row(asker.clips[1], QUESTIONS[1:2])]
    tokens = collate(rows, asker.model.host.pad)
    assert len(rows[1].ids) < tokens["input_ids"].shape[1]
    packed = asker.logits(asker.clips, tokens)
    expected = [torch.cat([alone(asker, asker.clips[0], asked) for asked in QUESTIONS])]
    expected.append(alone(asker, asker.clips[1], QUESTIONS[1]))
    for found, want in zip(packed, expected, strict=True):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lost", ["attention_mask", "position_ids"])
def test_without_its_mask_or_positions_a_packed_answer_differs(asker: Asker, lost: str) -> None:
    tokens = collate([asker.row(asker.clips[0], QUESTIONS)], asker.model.host.pad)
    length = tokens["input_ids"].shape[1]
    plain = {"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool).tril()}
    plain["position_ids"] = torch.arange(length)[None]
    right, wrong = (asker.logits(asker.clips[:1], tokens | change)[0] for change in ({}, {lost: plain[lost]}))
    first = len(asker.model.host.encode_text(QUESTIONS[0][1])) + 1
    torch.testing.assert_close(right[:first], wrong[:first], atol=1e-5, rtol=1e-5)
    assert (right[first:] - wrong[first:]).abs().max() > 1e-2


def test_all_answers_and_nothing_else_have_labels(asker: Asker) -> None:
    host = asker.model.host
    row = asker.row(asker.clips[0], QUESTIONS)
    learned = row.labels[row.labels != IGNORE].tolist()
    assert learned == [token for _, answer in QUESTIONS for token in [*host.encode_text(answer), host.end]]
    assert torch.equal(row.labels[row.labels != IGNORE], row.ids[row.labels != IGNORE])


def test_padding_attends_only_to_itself_and_is_never_attended_to(asker: Asker) -> None:
    rows = [asker.row(asker.clips[0], QUESTIONS), asker.row(asker.clips[1], QUESTIONS[:1])]
    mask = collate(rows, 0)["attention_mask"][1, 0]
    padding = len(rows[0].ids) - len(rows[1].ids)
    assert torch.equal(mask[:padding], torch.eye(len(mask), dtype=torch.bool)[:padding])
    assert not mask[padding:, :padding].any()


def test_a_longer_batch_changes_no_row(asker: Asker) -> None:
    """No leaks: any other row leaves an answer unchanged; another clip changes it."""
    rows = [asker.row(clip, QUESTIONS) for clip in asker.clips]
    both = asker.logits(asker.clips, collate(rows, asker.model.host.pad))[1]
    one = asker.logits(asker.clips[1:], collate(rows[1:], asker.model.host.pad))[0]
    torch.testing.assert_close(both, one, atol=1e-5, rtol=1e-5)
    other = replace(asker.clips[1], tokens=asker.clips[0].tokens[:2], vision=asker.clips[0].vision[:2])
    assert (asker.logits([other], collate(rows[1:], asker.model.host.pad))[0] - one).abs().max() > 1e-2
