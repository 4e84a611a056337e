"""`combine: compact`: a clip in few tokens. What is in the prompt, what it depends on, and what it must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FRAMES
from small import awaken, make_clip, make_config

from pave.config import FusionConfig, LoraConfig
from pave.errors import PatchMismatch, RecipeError, UsageError
from pave.files.validation import parse
from pave.fusion.align import align
from pave.fusion.inserted import Pooled, Summary
from pave.media.clip import Clip
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.sidechannel import SideBatch, SideTokens

ASKED = "What do you hear?"
COMPACT = FusionConfig(width=32, heads=2, combine="compact")


def summing(model: PatchedModel, name: str = "few", **changes: object) -> None:
    model.attach(name, make_config(model.host, name, **{"fusion": COMPACT, **changes}), trainable=False)
    awaken(model, name)


def visual(model: PatchedModel, inputs: Inputs) -> int:
    return int((inputs.input_ids[0] == model.host.placeholder).sum())


def batch_of(x: torch.Tensor, valid: torch.Tensor | None = None) -> SideBatch:
    times = torch.arange(len(x), dtype=torch.float64) * 0.1
    real = torch.ones(x.shape[:3], dtype=torch.bool) if valid is None else valid
    side = SideTokens(x, times, torch.stack([times, times + 0.1], 1), real)
    return align([side], [torch.arange(2, dtype=torch.float64)], "time")


def test_the_prompt_has_a_token_per_key_frame_per_place_and_per_segment(one: PatchedModel) -> None:
    whole = visual(one, one.prepare([make_clip()], [ASKED]))
    summing(one)
    inputs = one.prepare([make_clip()], [ASKED])
    few = FRAMES + one.host.tokens_per_frame + 4
    assert visual(one, inputs) == few and few != whole
    summing(one, "finer", fusion=COMPACT.model_copy(update={"segments": 8}))
    assert visual(one, one.prepare([make_clip()], [ASKED], patches=["finer"])) == few + 4
    silent = one.prepare([make_clip(sound=False)], [ASKED], patches=["few"])
    assert visual(one, silent) == whole, "without the sense, the base's own"
    assert torch.equal(
        one.forward(silent).logits, one.forward(one.prepare([make_clip(sound=False)], [ASKED], patches=())).logits
    )


def test_it_depends_on_pictures_and_sound_and_batches_are_single_rows(one: PatchedModel) -> None:
    summing(one)
    clips = [make_clip(0), make_clip(1, frames=FRAMES + 1), make_clip(0, sound=False)]
    other = Clip.from_frames(clips[0].frames, clips[0].times, audio=make_clip(3).audio, rate=16_000)
    seen = Clip.from_frames(255 - clips[0].frames, clips[0].times, audio=clips[0].audio, rate=16_000)  # type: ignore[operator]
    alone = [one.forward(one.prepare([clip], [ASKED])).logits[0, -1] for clip in [*clips, other, seen]]
    assert not torch.allclose(alone[0], alone[3]) and not torch.allclose(alone[0], alone[4])
    together = one.forward(one.prepare(clips, [ASKED] * 3)).logits[:, -1]
    assert torch.allclose(together, torch.stack(alone[:3]), atol=1e-4)


def test_removing_it_restores_the_base_and_the_file_is_the_patch(one: PatchedModel, tmp_path: Path) -> None:
    before = one.forward(one.prepare([make_clip()], [ASKED])).logits
    summing(one)
    changed = one.ask(make_clip(), ASKED, max_new_tokens=4)
    path = one.export("few").save(tmp_path / "few.safetensors")
    one.remove_patch("few")
    assert torch.equal(one.forward(one.prepare([make_clip()], [ASKED])).logits, before)
    one.apply_patch(path)
    assert one.ask(make_clip(), ASKED, max_new_tokens=4) == changed
    patch = Patch.load(path)
    assert patch.config.fusion.segments == 4 and "segments" not in patch.config.canonical()
    assert [name for name in patch.tensors if name.startswith("summary.")]


def test_sound_alone_has_the_segments_alone(one: PatchedModel) -> None:
    summing(one, sound_alone=True)
    clip = make_clip()
    inputs = one.prepare([Clip.from_frames(audio=clip.audio, rate=16_000)], [ASKED])
    assert visual(one, inputs) == 4
    assert one.forward(inputs).logits.isfinite().all()


def test_a_patch_that_needs_the_visual_tokens_cannot_share_a_row(one: PatchedModel) -> None:
    summing(one)
    one.attach("ears", make_config(one.host), trainable=False)
    with pytest.raises(PatchMismatch, match="ears"):
        one.prepare([make_clip()], [ASKED])
    summing(one, "other")
    with pytest.raises(PatchMismatch, match="other"):
        one.prepare([make_clip()], [ASKED], patches=["few", "other"])
    rows = one.prepare([make_clip()] * 2, [ASKED] * 2, patches=[["few"], ["ears"]])
    assert one.forward(rows).logits.isfinite().all()
    one.attach("words", make_config(one.host, "words", senses={}, lora=LoraConfig(r=2)), trainable=False)
    one.prepare([make_clip()], [ASKED], patches=["few", "words"])
    with pytest.raises(UsageError, match="use 0 or 1"):
        one.set_weight("few", 0.5)


def test_an_untrained_summary_is_the_means() -> None:
    tokens = torch.randn(3, 5, 8)
    found = Summary(8, 4)(tokens)
    assert torch.equal(found, torch.cat([tokens.mean(1), tokens.mean(0)]))


def test_segments_are_means_of_their_own_valid_tokens() -> None:
    torch.manual_seed(0)
    pooled = Pooled(COMPACT, side_dim=6, visual_dim=8)
    x = torch.randn(10, 1, 2, 6)
    valid = torch.ones(10, 1, 2, dtype=torch.bool)
    valid[0], x[0] = False, float("nan")
    tokens, real = pooled(batch_of(x, valid))
    assert tokens.shape == (1, 1, 4, 8) and real.all()
    means = [x[first:last].flatten(0, 2) for first, last in ((1, 3), (3, 5), (5, 8), (8, 10))]
    wanted = pooled.project(torch.stack([each.mean(0) for each in means]))
    assert torch.allclose(tokens[0, 0], wanted, atol=1e-6)
    _, real = pooled(batch_of(x[1:3]))
    assert real.sum() == 2, "two steps fill two segments"
    valid[1:3] = False
    _, real = pooled(batch_of(x, valid))
    assert real[0, 0].tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ({"combine": "prefix", "segments": 8}, "segments=8 is of combine: compact"),
        ({"segments": 2}, "segments=2"),
        ({"combine": "compact", "kind": "official"}, "has no kind"),
        ({"combine": "compact", "segments": 0}, "segments"),
    ],
)
def test_impossible_configs_are_errors(words: dict[str, object], cause: str) -> None:
    with pytest.raises(RecipeError, match=cause):
        parse(FusionConfig, words, "recipe")
