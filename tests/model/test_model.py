"""Claims about a patched model: what a question can be, and what one call reads."""

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from families import FRAMES, SIDE
from patched import QUESTIONS, clips, hears, hooked
from small import make_clip

import pave
from pave.config import FusionConfig
from pave.errors import MediaError, PatchMismatch, PatchNotFound, SignalError
from pave.media.clip import Clip
from pave.model.answer import Answer
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.model.rows import prepared
from pave.packing.rows import collate, pack
from pave.patch.file import Patch


def test_patches_with_different_layouts_cannot_share_a_row(one: PatchedModel) -> None:
    hears(one)
    hears(one, "grid", newline="grid")
    with pytest.raises(PatchMismatch, match="newline: grid"):
        one.ask(clips()[0], QUESTIONS[0])
    inputs = one.prepare(clips(), QUESTIONS, patches=[["ears"], ["grid"]])
    assert inputs.newline == ("end", "grid")
    assert one.forward(inputs).logits.isfinite().all()


@pytest.mark.parametrize("combine", ["prefix", "interleave"])
def test_concatenation_inserts_side_tokens(model: PatchedModel, combine: str) -> None:
    fusion = FusionConfig(width=32, heads=2, combine=combine)  # type: ignore[arg-type]
    plain = model.prepare(clips(), QUESTIONS)
    hears(model, fusion=fusion)
    many = [make_clip(0), make_clip(1, frames=2, sound=False)]
    inputs = model.prepare(many, QUESTIONS)
    placeholder = model.host.placeholder
    extra = (inputs.input_ids[0] == placeholder).sum() - (plain.input_ids[0] == placeholder).sum()
    assert extra == FRAMES * 5  # five tokens per second of sound
    absent = model.forward(inputs).logits[1, -1]
    alone = model.forward(model.prepare(many[1:], QUESTIONS[1:], patches=[])).logits[0, -1]
    tolerance = 1e-4 if model.host.dtype == torch.float32 else 0.5
    torch.testing.assert_close(absent, alone, atol=tolerance, rtol=tolerance)
    assert model.generate(inputs, max_new_tokens=3, num_beams=2, do_sample=False).shape[0] == 2
    with pytest.raises(ValueError, match="inserts tokens"):
        model.set_weight("ears", 0.5)


# The separate steps


def test_packed_questions_equal_questions_alone(one: PatchedModel) -> None:
    """Several questions after one visual prefix, as in training."""
    hears(one)
    features = [one.encode_clip(clip) for clip in clips()]
    rows = []
    for seen in one.lay_out(features, ["ears"]).visual:
        before, _ = one.host.prompt("")
        turns = [(one.host.prompt(question)[1], one.host.encode_text("yes")) for question in QUESTIONS]
        rows.append(pack([*before, *seen], turns))
    tokens = collate(rows, one.host.pad)
    labels = tokens.pop("labels")
    packed = one.forward(one.lay_out(features, ["ears"]).inputs(**tokens)).logits
    for i in range(2):
        places = (labels[i] != -100).nonzero()[:, 0]
        for question, place in zip(QUESTIONS, places[:: len(one.host.encode_text("yes"))], strict=True):
            alone = one.forward(one.prepare(features[i : i + 1], [question])).logits[0, -1]
            torch.testing.assert_close(packed[i, place - 1], alone, atol=1e-4, rtol=1e-4)


def test_wrong_counts_are_errors(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    fewer = inputs.input_ids.clone()
    fewer[fewer == one.host.placeholder] = one.host.pad
    with pytest.raises(ValueError, match="placeholders"):
        one.forward(Inputs(fewer, inputs.attention_mask, inputs.visual))
    with pytest.raises(ValueError, match="got 2 clips and 1 question; pass equally many"):
        one.prepare(clips(), QUESTIONS[:1])
    with pytest.raises(ValueError, match="position_ids"):
        one.forward(Inputs(inputs.input_ids, inputs.attention_mask[:, None, None], inputs.visual))
    hears(one)
    with pytest.raises(SignalError, match="logmel"):
        one.prepare(one.encode(clips(), []), QUESTIONS)


# Questions


def test_vision_tower_runs_once_per_question(one: PatchedModel) -> None:
    hears(one)
    calls = []
    tower: Any = one.base.model.vision_tower
    handle = tower.register_forward_hook(lambda *arguments: calls.append(1))
    one.ask(clips()[0], QUESTIONS[0], max_new_tokens=8)
    assert len(calls) == 1
    shared = clips()[0]
    one.ask_batch([(shared, question) for question in QUESTIONS])
    assert len(calls) == 2
    handle.remove()


def test_an_answer_has_its_patches_signals_and_timings(one: PatchedModel) -> None:
    hears(one)
    answer = one.ask(clips()[0], QUESTIONS[0])
    assert isinstance(answer, str) and answer.patches == ("ears",)
    assert answer.signals["audio"].startswith("present: 20 steps")
    assert set(answer.timings) == {"read", "encode", "prepare", "generate"}
    copied = pickle.loads(pickle.dumps(copy.copy(answer)))
    assert isinstance(copied, Answer) and (copied, copied.signals) == (answer, answer.signals)


def test_real_files_pictures_and_arrays_can_be_asked(one: PatchedModel, tmp_path: Path) -> None:
    hears(one)
    wave = 0.1 * np.random.default_rng(0).standard_normal(48_000 * 2).astype(np.float32)
    write_clip(tmp_path / "loud.mp4", counting_frames(20), fps=10, audio=wave, rate=48_000)
    write_clip(tmp_path / "mute.mp4", counting_frames(20), fps=10)
    sounding, mute = one.ask(tmp_path / "loud.mp4", QUESTIONS[0]), one.ask(str(tmp_path / "mute.mp4"), QUESTIONS[0])
    assert sounding.signals["audio"].startswith("present")
    assert mute.signals == {"audio": "absent: no audio track"}
    assert mute == one.ask(tmp_path / "mute.mp4", QUESTIONS[0], patches=[])
    assert one.ask(np.zeros((SIDE, SIDE, 3), np.uint8), QUESTIONS[0]).signals["audio"].startswith("absent")


def test_sound_can_be_passed_or_dropped(one: PatchedModel) -> None:
    hears(one)
    clip, other = clips()
    dropped = one.ask(clip, QUESTIONS[0], audio=None)
    assert dropped == one.ask(clip, QUESTIONS[0], patches=())
    assert dropped.signals["audio"] == "absent: left out by the caller"
    given = one.ask(make_clip(0, sound=False), QUESTIONS[0], audio=(clip.audio, 16_000))
    assert given == one.ask(clip, QUESTIONS[0])
    with pytest.raises(SignalError, match="no applied patch reads the signal 'depth'"):
        one.ask(clip, QUESTIONS[0], depth=other.audio)


def test_a_batch_answers_each_row_with_its_own_patches(one: PatchedModel) -> None:
    hears(one)
    clip = clips()[0]
    rows = [
        (clip, QUESTIONS[0]),
        (clip, QUESTIONS[0], []),
        {"clip": clip, "question": QUESTIONS[1], "patches": ["ears"]},
    ]
    patched, plain, third = one.ask_batch(rows)
    assert (patched.patches, plain.patches, third.patches) == (("ears",), (), ("ears",))
    with one.patches_off():
        off = one.ask(clip, QUESTIONS[0])
    assert plain == off and off.patches == ()
    assert patched == one.ask(clip, QUESTIONS[0])
    assert one.ask_batch([]) == []
    with pytest.raises(ValueError, match="row"):
        one.ask_batch([(clip,)])


def test_stream_gives_the_answer_of_ask(one: PatchedModel) -> None:
    hears(one)
    pieces = list(one.stream(clips()[0], QUESTIONS[0], max_new_tokens=12))
    assert "".join(pieces).strip() == one.ask(clips()[0], QUESTIONS[0], max_new_tokens=12)
    with one.patches_off():
        off = "".join(one.stream(clips()[0], QUESTIONS[0], max_new_tokens=12)).strip()
        assert off == one.ask(clips()[0], QUESTIONS[0], max_new_tokens=12)


def test_a_closed_stream_ends_its_generation(one: PatchedModel) -> None:
    running = threading.active_count()
    steps: list[int] = []
    with hooked(one.host.language_model.get_submodule("layers.0"), lambda *_: steps.append(1)):
        pieces = one.stream(clips()[0], QUESTIONS[0], max_new_tokens=900)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == running and len(steps) < 450


def test_a_stream_keeps_the_patches_it_was_asked_with(one: PatchedModel) -> None:
    plain = one.ask(clips()[0], QUESTIONS[0])
    hears(one)
    patched = one.ask(clips()[0], QUESTIONS[0])
    with one.patches_off():
        off = one.stream(clips()[0], QUESTIONS[0])
    on = one.stream(clips()[0], QUESTIONS[0])
    with one.patches_off():
        assert "".join(on).strip() == patched
    assert "".join(off).strip() == plain


def test_frames_are_spread_over_the_sound_passed_with_them(one: PatchedModel) -> None:
    hears(one)
    clip = make_clip()
    assert clip.audio is not None and clip.frames is not None
    apart = one.stream(clip.frames, QUESTIONS[0], audio=(clip.audio, 16000))
    together = one.ask(Clip.from_frames(clip.frames, audio=clip.audio, rate=16000), QUESTIONS[0])
    assert "".join(apart).strip() == together
    heard = [
        prepared(one.calls, [{"clip": given, "question": "?", **signals}], "auto", {}).inputs.uses[0].sides["audio"]
        for given, signals in (
            (clip.frames, {"audio": (clip.audio, 16000)}),
            (Clip.from_frames(clip.frames, audio=clip.audio, rate=16000), {}),
        )
    ]
    assert torch.equal(*(side.key_times for (side,) in heard if side))
    with pytest.raises(SignalError, match="pair"):
        one.ask(clip, QUESTIONS[0], audio=clip.audio)


def test_a_row_on_which_a_patch_does_not_act_is_laid_out_as_the_base_does(one: PatchedModel) -> None:
    silent = make_clip(1, sound=False)
    plain = one.prepare([silent], QUESTIONS[:1])
    hears(one, newline="grid")
    for weight, expected in ((1, ("grid", "end")), (0, ("end", "end"))):
        one.set_weight("ears", weight)
        inputs = one.prepare([make_clip(0), silent], QUESTIONS[:1] * 2)
        assert inputs.newline == expected
    alone = one.prepare([silent], QUESTIONS[:1])
    assert torch.equal(alone.input_ids, plain.input_ids) and torch.equal(
        one.forward(alone).logits, one.forward(plain).logits
    )


def test_features_that_were_encoded_without_a_sense_are_refused_where_it_is_asked_for(one: PatchedModel) -> None:
    before = one.encode([make_clip()])[0]
    hears(one)
    with pytest.raises(SignalError, match="have no tokens of logmel"):
        one.prepare([before], QUESTIONS[:1])
    mixed = one.prepare([before, make_clip(1)], QUESTIONS[:1] * 2, patches=[[], ["ears"]])
    assert mixed.uses[0].sensing.tolist() == [False, True]


def test_a_row_without_names_asks_for_all_that_are_enabled(one: PatchedModel) -> None:
    hears(one)
    inputs = one.prepare([make_clip()] * 3, QUESTIONS[:1] * 3, patches=[None, "ears", []])
    assert inputs.uses[0].rows.tolist() == [True, True, False]


def test_an_error_in_a_stream_reaches_the_reader(one: PatchedModel) -> None:
    hears(one)
    pieces = one.stream(clips()[0], QUESTIONS[0])
    one.remove_patch("ears")
    with pytest.raises(PatchNotFound, match="removed"):
        list(pieces)


def test_a_prompt_longer_than_the_base_supports_is_answered_with_a_warning(one: PatchedModel) -> None:
    config: Any = one.host.language_model.config
    inputs = one.prepare([make_clip()], ["what?"])
    config.max_position_embeddings, before = inputs.input_ids.shape[1] - 1, config.max_position_embeddings
    vars(one.host).pop("context", None)  # it is read once
    with pytest.warns(UserWarning, match=rf"{inputs.input_ids.shape[1]} positions, .* supports .*; use fewer frames"):
        one.generate(inputs, max_new_tokens=1)
    config.max_position_embeddings = before
    del vars(one.host)["context"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.generate(inputs, max_new_tokens=1)


def test_misuse_has_an_error_of_our_own(one: PatchedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a row is \(clip, question\).*got 'clip\.mp4'; pass a list of rows"):
        one.ask_batch(("clip.mp4", "what?"))
    with pytest.raises(SignalError, match=r"got 'clip\.mp4' as a clip; pass Clip\.read"):
        one.prepare(["clip.mp4"], ["what?"])  # type: ignore[list-item]
    with pytest.raises(PatchNotFound, match="no patch of this name is applied"):
        one.remove_patch(None)  # type: ignore[arg-type]
    path = write_clip(tmp_path / "sound.m4a", None, audio=np.zeros(8000, np.float32), rate=8000)
    with pytest.raises(MediaError, match=r"sound\.m4a: holds sound only, but pictures were requested"):
        one.ask_batch([(make_clip(), "what?"), (path, "what?")])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        *[(name, "no patch, folder or file with this name") for name in ("", "a" * 300, "a\0b")],
        ("a" * 300 + "/b", "cannot be on the Hub|is not in the cache"),
        ("so--me/body", "cannot be on the Hub"),
    ],
)
def test_an_impossible_name_is_not_a_patch(one: PatchedModel, name: str, cause: str) -> None:
    with pytest.raises(PatchNotFound, match=cause):
        one.apply_patch(name)


def test_front_door_leads_here() -> None:
    assert pave.load.__module__ == "pave.model.patched"
    assert pave.Patch is Patch
