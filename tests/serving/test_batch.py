"""Rows join and leave a batch between two tokens, and answer as if they were alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from families import FAMILIES
from patched import two_patches
from small import make_clip
from transformers import PreTrainedTokenizerFast

from pave.model.patched import PatchedModel
from pave.model.rows import prepared
from pave.serving.batch import Batch, joined
from pave.serving.messages import Sampling
from pave.serving.rows import Row

ASKED = (  # question, patches, tokens
    ("What do you hear?", ["ears"], 12),
    ("And now, at the end of the clip?", [], 3),
    ("Who is there?", ["more"], 9),
    ("What is it that the two of them do there, do you think, and why?", ["ears", "more"], 14),
)


def after(calls: int) -> Callable[[], bool]:
    """A pause after so many tokens."""
    left = iter(range(calls - 1))
    return lambda: next(left, None) is None


def begun(model: PatchedModel, numbers: list[int], sampling: dict[str, Any], pause: Callable[[], bool]) -> Batch:
    clips = [model.encode([make_clip(i)])[0] for i in numbers]
    asked = [ASKED[i] for i in numbers]
    pairs = zip(clips, asked, strict=True)
    rows: list[dict[str, Any]] = [{"clip": clip, "question": one[0], "patches": one[1]} for clip, one in pairs]
    ready = prepared(model.calls, rows, "auto", {})
    decode: Any = partial(model.host.tokenizer.decode, skip_special_tokens=True)
    live = [Row(Sampling(one[2], **sampling), threading.Event(), decode, lambda piece: None) for one in asked]
    batch = Batch(model.calls, live, clips, ready.inputs)
    batch.run(pause)
    return batch


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return two_patches(tokenizer, request.param)


def test_rows_that_join_and_leave_answer_as_if_alone(model):
    first = begun(model, [0, 1], {}, after(5))  # the second row has left by then
    second = begun(model, [2, 3], {}, after(1))
    assert first.joinable == (model.host.model_type != "gemma4")  # its cache drops tokens
    if not first.joinable:
        return
    whole = joined([first, second])
    assert 1 < len(whole.rows) < 4
    whole.run(after(20))
    assert whole.over
    rows = [*first.rows, *second.rows]
    for i, (row, (question, patches, most)) in enumerate(zip(rows, ASKED, strict=True)):
        alone = model.ask(make_clip(i), question, patches=patches, max_new_tokens=most)
        assert (row.text, row.finish, len(row.ids)) == (alone, alone.finish_reason, alone.tokens)


@pytest.mark.parametrize("model", ["llava_onevision"], indirect=True)
def test_what_is_drawn_depends_on_the_seed_alone(model):
    sampling = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    alone = [begun(model, [i], sampling, after(20)).rows[0].text for i in (2, 3)]
    other = begun(model, [0, 1], {}, after(4))
    batch = joined([other, begun(model, [2, 3], sampling, after(1))])
    batch.run(after(20))
    assert [row.text for row in batch.rows[-2:]] == alone
    assert alone[0] != begun(model, [2], {**sampling, "seed": 8}, after(20)).rows[0].text


@pytest.mark.parametrize("model", ["llava_onevision"], indirect=True)
def test_a_row_that_nobody_waits_for_ends_and_the_others_go_on(model):
    batch = begun(model, [0, 2], {}, after(3))
    batch.rows[0].cancelled.set()
    batch.run(after(20))
    left, other = batch.rows
    assert len(left.ids) == 3 and left.finish is None
    assert other.text == model.ask(make_clip(2), "Who is there?", patches=["more"], max_new_tokens=9)
