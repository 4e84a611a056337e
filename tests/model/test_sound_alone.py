"""Clips without pictures: a patch that was trained for them answers from the sound; without one, nothing is guessed."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from families import FAMILIES, make_base
from small import awaken, make_clip, make_config
from transformers import PreTrainedTokenizerFast

from pave.config import FusionConfig, LoraConfig
from pave.errors import MediaError, PatchMismatch, PaveError, UsageError
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.patch.file import Patch

Combine = Literal["prefix", "interleave"]
ASKED = "What do you hear?"


def only_sound(seed: int = 0) -> Clip:
    clip = make_clip(seed)
    return Clip.from_frames(audio=clip.audio, rate=clip.rate)


def hearing(model: PatchedModel, name: str = "alone", **changes: object) -> None:
    changes = {"newline": model.host.newlines[0], "sound_alone": True, **changes}
    model.attach(name, make_config(model.host, name, **changes), trainable=False)
    awaken(model, name)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return PatchedModel(make_base(tokenizer, family=request.param))


def test_every_family_answers_from_sound_alone(family: PatchedModel) -> None:
    """The logits depend on the sound, batches equal single rows, and the base without the patch sees only text."""
    query = "vision" if family.host.vision_dim else "projected"
    lora = LoraConfig(r=4, target_modules=("q_proj", "v_proj"))
    hearing(family, fusion=FusionConfig(width=32, heads=2, query=query), lora=lora)
    clips = [only_sound(0), only_sound(1), make_clip(2)]
    try:
        alone = [family.forward(family.prepare([clip], [ASKED])).logits[0, -1] for clip in clips]
        both = family.forward(family.prepare(clips, [ASKED] * 3)).logits[:, -1]
        text = family.prepare([clips[0]], [ASKED], patches=())
        base = family.forward(text).logits[0, -1]
    finally:
        family.remove_patch("alone")
    assert not torch.allclose(alone[0], alone[1])
    assert not torch.allclose(alone[0], base)
    assert torch.allclose(torch.stack(alone), both, atol=1e-4)
    assert family.host.placeholder not in text.input_ids
    assert family.forward(family.prepare([clips[2]], [ASKED], patches=())).logits.isfinite().all()


@pytest.mark.parametrize("combine", ["prefix", "interleave"])
def test_a_patch_that_inserts_drops_the_visual_tokens(one: PatchedModel, combine: Combine) -> None:
    hearing(one, fusion=FusionConfig(width=32, heads=2, combine=combine))
    with_sound, clip = one.prepare([only_sound()], [ASKED]), one.encode([only_sound()])[0]
    (side,) = clip.sides.values()
    assert side is not None
    assert (with_sound.input_ids == one.host.placeholder).sum() == len(side.x)
    assert "alone" in one.patches and not [name for name in one.export("alone").tensors if "carrier" in name]
    assert not torch.allclose(
        one.forward(with_sound).logits[0, -1], one.forward(one.prepare([only_sound(1)], [ASKED])).logits[0, -1]
    )


def test_the_tower_does_not_run_for_sound_alone_nor_encoders_for_silent_pictures(one: PatchedModel) -> None:
    hearing(one)
    calls = {"tower": 0, "encoder": 0}
    tower = one.host.model.model.vision_tower
    (encoder,) = one.encoders()
    hook = tower.register_forward_hook(lambda *_: calls.update(tower=calls["tower"] + 1))
    encoder = cast(Any, encoder)
    own, encoder.spectra = encoder.spectra, lambda sound: (calls.update(encoder=calls["encoder"] + 1), own(sound))[1]
    try:
        one.ask(only_sound(), ASKED, max_new_tokens=1)
        assert calls == {"tower": 0, "encoder": 1}
        one.ask(make_clip(sound=False), ASKED, max_new_tokens=1)
        assert calls == {"tower": 1, "encoder": 1}
        one.ask(make_clip(), ASKED, max_new_tokens=1)
        assert calls == {"tower": 2, "encoder": 2}
    finally:
        hook.remove()


def test_files_arrays_and_batches(one: PatchedModel, tmp_path: Path) -> None:
    hearing(one)
    clip = only_sound()
    assert clip.audio is not None
    samples = (clip.audio[0] * 32767).short().numpy()
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    answer = one.ask(tmp_path / "a.wav", ASKED, max_new_tokens=4)
    assert answer.signals["audio"].startswith("present")
    assert one.ask(question=ASKED, audio=(samples, 16_000), max_new_tokens=4) == answer
    rows = [{"question": ASKED, "audio": (samples, 16_000)}, (make_clip(), ASKED), (tmp_path / "a.wav", ASKED, ())]
    with pytest.raises(MediaError, match=r"no pictures|sound only"):
        one.ask_batch(rows)
    assert one.ask_batch(rows[:2], max_new_tokens=4)[0] == answer
    assert "".join(one.stream(tmp_path / "a.wav", ASKED, max_new_tokens=4)).strip() == answer
    with pytest.raises(UsageError, match="needs a clip"):
        one.ask(question=ASKED)


def test_nothing_is_guessed_without_a_patch_for_it(one: PatchedModel) -> None:
    with pytest.raises(MediaError, match="no patch is used"):
        one.ask(only_sound(), ASKED)
    one.attach("ears", make_config(one.host), trainable=False)
    with pytest.raises(MediaError, match=r"ears: trained with pictures only.*train.modalities"):
        one.ask(only_sound(), ASKED)
    hearing(one)
    one.set_weight("alone", 0)
    with pytest.raises(MediaError, match="pictures"):
        one.ask(only_sound(), ASKED)
    one.set_weight("alone", 1)
    answer = one.ask(only_sound(), ASKED, max_new_tokens=1)
    assert answer.signals["audio"].startswith("present")
    moved = Clip.from_frames(imu=(torch.zeros(20, 6), torch.arange(20.0)))
    with pytest.raises(MediaError, match="nothing else of it can be read"):
        one.ask(moved, ASKED)


def test_a_patch_for_pictures_only_does_not_act_beside_one_for_sound_alone(one: PatchedModel) -> None:
    hearing(one)
    alone = one.forward(one.prepare([only_sound()], [ASKED])).logits
    one.attach("ears", make_config(one.host), trainable=False)
    awaken(one, "ears", seed=3)
    assert torch.equal(one.forward(one.prepare([only_sound()], [ASKED])).logits, alone)
    hearing(one, "other")
    with pytest.raises(PatchMismatch, match="alone and other"):
        one.prepare([only_sound()], [ASKED])


def test_a_film_is_not_changed_by_the_carrier(one: PatchedModel) -> None:
    hearing(one)
    inputs = one.prepare([make_clip()], [ASKED])
    before = one.forward(inputs).logits
    attached = one.applied.module("alone")
    assert attached.carrier is not None
    attached.carrier.tokens.data += 1
    assert torch.equal(one.forward(inputs).logits, before)
    other = one.prepare([only_sound()], [ASKED])
    before = one.forward(other).logits
    attached.carrier.tokens.data += 1
    assert not torch.equal(one.forward(other).logits, before)


def test_the_file_has_the_carrier_and_older_files_keep_their_bytes(
    one: PatchedModel, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    hearing(one)
    clip = only_sound()
    expected = one.ask(clip, ASKED, max_new_tokens=4)
    path = one.export("alone").save(tmp_path / "alone.safetensors")
    patch = Patch.load(path)
    assert patch.config.sound_alone and {"carrier.tokens", "carrier.vision"} <= patch.tensors.keys()
    one.remove_patch("alone")
    one.apply_patch(path)
    assert one.ask(clip, ASKED, max_new_tokens=4) == expected
    assert "sound_alone" not in make_config(one.host).canonical()
    missing = {name: value for name, value in patch.tensors.items() if name != "carrier.tokens"}
    with pytest.raises(PaveError, match=r"carrier\.tokens is missing"):
        Patch(patch.config, missing).save(tmp_path / "broken.safetensors")
