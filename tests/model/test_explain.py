"""Explanations: a second is cited if the answer depends on it and not on another; what cannot be explained is said."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from patched import alike, favors, hears, portrait
from places import ROOT
from small import make_clip

from pave.config import FusionConfig
from pave.encoder import load_encoder
from pave.errors import UsageError
from pave.explaining.silencing import silenced, windows
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.sidechannel import SideTokens

ROOM = ROOT / "examples/room.mp4"  # a beep at about 0.7 s, a bell at 1.9, a drum at 3.3
BELL = (1.75, 2.05)
COLOUR = "what colour is the ball when you hear the bell?"


@pytest.fixture(scope="module")
def ears(playroom: PatchedModel):
    playroom.apply_patch("audio-playroom")
    yield playroom
    playroom.remove_patch("audio-playroom")


def test_the_second_of_the_sound_that_was_asked_about_is_cited(ears):
    answer, before = ears.ask(ROOM, COLOUR), portrait(ears)
    found = ears.explain(ROOM, COLOUR)
    assert found.answer == answer == "red" and found.without == "cyan"
    (cited,) = found.cited
    assert cited.start < BELL[0] and BELL[1] - 0.1 < cited.end <= cited.start + 1.01
    assert cited.answer != "red" and cited.other_answer == "red" and cited.lost > 1 > abs(cited.other_lost)
    assert cited.other[0] >= cited.end or cited.other[1] <= cited.start
    assert f"red (heard at {cited.start:.1f}–{cited.end:.1f} s)" in str(found) and "cyan" in found._repr_html_()
    assert alike(before, portrait(ears))


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("how many toys are there?", "it depends on no second of it"),
        ("what do you hear, first to last?", "it depends on several moments"),
    ],
)
def test_no_second_is_cited_for_an_answer_that_does_not_hang_on_one(ears, question, why):
    found = ears.explain(ROOM, question)
    assert not [each for each in found.cited if each.other_answer != found.answer]
    assert found.cited or why in str(found)
    if "toys" in question:
        assert not found.cited


def test_lost_likelihood_is_that_of_the_answer_token_by_token(ears):
    """Compared with the probabilities that generation itself gives, of a clip whose sound is silenced by hand."""
    found = ears.explain(ROOM, COLOUR)
    clip = Clip.read(ROOM, frames=ears.host.frames)
    assert clip.audio is not None
    window = int(found.deletions[0].lost.argmax())
    start, end = found.deletions[0].windows[window].tolist()
    (audio,) = ears.attached()[0].config.senses.values()
    encoder = ears.encoder(audio)
    (features,) = ears.encode([clip])
    (key,) = features.sides
    without = replace(features, sides={key: silenced(encoder, clip, features.sides[key], start, end)})
    likely = []
    for each in (features, without):
        inputs = ears.prepare([each], [COLOUR])
        ids = ears.generate(ears.prepare([features], [COLOUR]), max_new_tokens=8, do_sample=False)
        said = ids[0, inputs.input_ids.shape[1] :]
        total, past = 0.0, inputs
        for token in said:
            total += float(ears.forward(past).logits[0, -1].log_softmax(-1)[token])
            more = torch.cat([past.input_ids, token.view(1, 1)], 1)
            past = replace(past, input_ids=more, attention_mask=torch.ones_like(more))
        likely.append(total)
    assert float(found.deletions[0].lost[window]) == pytest.approx(likely[0] - likely[1], abs=1e-3)


def test_what_is_read_is_told_for_every_key_frame_and_a_resampler_puts_all_senses_on_one_clock(one):
    hears(one)
    favors(one)
    found = one.explain(make_clip(), "What?", max_new_tokens=2)
    ears, favor = found.readings
    t, s = len(found.key_times), one.host.tokens_per_frame
    assert ears.weights.shape[0] == favor.weights.shape[0] == t and ears.strength.shape == (t, s)
    assert (ears.senses, favor.senses) == (("audio",), ("slow", "fast")) and favor.resampled
    assert (ears.strength > 0).any() and ears.times is not None and favor.times is not None
    assert len(favor.times) == favor.weights.shape[1] != len(ears.times) == ears.weights.shape[1]
    own = ears.by_step.argmax(1)  # a key frame reads its own segment
    assert ((ears.times[own] - found.key_times).abs() <= 0.5)[:-1].all()
    assert {each.sense for each in found.deletions} == {"audio", "slow", "fast"}
    assert len(found.plot().axes) == 2 + 2 * 2 + 3 and pickle.loads(pickle.dumps(found)).answer == found.answer


@pytest.mark.parametrize("combine", ["prefix", "interleave", "compact"])
def test_tokens_in_the_prompt_have_no_weights_but_their_seconds_can_be_deleted(one, combine):
    fusion: Any = {"combine": combine} | ({"segments": 4} if combine == "compact" else {})
    hears(one, fusion=FusionConfig.model_validate({"width": 32, **fusion}))
    found = one.explain(make_clip(), "What?", max_new_tokens=2)
    assert not found.readings and f"combine: {combine}" in found.missing["ears"] and "ears: its tokens" in str(found)
    assert found.deletions[0].lost.abs().max() > 0


def test_what_cannot_be_explained_is_refused_or_said(one):
    with pytest.raises(UsageError, match="no patch with a sense is used"):
        one.explain(make_clip(), "What?")
    hears(one)
    with pytest.raises(UsageError, match=r"no patch has a signal here \(audio absent"):
        one.explain(make_clip(sound=False), "What?")
    (features,) = one.encode([make_clip()])
    found = one.explain(features, "What?", max_new_tokens=2)
    assert "no samples to silence" in found.missing["audio"] and found.readings and not found.deletions


# what is deleted


@pytest.mark.parametrize(("seconds", "length", "count"), [(4, 1, 7), (4.04, 1, 7), (2, 0.5, 7), (64, 2, 63)])
def test_windows_overlap_by_half_and_cover_the_sense(seconds, length, count):
    side = SideTokens.regular(torch.zeros(round(seconds * 25), 1), rate=25, start=3.0)
    found = windows(side)
    assert len(found) == count and found[0, 0] == 3 and found[-1, 1] == pytest.approx(3 + seconds)
    assert torch.allclose(found[:, 0].diff(), torch.tensor(length / 2, dtype=torch.float64))
    assert torch.allclose(found[:-1].diff(dim=1), torch.tensor(length, dtype=torch.float64))


def test_silencing_leaves_all_other_samples_and_tokens_as_they_are():
    clip, encoder = make_clip(), load_encoder("logmel", bands=16, rate=5)
    side = encoder.encode(clip)
    assert side is not None
    less = silenced(encoder, clip, side, 1.0, 2.0)
    assert less is not None
    inside = (side.spans[:, 1] > 0.9) & (side.spans[:, 0] < 2.1)
    assert torch.equal(less.x[~inside], side.x[~inside])
    assert (less.x[5:10] < side.x[5:10] - 0.5).all() and torch.allclose(less.x[6:9], torch.tensor(-1.5), atol=1e-3)


def test_tokens_of_other_senses_become_the_mean_of_the_others():
    values = torch.tensor([[1.0], [2.0], [9.0], [3.0]])
    sensor, side = load_encoder("array", dim=1, rate=1, signal="imu"), SideTokens.regular(values, rate=1)
    less = silenced(sensor, Clip(), side, 2.0, 3.0)
    assert less is not None and less.x.flatten().tolist() == [1, 2, 2, 3]
