"""Claims about what a model refuses: names, patches of other encoders and bases, signals; and what it says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patched import clips, other_ears
from small import make_clip

from pave.config import ResamplerConfig
from pave.errors import PatchDamaged, PatchError, PatchMismatch, PatchNotFound, SignalError, UsageError
from pave.evaluation.accuracy import evaluate
from pave.hub.catalogue import file_of
from pave.model.patched import PatchedModel
from pave.patch.file import Patch


@pytest.mark.parametrize("name", ["a b", "\x1b[31m", "x" * 97, "-x", 5, ("a",)])
def test_a_patch_is_applied_only_under_a_name_that_patches_may_have(one: PatchedModel, name: Any) -> None:
    patch = other_ears(one)
    for change in (lambda: one.apply_patch(patch, name=name), lambda: one.attach(name, patch.config)):
        with pytest.raises(PatchError, match="cannot be the name of a patch; use up to 96 letters"):
            change()
    assert not one.patches


CHANGED = {
    "grid": ({"grid": (4096, 4096)}, r"trained on another logmel: grid \(4096, 4096\) there, \(1, 1\) here"),
    "revision": ({"revision": "0", "preprocessing": "a" * 64}, "another logmel: .*revision '0' there, '1' here"),
    "options": ({"options": {"bands": 8, "rate": 5}}, "another logmel: dim 16 there, 8 here.*option fmin"),
    "unknown": ({"preprocessing": "a" * 64, "revision": "1"}, "another logmel: .*; use the version of PAVE that"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_patch_of_another_encoder_says_what_differs(one: PatchedModel, kind: str) -> None:
    changes, message = CHANGED[kind]
    patch = other_ears(one)
    facts = patch.config.senses["audio"].model_copy(update=changes)
    other = Patch(patch.config.model_copy(update={"senses": {"audio": facts}, "name": "other"}), patch.tensors)
    with pytest.raises(PatchMismatch, match=message):
        one.apply_patch(other)


def test_a_remedy_does_not_name_the_base_that_is_loaded(playroom: PatchedModel) -> None:
    patch = Patch.load(file_of("audio-playroom"))
    config = patch.config.model_copy(update={"prompt": "<|foo_bar|>{video}{question}"})
    for changed in (config, patch.config.model_copy(update={"base": config.base.model_copy(update={"dim": 65})})):
        with pytest.raises(PatchMismatch, match="made for this very base, so the patch itself is at fault"):
            playroom.apply_patch(Patch(changed, patch.tensors), name="other")


def test_the_limit_of_layers_that_is_named_is_the_one_that_holds(one: PatchedModel) -> None:
    patch = other_ears(one)
    resampler = ResamplerConfig(layers=64, width=32, heads=2)
    config = patch.config.model_copy(update={"resampler": resampler, "name": "other"})
    with pytest.raises(PatchDamaged, match=r"has 65 layers for 1 sense; at most 64 are possible with \d+ tensors"):
        one.apply_patch(Patch(config, patch.tensors))


def test_weights_of_an_adapter_without_its_config_are_named(one: PatchedModel, tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b"")
        with pytest.raises(PatchNotFound, match=r"adapter_config\.json: file not found, though adapter_model"):
            one.apply_patch(folder)


def test_signals_are_passed_by_their_own_names(one: PatchedModel) -> None:
    one.apply_patch(other_ears(one))
    with pytest.raises(SignalError, match=r"pass each by its own name: ask\(clip, question, imu=\.\.\.\)"):
        one.ask(clips()[0], "What?", signals={"imu": [1]})


GONE = "gone.mp4"  # reading it would be a MediaError


@pytest.mark.parametrize("most", [True, 2.5, 0, -1, None, "8"])
def test_the_length_of_an_answer_is_refused_before_its_clip_is_read(one: PatchedModel, most: Any) -> None:
    asked = {
        "ask": lambda: one.ask(GONE, "What?", max_new_tokens=most),
        "ask_batch": lambda: one.ask_batch([(GONE, "What?")], max_new_tokens=most),
        "stream": lambda: one.stream(GONE, "What?", max_new_tokens=most),
        "watch": lambda: one.watch(iter(())).ask("What?", max_new_tokens=most),
        "evaluate": lambda: evaluate(one, GONE, max_new_tokens=most),
    }
    if most is None:
        del asked["evaluate"]  # which chooses it
    for ask in asked.values():
        with pytest.raises(UsageError, match=r"max_new_tokens=.* is no length of an answer; pass a whole number, 1 or"):
            ask()


@pytest.mark.parametrize("limit", [True, "5", [1], -1])
def test_a_limit_is_checked_though_no_file_is_read(one: PatchedModel, limit: Any) -> None:
    for ask in (one.ask, one.stream):
        with pytest.raises(UsageError, match="is not a limit; pass seconds"):
            ask(make_clip(), "What?", timeout=limit)


def test_numbers_of_numpy_are_lengths_and_limits(one: PatchedModel) -> None:
    options = {"max_new_tokens": np.int64(2), "timeout": np.float32(9)}
    assert one.ask(make_clip(), "What?", **options) == one.ask(make_clip(), "What?", max_new_tokens=2)


def test_rows_that_are_no_list_are_refused(one: PatchedModel) -> None:
    clip = make_clip()
    rows: tuple[Any, ...] = (((clip, "What?") for _ in range(1)), None, 5)
    for asked in rows:
        with pytest.raises(UsageError, match=r"the rows are a \w+; pass a list of rows"):
            one.ask_batch(asked)
    pairs: tuple[Any, ...] = (([clip], None), ([clip], "What?"), (clip, ["What?"]), ([clip], iter(["What?"])))
    for some, questions in pairs:
        with pytest.raises(UsageError, match=r"the (clip|question)s are a \w+; pass a list"):
            one.prepare(some, questions)
    with pytest.raises(UsageError, match="got 0 clips and 0 questions"):
        one.prepare([], [])
