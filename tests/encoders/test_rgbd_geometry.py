"""Depth as a sense: tokens of the vision tower with their points, and a patch that learns position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from families import make_base
from patched import WAYS, alike, portrait
from scans import room, seen, write_embodiedscan, write_scannet
from small import awaken, make_clip
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.config import FusionConfig, LoraConfig, PatchConfig
from pave.encoder import Encoder, load_encoder
from pave.errors import EncoderError, MediaError
from pave.evaluation.cost import cost_of
from pave.media.clip import Clip
from pave.media.unproject import at_centres
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.training.trainee import calibrate

QUESTION = "What is in front?"
FUSIONS = {
    "folded": FusionConfig(width=32, heads=2),
    "official": FusionConfig(kind="official", width=32, heads=2),
    "interleave": FusionConfig(width=32, heads=2, combine="interleave"),
}


def depths(base: Host, **options: Any) -> Encoder:
    return load_encoder("rgbd-geometry", **options).on(base)


def placed(base: Host, **changes: Any) -> PatchConfig:
    """A patch with the sense depth."""
    facts = depths(base, grid=[2, 3]).spec.facts("time")
    fields: dict[str, Any] = {"fusion": FUSIONS["folded"], "lora": LoraConfig(r=4)} | changes
    return PatchConfig(name="depths", base=base.facts(), senses={"depth": facts}, **fields)


# Tokens


def test_tokens_are_the_base_s_features_followed_by_their_points(playroom_host):
    scan = room()
    side, spec = seen(depths(playroom_host), scan), depths(playroom_host).spec
    assert (spec.dim, spec.grid, spec.points) == (playroom_host.vision_dim + 3, playroom_host.grid, True)
    assert side.x.shape == (4, *playroom_host.grid, spec.dim) and side.x.dtype == torch.float32
    features = rearrange(
        playroom_host.encode([playroom_host.pixels(Clip(scan.rgb))]).vision[0],
        "v (h w) c -> v h w c",
        h=playroom_host.grid[0],
    )
    assert torch.allclose(side.x[..., :-3], features, atol=1e-5)
    assert torch.equal(side.x[..., -3:], at_centres(scan, playroom_host.grid)[0])
    assert side.kind == "set" and side.valid.all()


def test_a_finer_grid_of_points_repeats_features_and_a_coarser_one_averages_them(playroom_host):
    scan = room()
    (y, x), whole = playroom_host.grid, seen(depths(playroom_host), scan)
    fine, coarse = (seen(depths(playroom_host, grid=grid), scan) for grid in ([2 * y, 3 * x], [1, 2]))
    assert torch.allclose(
        fine.x[..., :-3], repeat(whole.x[..., :-3], "v h w c -> v (h a) (w b) c", a=2, b=3), atol=1e-6
    )
    assert torch.equal(fine.x[..., -3:], at_centres(scan, (2 * y, 3 * x))[0])
    want = whole.x[..., :-3].unflatten(2, (2, -1)).mean((1, 3), keepdim=True).squeeze(3)
    assert torch.allclose(coarse.x[..., :-3], want, atol=1e-6)


def test_a_token_depends_on_its_own_view_only(playroom_host):
    encoder, scan = depths(playroom_host), room(9)
    whole = seen(encoder, scan)
    for view in (0, 8):
        assert torch.equal(seen(encoder, scan.take(lambda count, view=view: [view])).x[0], whole.x[view])


def test_a_base_of_pairs_encodes_each_view_independently(tokenizer: PreTrainedTokenizerFast):
    base = make_base(tokenizer, family="qwen2_vl")
    scan = room(3)
    assert base.pair == 2
    whole = seen(depths(base), scan)
    assert len(whole.x) == 3
    assert torch.equal(seen(depths(base), scan.take(lambda count: [1])).x[0], whole.x[1])


def test_holes_are_invalid_unless_mask_holes_is_false(playroom_host):
    scan = room()
    depth = scan.depth.clone()
    depth[1, :15] = 0
    side = seen(depths(playroom_host, grid=[2, 2]), replace(scan, depth=depth))
    assert side.valid.all(-1).tolist() == [[True, True], [False, True], [True, True], [True, True]]
    assert not seen(depths(playroom_host), replace(scan, depth=0 * depth)).present
    unmasked = seen(depths(playroom_host, grid=[2, 2], mask_holes=False), replace(scan, depth=depth))
    assert unmasked.valid.all()
    assert torch.allclose(
        unmasked.x[1, 0, 0, -3:], (scan.world @ scan.cam_to_world[1])[:3, 3].float()
    )  # the camera itself


@pytest.mark.parametrize("write", [write_scannet, write_embodiedscan])
def test_a_scan_can_be_passed_as_a_path(write: Callable[..., Any], playroom_host, tmp_path):
    scan = room(3)
    path = write(tmp_path / "scene" if write is write_scannet else tmp_path, scan)
    side, want = seen(depths(playroom_host), path), seen(depths(playroom_host), scan)
    assert torch.allclose(side.x[..., -3:], want.x[..., -3:], atol=2e-3)  # millimetres along slanting rays
    timed = seen(depths(playroom_host, fps=10, frames=2), path)
    assert timed.kind == "sequence"
    assert timed.times.tolist() == ([0, 4.0] if write is write_scannet else [0, 2.0])
    assert torch.equal(timed.x, side.x[[0, 2]])


def test_the_views_of_a_scan_that_is_the_clip_come_with_its_key_frames(playroom_host, tmp_path):
    """Each of its pictures is on screen for a second, whatever the numbers of the files are."""
    folder = write_scannet(tmp_path / "scene", room(7))
    next(iter(sorted((folder / "pose").iterdir()))).write_text("-inf " * 16)
    clip = Clip.read(folder, frames=3)
    encoder = depths(playroom_host, fps=10, frames=3)
    side, alone = encoder.encode(clip.beside({"depth": str(folder)})), encoder.encode(clip)
    assert side is not None and alone is not None and clip.times is not None
    assert side.times.tolist() == alone.times.tolist() == clip.times.tolist() == [0, 2, 5]
    assert torch.equal(side.x, alone.x)
    assert encoder.encode(clip.beside({"depth": None})) is None
    other = encoder.encode(clip.beside({"depth": write_scannet(tmp_path / "other", room(7))}))
    assert other is not None and other.times.tolist() != clip.times.tolist()


def test_views_with_times_are_a_sequence(playroom_host):
    side = seen(depths(playroom_host), replace(room(3), times=torch.tensor([0.5, 1.0, 4.0]).double()))
    assert (side.kind, side.times.tolist()) == ("sequence", [0.5, 1.0, 4.0])
    assert torch.equal(side.spans, side.times[:, None].expand(-1, 2))


def test_the_number_of_views_is_limited(playroom_host):
    scan = room(9)
    assert torch.equal(seen(depths(playroom_host, frames=3), scan).x, seen(depths(playroom_host), scan).x[[0, 4, 8]])


# Spec


def test_the_spec_needs_a_base(playroom_host):
    encoder = load_encoder("rgbd-geometry")
    with pytest.raises(EncoderError, match=r"has no base yet; call on\(base\) first"):
        _ = encoder.spec
    assert encoder.on(playroom_host).fingerprint == playroom_host.vision_fingerprint()


def test_options_are_resolved_and_distinguished(playroom_host):
    plain = depths(playroom_host).spec
    assert plain.options == {
        "preset": "base",
        "frames": 32,
        "fps": None,
        "mask_holes": True,
        "grid": list(playroom_host.grid),
    }
    assert depths(playroom_host, **plain.options).spec == plain
    assert depths(playroom_host, fps=30).spec.preprocessing == depths(playroom_host, fps=30.0).spec.preprocessing
    others = [{"fps": 30}, {"frames": 8}, {"grid": [1, 1]}, {"mask_holes": False}]
    assert len({depths(playroom_host, **each).spec.preprocessing for each in [{}, *others]}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "clip"}, "known: base, llava3d"),
        ({"frames": 0}, "frames=0"),
        ({"frames": 2.5}, "frames=2.5"),
        ({"frames": 10**9}, "frames, at most 1,024, got frames=1000000000"),
        ({"grid": [2]}, r"grid=\[2\]"),
        ({"grid": [2, True]}, r"grid=\[2, True\]"),
        ({"grid": [0, 2]}, r"grid=\[0, 2\]"),
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": "30"}, "fps='30'"),
        ({"mask_holes": 1}, "mask_holes=true or false, got 1"),
        ({"preset": "llava3d", "grid": [2, 2]}, "24 x 24"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(EncoderError, match=message):
        load_encoder("rgbd-geometry", **options)


def test_other_objects_than_scans_are_refused_and_none_is_absent(playroom_host, tmp_path):
    encoder, clip = depths(playroom_host), make_clip(sound=False)
    assert encoder.encode(clip) is None
    assert encoder.encode(replace(clip, signals={"depth": None})) is None
    with pytest.raises(EncoderError, match="depth= is a int; pass an RGBD, the path of a scan, or None"):
        seen(encoder, 3)
    with pytest.raises(MediaError, match="no such folder or file"):
        seen(encoder, tmp_path / "gone")


# A patch


@pytest.mark.parametrize("name", ["folded", "official"])
@pytest.mark.parametrize("way", WAYS)
def test_an_untrained_patch_changes_no_logit_and_leaves_no_trace(name: str, way: str, playroom):
    run: Callable[[PatchedModel, Inputs], Tensor] = WAYS[way]
    clip, scan = make_clip(frames=8, sound=False), room()
    before, state = run(playroom, playroom.prepare([clip], [QUESTION])), portrait(playroom)
    playroom.attach("depths", placed(playroom.host, fusion=FUSIONS[name]))
    try:
        clip = replace(clip, signals={"depth": scan})
        inputs = playroom.prepare([clip], [QUESTION])
        assert inputs.uses[0].sensing.all()
        assert torch.equal(run(playroom, inputs), before)
        awaken(playroom, "depths")
        assert not torch.equal(
            playroom.forward(inputs).logits, playroom.forward(playroom.prepare([clip], [QUESTION], patches=[])).logits
        )
    finally:
        playroom.remove_patch("depths")
    assert alike(portrait(playroom), state)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_patch_reads_points_is_saved_with_its_mlp_and_skips_clips_without_depth(name: str, playroom, tmp_path):
    clip, scan = make_clip(frames=8, sound=False), room()
    near = replace(scan, depth=scan.depth * 0.5)
    with_depth, closer = (replace(clip, signals={"depth": each}) for each in (scan, near))

    def logits(clip: Clip) -> Tensor:
        with torch.no_grad():
            return playroom.forward(playroom.prepare([clip], [QUESTION])).logits

    base = logits(clip)
    playroom.attach("depths", placed(playroom.host, fusion=FUSIONS[name]), trainable=True)
    try:
        calibrate(playroom.applied.module("depths"), [playroom.encode_clip(with_depth)])
        awaken(playroom, "depths")
        want = logits(with_depth)
        assert not torch.equal(logits(closer), want)  # the pictures are the same
        assert torch.equal(logits(clip), base)
        patch = playroom.export("depths")
    finally:
        playroom.remove_patch("depths")
    assert {key for key in patch.tensors if ".place." in key} == {
        f"fusion.depth.place.{key}"
        for key in (
            "standard.mean",
            "standard.gain",
            *(f"mlp.{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")),
        )
    }
    playroom.apply_patch(Patch.load(patch.save(tmp_path / "patch.safetensors")))
    try:
        assert torch.equal(logits(with_depth), want)
        assert playroom.ask(with_depth, QUESTION).signals == {"depth": "present: 4 steps from 0.00 s"}
        assert playroom.ask(clip, QUESTION, depth=scan).patches == ("depths",)
        assert playroom.ask(clip, QUESTION).signals == {"depth": "absent: the clip has no depth"}
    finally:
        playroom.remove_patch("depths")


def test_a_profile_counts_the_position_mlp(playroom):
    host = playroom.host
    costs = []
    for points in (True, False):
        config = placed(host)
        facts = config.senses["depth"].model_copy(update={"points": points, "dim": host.vision_dim + 3 * points})
        config = config.model_copy(update={"senses": {"depth": facts}})
        playroom.attach("depths", config)
        costs.append(cost_of(host, playroom.export("depths")))
        playroom.remove_patch("depths")
    q, steps = host.vision_dim, host.frames * 6
    assert costs[0].side["depth"] == (host.frames, 2, 3)
    assert costs[0].params - costs[1].params == (3 + 1 + 2 + q + 1) * q
    for counted in ("honest", "paper"):
        with_points, without = (getattr(cost, counted).fusion["depth"] for cost in costs)
        assert with_points - without == 2 * steps * (3 * q + q * q)
