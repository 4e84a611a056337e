"""Claims about answers: they say how they ended, follow Hugging Face's options by name, and know earlier turns."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import make_base
from patched import QUESTIONS, clips, hears
from small import make_clip, make_config
from transformers import PreTrainedTokenizerFast

from pave.encoder import load_encoder
from pave.errors import SignalError, UsageError
from pave.model.answer import Answer
from pave.model.options import REFUSED, WHY, settings
from pave.model.patched import PatchedModel

ASKED = QUESTIONS[0]


@pytest.fixture(scope="module")
def deaf(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A model without patches."""
    return PatchedModel(make_base(tokenizer))


def ids_of(model: PatchedModel, **options: Any) -> list[int]:
    """What generate() itself gives, without the prompt."""
    inputs = model.prepare(clips()[:1], [ASKED])
    return model.generate(inputs, **options)[0, inputs.input_ids.shape[1] :].tolist()


def test_an_answer_says_whether_it_was_cut(deaf: PatchedModel) -> None:
    cut = deaf.ask(clips()[0], ASKED, max_new_tokens=3)
    assert (cut.finish_reason, cut.tokens, cut.cached_tokens) == ("length", 3, 0)
    assert cut.prompt_tokens == deaf.prepare(clips()[:1], [ASKED]).input_ids.shape[1]
    ids = ids_of(deaf, max_new_tokens=3, do_sample=False)
    deaf.host.tokenizer.eos_token = deaf.host.tokenizer.convert_ids_to_tokens(ids[2])
    try:
        ended, other = deaf.ask_batch([(clips()[0], ASKED), (clips()[1], QUESTIONS[1])], max_new_tokens=5)
    finally:
        deaf.host.tokenizer.eos_token = "<|im_end|>"
    assert (ended.finish_reason, ended.tokens) == ("stop", 2)
    assert other.tokens > 2, "rows of a batch end apart"


def test_padding_that_the_base_has_chosen_is_part_of_a_cut_answer(deaf: PatchedModel) -> None:
    pads = deaf.ask(clips()[0], ASKED, max_new_tokens=4, sequence_bias=[[[deaf.host.pad], 1e4]])
    assert (pads, pads.finish_reason, pads.tokens) == ("", "length", 4)


def test_stop_strings_end_an_answer(deaf: PatchedModel) -> None:
    pieces = [str(deaf.host.tokenizer.decode(id)) for id in ids_of(deaf, max_new_tokens=12, do_sample=False)]
    place, word = next((i, each) for i, each in enumerate(pieces) if each.strip().isalpha() and each.isascii())
    short = deaf.ask(clips()[0], ASKED, max_new_tokens=12, stop_strings=[word])
    assert (short.finish_reason, short.tokens) == ("stop", place + 1) and place < 11 and word.strip() in short


def test_options_are_those_of_generate(deaf: PatchedModel) -> None:
    tried: list[dict[str, Any]] = [{"temperature": 2}, {"top_k": 5, "do_sample": True}, {"repetition_penalty": 3.0}]
    for options in [*tried, {"num_beams": 2}]:
        torch.manual_seed(3)
        answer = deaf.ask(clips()[0], ASKED, max_new_tokens=6, **options)
        torch.manual_seed(3)
        greedy = {"do_sample": "temperature" in options, **options}
        greedy = {name: float(value) if name == "temperature" else value for name, value in greedy.items()}
        expected = deaf.host.tokenizer.decode(ids_of(deaf, max_new_tokens=6, **greedy), skip_special_tokens=True)
        assert answer == str(expected).strip()
    greedy = deaf.ask(clips()[0], ASKED, max_new_tokens=6)
    assert deaf.ask(clips()[0], ASKED, max_new_tokens=6, temperature=0, top_p=0.5) == greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.7}, "no applied patch reads the signal 'temprature'; did you mean 'temperature'"),
        ({"temperature": "hot"}, "temperature='hot' must be 0 .greedy. or a number"),
        ({"temperature": -1}, "temperature=-1 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_p": 1.5}, "top_p=1.5 must be a share above 0, at most 1"),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
        ({"num_beams": True}, "num_beams=True must be a whole number"),
        ({"do_sample": "no"}, "do_sample='no' must be True or False"),
        ({"stop_strings": [""]}, r"stop_strings=\[''\] must be a text"),
        ({"max_time": 0}, "max_time=0 must be seconds, above 0"),
        ({"temperature": 0.5, "do_sample": False}, "temperature=0.5 has no effect with do_sample=False"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 is no option of an answer: an answer is one text"),
        ({"max_length": 9}, "it counts the prompt, too; use max_new_tokens"),
        ({"use_cache": False}, "the library keeps keys and values itself"),
        ({"bad_words_ids": "x"}, "generate: .*check bad_words_ids"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(
    deaf: PatchedModel, options: dict[str, Any], message: str
) -> None:
    for ask in (deaf.ask, lambda *row, **how: list(deaf.stream(*row, **how))):
        with pytest.raises((UsageError, SignalError), match=message):
            ask(clips()[0], ASKED, **options)


def test_options_of_a_batch_are_those_of_all_rows(deaf: PatchedModel) -> None:
    with pytest.raises(UsageError, match=r"temperature is an option of all rows: ask_batch\(rows, temperature=...\)"):
        deaf.ask_batch([{"clip": clips()[0], "question": ASKED, "temperature": 0.7}])
    with pytest.raises(UsageError, match="no option 'top_q'; did you mean 'top_p'"):
        deaf.ask_batch([], top_q=0.7)


def test_every_refused_option_has_one_reason_and_most_exist_in_any_version() -> None:
    assert len(WHY) == sum(len(names.split()) for names in REFUSED.values())
    assert len(settings() & WHY.keys()) >= len(WHY) - 5, "some came after transformers 5.18"


def test_a_signal_may_be_named_like_an_option(one: PatchedModel) -> None:
    options = {"signal": "temperature", "dim": 1, "rate": 1.0}
    one.attach("warmth", make_config(one.host, senses={"warm": load_encoder("array", **options).spec.facts("time")}))
    answer = one.ask(clips()[0], ASKED, temperature=torch.rand(4, 1), top_k=3, max_new_tokens=1)
    assert answer.signals["warm"].startswith("present: 4 steps")


HISTORY = [("Is it red?", "yes"), ("And loud?", "")]


def test_a_history_is_that_of_prepare(one: PatchedModel) -> None:
    hears(one)
    inputs = one.prepare(clips()[:1], [ASKED], histories=[HISTORY])
    ids = one.generate(inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
    answer = one.ask(clips()[0], ASKED, history=HISTORY, max_new_tokens=6)
    assert answer == str(one.host.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    assert (
        answer.prompt_tokens == inputs.input_ids.shape[1] > one.ask(clips()[0], ASKED, max_new_tokens=1).prompt_tokens
    )
    rows = [{"clip": clips()[0], "question": ASKED, "history": HISTORY}, (clips()[0], ASKED)]
    assert next(each.prompt_tokens for each in one.ask_batch(rows, max_new_tokens=1)) == answer.prompt_tokens
    stream = one.stream(clips()[0], ASKED, history=HISTORY, max_new_tokens=6)
    assert "".join(stream).strip() == answer == stream.answer
    assert stream.answer.finish_reason == answer.finish_reason


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("yes", "the history is a str; pass a list of .question, answer."),
        ([("What?",)], r"a turn of the history is \(question, answer\), got \('What\?',\)"),
        (["yes"], "a turn of the history is"),
        ([("", "yes")], "the question is empty"),
        ([("What?", None)], "the answer of a turn is a NoneType; pass text"),
        ([("What?", "yes " * 10_000)] * 99, "the history has 3,960,495 characters, this base takes .* tokens of all"),
    ],
)
def test_a_history_that_is_none_is_refused(deaf: PatchedModel, history: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deaf.ask("gone.mp4", ASKED, history=history)


def test_features_can_be_asked(one: PatchedModel) -> None:
    hears(one)
    features = one.encode_clip(clips()[0])
    answer = one.ask(features, ASKED, max_new_tokens=4)
    assert answer == one.ask(clips()[0], ASKED, max_new_tokens=4) and answer.signals["audio"].startswith("present")
    assert one.ask_batch([(features, ASKED), (clips()[1], ASKED)], max_new_tokens=4)[0] == answer
    with pytest.raises(UsageError, match="audio: features are encoded already"):
        one.ask(features, ASKED, audio=None)
    with pytest.raises(SignalError, match="these features have no tokens of logmel; encode the clips with this patch"):
        one.ask(one.encode_clip(clips()[0], []), ASKED)


def test_features_of_another_base_are_refused(deaf: PatchedModel, playroom: PatchedModel) -> None:
    features = playroom.encode_clip(make_clip(), [])
    with pytest.raises(
        UsageError, match="these features have 16 tokens of 128 channels per key frame, this base has 4"
    ):
        deaf.ask(features, ASKED)


def test_a_stream_ends_once_and_has_its_answer(deaf: PatchedModel) -> None:
    stream = deaf.stream(clips()[0], ASKED, max_new_tokens=3)
    with pytest.raises(UsageError, match="has not come to its end"):
        _ = stream.answer
    assert list(stream) and list(stream) == [] and isinstance(stream.answer, Answer)
    assert stream.answer.finish_reason == "length"


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("end", [lambda stream: stream.close(), lambda stream: None], ids=["closed", "dropped"])
def test_a_stream_that_is_not_read_to_its_end_leaves_no_thread(
    deaf: PatchedModel, begun: bool, end: Callable[[Any], None]
) -> None:
    running = threading.active_count()
    stream = deaf.stream(clips()[0], ASKED, max_new_tokens=900)
    if begun:
        next(stream)
    worker = stream._thread
    end(stream)
    del stream
    gc.collect()
    if begun:
        worker.join(60)
    assert threading.active_count() == running


def test_a_stream_has_one_beam(deaf: PatchedModel) -> None:
    with pytest.raises(UsageError, match="a stream has one beam: leave num_beams out"):
        deaf.stream(clips()[0], ASKED, num_beams=2)
