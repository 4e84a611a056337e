"""Claims about chats: the answers of a fresh `ask` with the same history, for the cost of the new tokens alone."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import counting_frames, write_clip
from families import FAMILIES, make_base
from patched import clips, config_for, hears, hooked
from small import awaken, make_clip
from transformers import DynamicCache, PreTrainedTokenizerFast

from pave.errors import MediaError, UsageError
from pave.media.clip import Clip
from pave.model.chat import Chat
from pave.model.kept import Kept, bytes_of
from pave.model.patched import PatchedModel

TURNS = ("What do you hear?", "Is it loud?", "And now, at the end?")
MOST: dict[str, Any] = {"max_new_tokens": 4}


@contextmanager
def counted(model: PatchedModel) -> Iterator[list[int]]:
    """The number of tokens of each call of the language model within the block."""
    lengths: list[int] = []
    hook = model.host.language_model.register_forward_hook(
        lambda module, args, kwargs, out: lengths.append(out[0].shape[1]), with_kwargs=True
    )
    try:
        yield lengths
    finally:
        hook.remove()


def fresh(model: PatchedModel, clip: Any, chat: Chat, question: str, **how: Any) -> str:
    """What `ask` answers after the same turns."""
    return model.ask(clip, question, history=chat.history, **MOST, **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_a_fresh_question_with_the_same_history(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = PatchedModel(make_base(tokenizer, family=family))
    model.attach("ears", config_for(model.host))
    awaken(model, "ears", scale=1.0)
    clip = make_clip()
    chat = model.chat(clip)
    for i, question in enumerate(TURNS):
        expected = fresh(model, clip, chat, question)
        with counted(model) as lengths:
            answer = chat.ask(question, **MOST)
        assert answer == expected and chat.history[-1] == (question, expected)
        # One more is fed per generated token; an answer that reads differently as text is computed again.
        assert lengths[0] == answer.prompt_tokens - answer.cached_tokens
        assert (answer.cached_tokens > answer.prompt_tokens / 3) == bool(i) and not chat.recomputed
    chat.history.clear()
    assert chat.ask(TURNS[1], **MOST) == fresh(model, clip, model.chat(clip), TURNS[1])


@pytest.fixture
def film(tmp_path: Path) -> Path:
    wave = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0)).numpy()
    write_clip(tmp_path / "film.mp4", counting_frames(20), fps=10, audio=wave, rate=16_000)
    return tmp_path / "film.mp4"


def test_a_further_question_reads_sees_and_encodes_nothing(
    one: PatchedModel, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears(one)
    chat = one.chat(film)
    film.unlink()
    towers: Any = one.base
    monkeypatch.setattr(one.encoders()[0], "encode", lambda clip: pytest.fail("the sound is encoded again"))
    seen: list[int] = []
    with hooked(towers.model.vision_tower, lambda *_: seen.append(1)):
        answers = [chat.ask(question, **MOST) for question in TURNS[:2]]
    assert not seen and answers[1].signals["audio"].startswith("present")
    assert set(answers[1].timings) == {"read", "encode", "prepare", "generate"}
    with pytest.raises(MediaError, match=r"no-film\.mp4"):
        one.chat(film.with_name("no-film.mp4"))


def test_other_patches_keep_the_clip_and_say_what_is_computed_again(one: PatchedModel, film: Path) -> None:
    hears(one)
    chat = one.chat(film, patches=[])
    chat.ask(TURNS[0], **MOST)
    for patches, again in (
        (["ears"], ["the file was read, for another sense", "audio was encoded", "other patches act on it"]),
        (["ears"], []),
        ([], ["other patches act on it"]),
    ):
        expected = fresh(one, film, chat, TURNS[1], patches=patches)
        answer = chat.ask(TURNS[1], patches=patches, **MOST)
        assert answer == expected and answer.patches == tuple(patches)
        assert all(text in chat.recomputed for text in again) and bool(again) == bool(chat.recomputed)
        assert chat.recomputed.count(";") == max(0, len(again) - 1)


@pytest.mark.parametrize("change", ["weight", "off", "disable", "trained", "swapped"])
def test_a_patch_that_changes_is_that_of_a_fresh_question(one: PatchedModel, change: str) -> None:
    hears(one)
    clip = make_clip()
    chat = one.chat(clip)
    before = chat.ask(TURNS[0], **MOST)
    match change:
        case "weight":
            one.set_weight("ears", 0.5)
        case "disable":
            one.disable("ears")
        case "trained":
            step_of(one)
        case "swapped":
            patch = one.export("ears")
            one.swap_patch("ears", patch)
    if change == "off":
        with one.patches_off():
            expected, answer = fresh(one, clip, chat, TURNS[1]), chat.ask(TURNS[1], **MOST)
    else:
        expected, answer = fresh(one, clip, chat, TURNS[1]), chat.ask(TURNS[1], **MOST)
    assert answer == expected and answer.cached_tokens == 0 and "keys and values of all" in chat.recomputed
    assert before.patches == ("ears",)


def step_of(model: PatchedModel) -> None:
    """A step of an optimiser, in place."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.attached()[0].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def test_chats_about_one_file_share_its_features(one: PatchedModel, film: Path, monkeypatch: Any) -> None:
    hears(one)
    first = one.chat(film)
    first.ask(TURNS[0], **MOST)
    monkeypatch.setattr(Clip, "read", lambda *_, **__: pytest.fail("the file is read again"))
    second = one.chat(str(film))
    first.history.clear()
    assert second.ask(TURNS[1], **MOST) == first.ask(TURNS[1], **MOST)
    assert len(one.kept) == 3, "one clip, and keys and values of two chats"


def test_a_file_with_new_content_is_another_clip(one: PatchedModel, film: Path) -> None:
    one.chat(film)
    write_clip(film, counting_frames(30), fps=10)
    chat = one.chat(film)
    assert len(one.kept) == 2 and chat.ask(TURNS[0], **MOST) == one.ask(film, TURNS[0], **MOST)


def test_what_is_kept_stays_below_its_limit(one: PatchedModel) -> None:
    hears(one)
    first, second = one.chat(make_clip(0)), one.chat(make_clip(1))
    first.ask(TURNS[0], **MOST)
    assert one.kept.bytes == first.bytes + second.bytes and f"{first.bytes:,} bytes kept" in str(first)
    one.kept.limit = 3 * first.bytes // 2
    second.ask(TURNS[0], **MOST)
    assert one.kept.bytes <= one.kept.limit and second.bytes > first.bytes
    expected = fresh(one, make_clip(0), first, TURNS[1])
    assert first.ask(TURNS[1], **MOST) == expected
    assert "was not kept" in first.recomputed or "were not kept" in first.recomputed
    one.kept.limit = 0
    assert one.kept.bytes == 0 and fresh(one, make_clip(1), second, TURNS[1]) == second.ask(TURNS[1], **MOST)
    assert "the clip was read and encoded, since it was not kept" in second.recomputed
    for limit in (-1, 1.5, True):
        with pytest.raises(UsageError, match="is no number of bytes"):
            one.kept.limit = limit  # type: ignore[assignment]


def test_the_least_recently_used_is_dropped_first() -> None:
    kept = Kept(limit=3 * 4)
    for name in "abc":
        kept.put(name, torch.zeros(1))
    assert kept.get("a") is not None
    kept.put("d", [torch.zeros(1)])
    assert [kept.get(name) is not None for name in "abcd"] == [True, False, True, True]
    kept.put("e", torch.zeros(4))
    assert kept.get("e") is None and len(kept) == 3 and str(kept) == "3 items of chats, 12 of at most 12 bytes"


def test_bytes_of_keys_and_values_are_counted() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), 0)
    assert bytes_of(cache) == 2 * 2 * 5 * 8 * 4


@pytest.mark.parametrize("end", ["dropped", "closed"])
def test_a_chat_that_is_over_frees_its_memory(one: PatchedModel, end: str) -> None:
    chat = one.chat(make_clip())
    chat.ask(TURNS[0], **MOST)
    stream = chat.stream(TURNS[1], **MOST)
    next(stream)
    stream.close()
    assert one.kept.bytes > 0
    gone = weakref.ref(chat)
    if end == "closed":
        chat.close()
        assert chat.ask(TURNS[0], **MOST) and one.kept.bytes, "it can be used again"
    del chat, stream
    gc.collect()
    assert gone() is None and (len(one.kept), one.kept.bytes) == (0, 0)


def test_a_stream_of_a_chat_is_a_turn_once_it_is_read(one: PatchedModel) -> None:
    chat = one.chat(make_clip())
    expected = one.ask(make_clip(), TURNS[0], **MOST)
    stream = chat.stream(TURNS[0], **MOST)
    with pytest.raises(UsageError, match="this chat is answering another question: wait, or read or close its stream"):
        chat.ask(TURNS[1])
    assert "".join(stream).strip() == expected == stream.answer and chat.history == [(TURNS[0], expected)]
    for begun in (True, False):
        closed = chat.stream(TURNS[1], max_new_tokens=900)
        if begun:
            next(closed)
        closed.close()
        assert len(chat.history) == 1
    answer = chat.ask(TURNS[1], **MOST)
    assert answer == fresh(one, make_clip(), one.chat(make_clip(), history=chat.history[:1]), TURNS[1])
    with pytest.raises(UsageError, match="one beam"):
        chat.stream(TURNS[2], num_beams=2)
    assert chat.ask(TURNS[2], **MOST), "a refused question leaves the chat free"


def test_a_failed_question_leaves_no_turn(one: PatchedModel) -> None:
    hears(one)
    chat = one.chat(make_clip())
    chat.ask(TURNS[0], **MOST)

    def fail(*_: object) -> None:
        raise MemoryError("full")

    with hooked(one.host.language_model.get_submodule("layers.1"), fail), pytest.raises(MemoryError):
        chat.ask(TURNS[1], **MOST)
    expected = fresh(one, make_clip(), chat, TURNS[1])
    assert len(chat.history) == 1 and chat.ask(TURNS[1], **MOST) == expected


def test_beams_and_sampling_work_in_a_chat(one: PatchedModel) -> None:
    chat = one.chat(make_clip())
    chat.ask(TURNS[0], **MOST)
    expected = fresh(one, make_clip(), chat, TURNS[1], num_beams=3)
    assert chat.ask(TURNS[1], num_beams=3, **MOST) == expected and "a search with beams" in chat.recomputed
    torch.manual_seed(5)
    expected = fresh(one, make_clip(), chat, TURNS[2], temperature=2.0)
    torch.manual_seed(5)
    assert chat.ask(TURNS[2], temperature=2.0, **MOST) == expected


def test_a_cache_of_sliding_windows_is_computed_anew_which_is_said_once(tokenizer: PreTrainedTokenizerFast) -> None:
    base = make_base(tokenizer, family="gemma4")
    base.model.config.get_text_config().sliding_window = 24
    model = PatchedModel(base)
    clip = make_clip()
    chat = model.chat(clip)
    chat.ask(TURNS[0], **MOST)
    chat.history.clear()
    expected = fresh(model, clip, chat, TURNS[1])
    with pytest.warns(UserWarning, match="those of gemma4 cannot be cropped"):
        assert chat.ask(TURNS[1], **MOST) == expected
    chat.history.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat.ask(TURNS[2], **MOST)
    assert "those of gemma4 cannot be cropped" in chat.recomputed


def test_a_template_with_the_question_before_the_clip_is_computed_anew(tokenizer: PreTrainedTokenizerFast) -> None:
    model = PatchedModel(make_base(tokenizer))
    model.host.prompter.template = "<|im_start|>user\n{question}\n{video}<|im_end|>\n<|im_start|>assistant\n"
    chat = model.chat(make_clip())
    chat.ask(TURNS[0], **MOST)
    chat.history.clear()
    expected = fresh(model, make_clip(), chat, TURNS[1])
    assert chat.ask(TURNS[1], **MOST) == expected
    assert "the prompt differs before the end of the clip" in chat.recomputed


def test_threads_chat_about_one_file(one: PatchedModel, film: Path) -> None:
    hears(one)
    expected = [one.ask(film, question, **MOST) for question in TURNS]
    found: dict[int, str] = {}

    def talk(i: int) -> None:
        found[i] = one.chat(film).ask(TURNS[i], **MOST)

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(len(TURNS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(TURNS))] == expected


def test_other_forms_of_a_clip(one: PatchedModel) -> None:
    hears(one)
    clip = clips()[0]
    assert clip.frames is not None and clip.audio is not None
    forms: list[tuple[Any, dict[str, Any]]] = [
        (one.encode_clip(clip), {}),
        (clip, {"audio": None}),
        (clip.frames, {"audio": (clip.audio, 16_000)}),
    ]
    for source, how in forms:
        assert one.chat(source, **how).ask(TURNS[0], **MOST) == one.ask(source, TURNS[0], **MOST, **how)
