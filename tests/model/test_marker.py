"""`fusion.marker`: a learned vector says whether a clip has pictures, sound or both. Untrained it changes nothing, and
where the patch does not act, it never does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import awaken, make_clip, make_config
from torch import Tensor

from pave.config import FusionConfig, PatchConfig
from pave.errors import RecipeError
from pave.evaluation.cost import cost_of
from pave.files.validation import parse
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.patch.file import Patch

ASKED = "What do you hear?"
FILM, MUTE = make_clip(), make_clip(sound=False)
SOUND = Clip.from_frames(audio=FILM.audio, rate=FILM.rate)


def marked(model: PatchedModel, combine: str = "add", *, awake: bool = True, **changes: object) -> None:
    fusion = parse(FusionConfig, {"width": 32, "heads": 2, "combine": combine, "marker": True}, "here")
    model.attach("marked", make_config(model.host, "marked", fusion=fusion, **changes), trainable=False)
    if awake:
        awaken(model, "marked")


def logits(model: PatchedModel, clip: Clip) -> Tensor:
    return model.forward(model.prepare([clip], [ASKED])).logits[0, -1].detach()


def placeholders(model: PatchedModel, clip: Clip) -> int:
    return int((model.prepare([clip], [ASKED]).input_ids == model.host.placeholder).sum())


def moved(model: PatchedModel, clip: Clip, modality: str) -> Tensor:
    """The logits when one marker is moved."""
    marker = model.applied.module("marked").marker
    assert marker is not None
    marker.get_parameter(modality).data += 1
    return logits(model, clip)


def test_untrained_it_changes_nothing_and_trained_only_films_with_sound(one: PatchedModel) -> None:
    base, mute = logits(one, FILM), logits(one, MUTE)
    marked(one, awake=False)
    assert torch.equal(logits(one, FILM), base)
    assert not torch.allclose(moved(one, FILM, "both"), base)
    assert torch.equal(logits(one, MUTE), mute)
    one.set_weight("marked", 0)
    assert torch.equal(logits(one, FILM), base)


@pytest.mark.parametrize("combine", ["add", "prefix", "compact"])
def test_each_modality_has_its_own_where_the_patch_acts(one: PatchedModel, combine: str) -> None:
    plain = parse(FusionConfig, {"width": 32, "heads": 2, "combine": combine}, "here")
    one.attach("marked", make_config(one.host, "marked", fusion=plain, sound_alone=True), trainable=False)
    counts = [placeholders(one, clip) for clip in (FILM, SOUND, MUTE)]
    one.remove_patch("marked")
    marked(one, combine, sound_alone=True, keep_lora_when_absent=True)
    own = {"both": FILM, "sound": SOUND, "pictures": MUTE}
    if combine == "add":
        del own["sound"]  # the carrier is learned already
    assert {name for name in one.export("marked").tensors if "marker" in name} == {f"marker.{each}" for each in own}
    before = {name: logits(one, clip) for name, clip in own.items()}
    together = one.forward(one.prepare([*own.values()], [ASKED] * len(own))).logits[:, -1]
    assert torch.allclose(together, torch.stack([*before.values()]), atol=1e-4)
    more = 0 if combine == "add" else 1
    if combine != "compact":  # whose film without sound has the few tokens, too
        assert [placeholders(one, clip) for clip in (FILM, SOUND, MUTE)] == [count + more for count in counts]
    for name in own:
        moved(one, FILM, name)
        for other, clip in own.items():
            changed = not torch.equal(logits(one, clip), before[other])
            assert changed == (other == name), f"{name} moved, {other}"
            before[other] = logits(one, clip)


def test_the_token_stands_in_front_and_is_counted(one: PatchedModel) -> None:
    marked(one, "prefix")
    inputs = one.prepare([FILM], [ASKED])
    marker = one.applied.module("marked").marker
    assert marker is not None
    place = int((inputs.input_ids[0] == one.host.placeholder).nonzero()[0])
    (embedded,) = one.calls.embedded(inputs)
    assert torch.equal(embedded[place], marker("both"))
    cost = cost_of(one.host, one.export("marked"), side_steps=(20,))
    assert cost.beside == 20 + 1 and cost.fusion_params["marker"] == one.host.dim


def test_the_file_has_it_and_older_files_keep_their_bytes(one: PatchedModel, tmp_path: Path) -> None:
    marked(one)
    expected = logits(one, FILM)
    path = one.export("marked").save(tmp_path / "marked.safetensors")
    one.remove_patch("marked")
    one.apply_patch(path)
    assert torch.equal(logits(one, FILM), expected)
    assert Patch.load(path).config.fusion.marker and "marker" not in make_config(one.host).canonical()
    with pytest.raises(RecipeError, match=r"fusion\.marker is about senses"):
        parse(PatchConfig, {**Patch.load(path).config.model_dump(), "senses": {}}, "here")


@pytest.mark.parametrize("combine", ["add", "prefix"])
def test_it_learns(one: PatchedModel, combine: str) -> None:
    marked(one, combine, awake=False)
    attached = one.applied.module("marked").requires_grad_()
    one.forward(one.prepare([FILM], [ASKED])).logits.square().mean().backward()
    assert attached.marker is not None and all(
        each.grad is not None and each.grad.any() for each in attached.marker.parameters()
    )
