"""A further question about a clip computes its own tokens only, and is answered as if nothing had been kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from families import FAMILIES
from patched import config_for, two_patches
from small import awaken, make_clip
from transformers import PreTrainedTokenizerFast

from pave.model.answer import Answer
from pave.model.patched import PatchedModel
from pave.model.rows import prepared
from pave.serving.batch import Batch
from pave.serving.messages import Sampling
from pave.serving.prefixes import Prefixes
from pave.serving.rows import Row

Asked = tuple[int, str, list[str], list[tuple[str, str]]]  # number of the clip, question, patches, turns before
MOST = 6
FIRST: list[Asked] = [
    (0, "What do you hear?", ["ears"], []),
    (1, "And now, at the end of the clip?", [], []),
    (2, "Who is there?", ["ears", "more"], []),
]
SECOND: list[Asked] = [
    (0, "Why?", ["ears"], [("What do you hear?", "A bell and a drum, one after the other, do you not?")]),
    (3, "Who is it?", ["ears"], []),
    (1, "And then?", [], []),
    (2, "What is it that the two of them do there, do you think?", ["ears", "more"], []),
]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return two_patches(tokenizer, request.param)


only = partial(pytest.mark.parametrize, "model", indirect=True)


def answers(model: PatchedModel, prefixes: Prefixes, asked: Sequence[Asked]) -> tuple[list[str], list[Row], list[int]]:
    """Texts, rows, and how many tokens the language model computed in its first pass of each batch."""
    clips = [model.encode([make_clip(number)])[0] for number, *_ in asked]
    rows: list[dict[str, Any]] = [
        {"clip": clip, "question": question, "patches": patches, "history": history}
        for clip, (_, question, patches, history) in zip(clips, asked, strict=True)
    ]
    ready = prepared(model.calls, rows, "auto", {})
    decode: Any = partial(model.host.tokenizer.decode, skip_special_tokens=True)
    live = [Row(Sampling(MOST), threading.Event(), decode, lambda piece: None) for _ in asked]
    lengths: list[int] = []

    def noted(module: Any, args: Any, options: Any) -> None:
        if (length := options["inputs_embeds"].shape[1]) > 1:  # no pause comes right after a mark of media
            lengths.append(length)

    hook = model.host.language_model.register_forward_pre_hook(noted, with_kwargs=True)
    batches: list[Batch] = prefixes.begun(model.calls, live, [number for number, *_ in asked], ready, lambda: True)
    hook.remove()
    for batch in batches:
        batch.run(lambda: False)
    return [row.text for row in live], live, lengths


def alone(model: PatchedModel, asked: Sequence[Asked]) -> list[Answer]:
    return [
        model.ask(make_clip(number), question, patches=patches, history=history, max_new_tokens=MOST)
        for number, question, patches, history in asked
    ]


def test_further_questions_are_answered_as_if_nothing_had_been_kept(model: PatchedModel) -> None:
    prefixes = Prefixes(1 << 30)
    texts, rows, lengths = answers(model, prefixes, FIRST)
    assert texts == alone(model, FIRST) and not any(row.cached for row in rows) and len(lengths) == 1
    texts, rows, lengths = answers(model, prefixes, SECOND)
    fresh = alone(model, SECOND)
    assert texts == fresh
    if model.host.model_type == "gemma4":  # its cache drops tokens
        assert not len(prefixes.kept)
        return
    cached = [row.cached for row in rows]
    assert not cached[1] and min(cached[0], cached[2], cached[3]) > 8, cached
    whole, *more = lengths
    assert whole == fresh[1].prompt_tokens  # the only row about a clip that was not known
    assert {*more} == {each.prompt_tokens - count for each, count in zip(fresh, cached, strict=True) if count}


@only(["llava_onevision"])
def test_the_prompt_that_was_answered_last_is_the_one_that_is_kept(model: PatchedModel) -> None:
    prefixes = Prefixes(1 << 30)
    turns: list[tuple[str, str]] = []
    before = 0
    for question in ("What do you hear?", "Why is that so, and since when?", "And then?"):
        asked: list[Asked] = [(0, question, ["ears"], list(turns))]
        [text], [row], [length] = answers(model, prefixes, asked)
        fresh = alone(model, asked)[0]
        assert (text, row.cached, length) == (fresh, before, fresh.prompt_tokens - before)
        before = fresh.prompt_tokens
        turns.append((question, text))
    assert len(prefixes.kept) == 1


@only(["llava_onevision"])
@pytest.mark.parametrize("change", ["weights", "patches", "clip", "limit", "removed"])
def test_nothing_is_taken_from_another_clip_or_other_patches(model: PatchedModel, change: str) -> None:
    prefixes = Prefixes(0 if change == "limit" else 1 << 30)
    answers(model, prefixes, FIRST[:1])
    asked = [SECOND[0]]
    if change == "weights":
        with torch.no_grad():
            for weight in model.calls.applied.modules[0].parameters():
                weight.mul_(1.5)
    elif change == "removed":
        model.remove_patch("ears")
        model.attach("ears", config_for(model.host, name="ears"), trainable=False)
        awaken(model, "ears", seed=5)
    elif change == "patches":
        asked = [(0, "Why?", ["more"], asked[0][3])]
    elif change == "clip":
        asked = [(4, "Why?", ["ears"], asked[0][3])]
    texts, [row], _ = answers(model, prefixes, asked)
    assert texts == alone(model, asked) and not row.cached


@only(["llava_onevision"])
def test_rows_that_share_little_do_not_make_others_compute_their_clips(model: PatchedModel) -> None:
    prefixes = Prefixes(1 << 30)
    answers(model, prefixes, FIRST)
    long = [("What do you hear?", "It is " + "a bell, " * 60)]
    asked: list[Asked] = [(0, "Why?", ["ears"], long), (1, "Who?", [], []), (2, "Where?", ["ears", "more"], [])]
    texts, rows, lengths = answers(model, prefixes, asked)
    assert texts == alone(model, asked) and all(row.cached for row in rows)
    assert len(lengths) == 2 and min(lengths) < 30 < 60 < max(lengths)
