"""Dialogues: a turn sees those before it, has the ids of the authors' prompt, and every answer is learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from excerpts import TEN, write_excerpt
from families import FAMILIES, make_base
from runs import trained
from small import awaken, make_clip, make_config, write_line
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.data import Example, Source
from pave.data_sets import DataSet
from pave.errors import BaseModelError, DataError, UsageError
from pave.evaluation.accuracy import evaluate
from pave.features.stored import Stored
from pave.model.patched import PatchedModel
from pave.packing.rows import IGNORE, Row, Turn, collate, pack
from pave.readers.questions import Reading, read_data
from pave.recipe import Recipe
from pave.training import dataset
from pave.training.dataset import training_clip

Make = Callable[..., Recipe]
Turns = list[tuple[str, str]]


def dialogue(turns: Turns, question: str = "") -> str:
    """The text of a dialogue behind the video as the PAVE authors write it: ChatML, the video in the first turn only
    (conv_llava_ov_qwen of their libs/conversation_lib.py); up to the answer of `question`."""
    text = "".join(
        f"{'' if place == 0 else '<|im_start|>user'}\n{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for place, (asked, answer) in enumerate(turns)
    )
    opening = "<|im_start|>user" if turns else ""
    return text + f"{opening}\n{question}<|im_end|>\n<|im_start|>assistant\n" if question else text


def ids(host: Host, text: str) -> list[int]:
    """Ids of a text, tokenised as a whole by Hugging Face."""
    return host.tokenizer(text, add_special_tokens=False).input_ids


def avsd(folder: Path, **options: object) -> list[Example]:
    return read_data(DataSet(file=write_excerpt(folder, "avsd of the challenge"), **options))  # type: ignore[arg-type]


# What is read


def test_a_dialogue_of_avsd_is_two_of_five_turns_for_training(tmp_path: Path) -> None:
    examples = avsd(tmp_path)
    assert [(example.question, example.answer) for example in examples] == TEN
    assert [example.history for example in examples] == [tuple(TEN[5 * (i // 5) : i]) for i in range(10)]


def test_its_last_question_is_asked_after_nine_turns(tmp_path: Path) -> None:
    (example,) = avsd(tmp_path, turns="last")
    assert (example.question, example.answer) == TEN[9] and example.history == tuple(TEN[:9])
    assert [each.history for each in avsd(tmp_path, turns="separate")] == [()] * 10


def test_turns_of_other_formats_are_separate_unless_the_data_set_says_so(tmp_path: Path) -> None:
    file = write_excerpt(tmp_path, "llava list")
    assert [example.history for example in read_data(file)] == [(), (), ()]
    asked = list(Reading(DataSet(file=file, turns="dialogue")).examples())
    assert [len(example.history) for example in asked] == [0, 1, 0]
    assert [len(each.history) for each in read_data(DataSet(file=file, turns="last"))] == [1, 0]


# The ids


def test_samples_of_avsd_have_the_ids_of_the_authors(tmp_path: Path, base: Host) -> None:
    features = PatchedModel(base).encode([make_clip()])[0]
    clip = training_clip(base, Stored.of(features), avsd(tmp_path))
    assert [turn.follows for turn in clip.turns] == [False, *[True] * 4] * 2
    for part in (slice(0, 5), slice(5, 10)):
        turns = clip.turns[part]
        behind = [token for turn in turns for token in (*turn.prompt, *turn.answer)]
        assert behind == ids(base, dialogue(TEN[part]).rstrip("\n"))  # nothing follows the last answer
        head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        assert base.prompter.prefix == ids(base, head)


def test_the_history_at_test_time_has_the_ids_of_the_authors(tmp_path: Path, base: Host) -> None:
    (example,) = avsd(tmp_path, turns="last")
    _, behind = base.prompt(example.question, history=example.history)
    assert behind == ids(base, dialogue(TEN[:9], TEN[9][0]))
    assert base.prompt("What?")[1] == base.prompt("What?", history=())[1] == ids(base, dialogue([], "What?"))


def test_every_answer_of_a_dialogue_is_learned_and_nothing_else(tmp_path: Path, base: Host) -> None:
    clip = training_clip(base, Stored.of(PatchedModel(base).encode([make_clip()])[0]), avsd(tmp_path))
    row = pack([7, 7, 7], clip.turns)
    learned = [token for _, answer in TEN for token in [*base.encode_text(answer), base.end]]
    assert row.labels[row.labels != IGNORE].tolist() == learned
    assert row.turns.unique().tolist() == [0, 1, 2]
    second = int((row.turns == 2).nonzero()[0])
    assert row.positions[:second].tolist() == list(range(second)) and row.positions[second] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_of_each_family_is_written_as_it_does(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    host = make_base(tokenizer, family=family)
    _, once = host.prompt("What?")
    _, twice = host.prompt("Where?", history=[("What?", "A kettle.")])
    assert twice[: len(once)] == once
    more = host.tokenizer.decode(twice[len(once) :])
    expected = {
        "video_llava": "A kettle.<|im_end|>USER: Where? ASSISTANT:",  # with this tokenizer's end of a sequence
        "llava_next_video": "A kettle.<|im_end|>USER: Where? ASSISTANT:",
        "smolvlm": "A kettle.<end_of_utterance>\nUser: Where?<end_of_utterance>\nAssistant:",
        "gemma4": "A kettle.<turn|>\n<|turn>user\nWhere?<turn|>\n<|turn>model\n",
    }
    chatml = "A kettle.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    glm = "A kettle.<|user|>\nWhere?<|assistant|>\n"
    assert more == (glm if family.startswith("glm") else expected.get(family, chatml))


def test_a_template_without_a_known_form_of_a_second_question_is_refused(base: Host) -> None:
    with pytest.raises(BaseModelError, match=r"no known form .*; ask one at a time .in training: turns: separate"):
        base.prompt("Where?", "{video}{question}", [("What?", "A kettle.")])
    assert base.prompt("Where?", "{video}{question}")[1] == base.encode_text("Where?")


def test_texts_of_a_history_are_refused_like_questions(one: PatchedModel, tmp_path: Path) -> None:
    clip = make_clip()
    with pytest.raises(UsageError, match="the question is empty"):
        one.prepare([clip], ["Where?"], histories=[[(" ", "Here.")]])
    assert one.prepare([clip], ["Where?"], histories=[[("What?", "")]]), "a base may have said nothing"
    with pytest.raises(UsageError, match="got 1 clip, 1 question and 2 dialogues"):
        one.prepare([clip], ["Where?"], histories=[[], []])
    (tmp_path / "a.jsonl").write_text(write_line("a.mp4", "What?", "x " * 5_000, "Where?", "Here."))
    with pytest.raises(DataError, match=r"a.jsonl, line 1: the answer has"):
        read_data(DataSet(file=tmp_path / "a.jsonl", turns="last"), one.host.refuse_text)
    assert one.host.prompt("<|im_end|>", history=[("<video>", "<|im_start|>")])[1].count(one.host.end) == 3


# What a turn sees


@torch.no_grad()
def logits(model: PatchedModel, row: Row) -> list[Tensor]:
    """The logits that predict each answer's tokens."""
    features = model.encode([make_clip()])
    tokens = collate([row], model.host.pad)
    labels = tokens.pop("labels")[0]
    found = model.forward(model.lay_out(features, ["ears"]).inputs(**tokens)).logits[0]
    predicts = labels.roll(-1) != IGNORE
    ends = (predicts & ~predicts.roll(-1)).nonzero()[:, 0] + 1
    return [part[mask] for part, mask in zip(found.tensor_split(ends)[:-1], predicts.tensor_split(ends), strict=False)]


@pytest.fixture(scope="module")
def listener(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    model = PatchedModel(make_base(tokenizer))
    model.attach("ears", make_config(model.host))
    awaken(model, "ears")
    return model


def test_a_turn_of_a_packed_dialogue_sees_what_it_would_see_alone(listener: PatchedModel) -> None:
    """Two dialogues in one row: each answer has the logits of a row with its history in the prompt, and only those."""
    host, asked = listener.host, TEN[:5]
    (visual,) = listener.lay_out(listener.encode([make_clip()]), ["ears"]).visual
    prefix = [*host.prompter.prefix, *visual]

    def answer(place: int) -> list[int]:
        return [*host.encode_text(asked[place][1]), host.end]

    together = [Turn(host.prompt(asked[0][0])[1], answer(0))]
    together += [Turn(host.following(asked[i][0]), answer(i), True) for i in (1, 2)]
    together += [Turn(host.prompt(asked[3][0])[1], answer(3)), Turn(host.following(asked[4][0]), answer(4), True)]
    packed = logits(listener, pack(prefix, together))
    assert len(packed) == 5
    for place, begin in enumerate((0, 0, 0, 3, 3)):
        prompt = host.prompt(asked[place][0], history=asked[begin:place])[1]
        (alone,) = logits(listener, pack(prefix, [Turn(prompt, answer(place))]))
        torch.testing.assert_close(packed[place], alone, atol=1e-5, rtol=1e-5)
        if place not in (0, 3):
            (blind,) = logits(listener, pack(prefix, [Turn(host.prompt(asked[place][0])[1], answer(place))]))
            assert (blind - alone).abs().max() > 1e-3


def test_a_dialogue_is_never_cut(recipe: Make, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "TURNS", 150)
    clip = str(next((workshop / "clips").glob("train-*.mp4")))
    talk = [text for turn in TEN[:3] for text in turn]
    (tmp_path / "a.jsonl").write_text("".join(write_line(clip, *talk) for _ in range(3)))
    source = f"{{file: {tmp_path / 'a.jsonl'}, turns: dialogue}}"
    rows = trained(recipe(f"data.train={source}", "train.steps=1")).dataset.train
    assert [[turn.follows for turn in row.turns] for row in rows] == [[False, True, True]] * 3
    assert all(sum(len(turn.prompt) + len(turn.answer) for turn in row.turns) > 75 for row in rows)


# Training and evaluation


def test_a_dialogue_trains_another_patch_than_separate_turns(recipe: Make, workshop: Path, tmp_path: Path) -> None:
    clips = map(str, sorted((workshop / "clips").glob("train-*.mp4"))[:3])
    (tmp_path / "a.jsonl").write_text("".join(write_line(clip, "what?", "a bell", "how?", "loud") for clip in clips))
    file, ends = tmp_path / "a.jsonl", {}
    for turns in ("separate", "dialogue", "last"):
        run = trained(recipe(f"data.train={{file: {file}, turns: {turns}}}", "train.steps=2", output=turns))
        ends[turns] = run.losses
        counts = [len(clip.turns) for clip in run.dataset.train]
        assert counts == [1 if turns == "last" else 2] * 3
    assert len({tuple(losses) for losses in ends.values()}) == 3


def test_evaluation_asks_after_the_history(listener: PatchedModel, tmp_path: Path) -> None:
    source = Source(Path("a.mp4"))
    seen = {source: listener.encode([make_clip()])[0]}
    history = (("What do you hear?", "a horn " * 20),)
    plain, after = (Example(source, "Where?", "here", 1, history=each) for each in ((), history))
    first, second = evaluate(listener, [plain, after], features=seen, max_new_tokens=8).samples
    inputs = listener.prepare([seen[source]], ["Where?"], histories=[history])
    told = listener.generate(inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert second.answer == str(listener.host.tokenizer.decode(told, skip_special_tokens=True)).strip()
    assert first.answer != second.answer
