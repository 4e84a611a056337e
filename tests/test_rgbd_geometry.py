"""Depth as a sense: tokens of the base's own eyes that know their points, and a patch that learns to place them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import awaken, make_base, make_clip
from einops import rearrange, repeat
from patched import WAYS, alike, portrait
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scans import room, write_embodiedscan, write_scannet
from test_languagebind import released
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

from pave.base import Base
from pave.config import FusionConfig, LoraConfig, PatchConfig
from pave.cost import cost_of
from pave.encoder import CONSENT, Encoder, load_encoder
from pave.errors import EncoderError, MediaError
from pave.inputs import Inputs
from pave.languagebind import tower
from pave.media import Clip
from pave.model import PatchedModel
from pave.patch import Patch
from pave.release import INDEX
from pave.sidechannel import SideTokens
from pave.unproject import at_centres, at_corners

QUESTION = "What is in front?"
FUSIONS = {
    "folded": FusionConfig(width=32, heads=2),
    "official": FusionConfig(kind="official", width=32, heads=2),
    "interleave": FusionConfig(width=32, heads=2, combine="interleave"),
}


def depths(base: Base, **options: Any) -> Encoder:
    return load_encoder("rgbd-geometry", **options).on(base)


def seen(encoder: Encoder, scan: object) -> SideTokens:
    side = encoder.encode(replace(make_clip(sound=False), signals={"depth": scan}))
    assert side is not None
    return side


def placed(base: Base, **changes: Any) -> PatchConfig:
    """A patch that sees depth."""
    facts = depths(base, grid=[2, 3]).spec.facts("time")
    fields: dict[str, Any] = {"fusion": FUSIONS["folded"], "lora": LoraConfig(r=4)} | changes
    return PatchConfig(name="depths", base=base.facts(), senses={"depth": facts}, **fields)


# Tokens


def test_tokens_are_the_base_s_features_with_their_points_behind(eyes):
    scan = room()
    side, spec = seen(depths(eyes), scan), depths(eyes).spec
    assert (spec.dim, spec.grid, spec.points) == (eyes.vision_dim + 3, eyes.grid, True)
    assert side.x.shape == (4, *eyes.grid, spec.dim) and side.x.dtype == torch.float32
    features = rearrange(eyes.encode([eyes.pixels(Clip(scan.rgb))]).vision[0], "v (h w) c -> v h w c", h=eyes.grid[0])
    assert torch.allclose(side.x[..., :-3], features, atol=1e-5)
    assert torch.equal(side.x[..., -3:], at_centres(scan, eyes.grid)[0])
    assert side.kind == "set" and side.valid.all()


def test_a_finer_grid_of_points_repeats_features_and_a_coarser_one_averages_them(eyes):
    scan = room()
    (y, x), whole = eyes.grid, seen(depths(eyes), scan)
    fine, coarse = (seen(depths(eyes, grid=grid), scan) for grid in ([2 * y, 3 * x], [1, 2]))
    assert torch.allclose(
        fine.x[..., :-3], repeat(whole.x[..., :-3], "v h w c -> v (h a) (w b) c", a=2, b=3), atol=1e-6
    )
    assert torch.equal(fine.x[..., -3:], at_centres(scan, (2 * y, 3 * x))[0])
    want = whole.x[..., :-3].unflatten(2, (2, -1)).mean((1, 3), keepdim=True).squeeze(3)
    assert torch.allclose(coarse.x[..., :-3], want, atol=1e-6)


def test_a_token_hangs_on_its_own_view_alone(eyes):
    encoder, scan = depths(eyes), room(9)
    whole = seen(encoder, scan)
    for view in (0, 8):
        assert torch.equal(seen(encoder, scan.take(lambda count, view=view: [view])).x[0], whole.x[view])


def test_a_base_that_looks_at_pairs_looks_at_each_view_alone(tokenizer: PreTrainedTokenizerFast):
    base = make_base(tokenizer, family="qwen2_vl")
    scan = room(3)
    assert base.pair == 2
    whole = seen(depths(base), scan)
    assert len(whole.x) == 3
    assert torch.equal(seen(depths(base), scan.take(lambda count: [1])).x[0], whole.x[1])


def test_holes_are_not_valid_and_change_nothing_that_is_read(eyes):
    scan = room()
    depth = scan.depth.clone()
    depth[1, :15] = 0
    side = seen(depths(eyes, grid=[2, 2]), replace(scan, depth=depth))
    assert side.valid.all(-1).tolist() == [[True, True], [False, True], [True, True], [True, True]]
    assert not seen(depths(eyes), replace(scan, depth=0 * depth)).present
    kept = seen(depths(eyes, grid=[2, 2], mask_holes=False), replace(scan, depth=depth))
    assert kept.valid.all()
    assert torch.allclose(kept.x[1, 0, 0, -3:], (scan.world @ scan.cam_to_world[1])[:3, 3].float())  # the camera itself


@pytest.mark.parametrize("write", [write_scannet, write_embodiedscan])
def test_a_scan_may_be_named_by_its_path(write: Callable[..., Any], eyes, tmp_path):
    scan = room(3)
    words = write(tmp_path / "scene" if write is write_scannet else tmp_path, scan)
    side, want = seen(depths(eyes), words), seen(depths(eyes), scan)
    assert torch.allclose(side.x[..., -3:], want.x[..., -3:], atol=2e-3)  # millimetres along slanting rays
    timed = seen(depths(eyes, fps=10, frames=2), words)
    assert timed.kind == "sequence"
    assert timed.times.tolist() == ([0, 4.0] if write is write_scannet else [0, 2.0])
    assert torch.equal(timed.x, side.x[[0, 2]])


def test_times_that_are_known_make_a_sequence(eyes):
    side = seen(depths(eyes), replace(room(3), times=torch.tensor([0.5, 1.0, 4.0]).double()))
    assert (side.kind, side.times.tolist()) == ("sequence", [0.5, 1.0, 4.0])
    assert torch.equal(side.spans, side.times[:, None].expand(-1, 2))


def test_at_most_so_many_views_are_seen(eyes):
    scan = room(9)
    assert torch.equal(seen(depths(eyes, frames=3), scan).x, seen(depths(eyes), scan).x[[0, 4, 8]])


# What it is


def test_until_it_is_on_a_base_it_cannot_say_what_it_is(eyes):
    encoder = load_encoder("rgbd-geometry")
    with pytest.raises(EncoderError, match=r"has none yet; give it one by on\(base\)"):
        _ = encoder.spec
    assert encoder.on(eyes).fingerprint == eyes.eyes()


def test_options_are_resolved_and_told_apart(eyes):
    plain = depths(eyes).spec
    assert plain.options == {
        "preset": "base",
        "frames": 32,
        "fps": None,
        "mask_holes": True,
        "grid": list(eyes.grid),
    }
    assert depths(eyes, **plain.options).spec == plain
    assert depths(eyes, fps=30).spec.preprocessing == depths(eyes, fps=30.0).spec.preprocessing
    others = [{"fps": 30}, {"frames": 8}, {"grid": [1, 1]}, {"mask_holes": False}]
    assert len({depths(eyes, **each).spec.preprocessing for each in [{}, *others]}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "clip"}, "known: base, llava3d"),
        ({"frames": 0}, "frames=0"),
        ({"frames": 2.5}, "frames=2.5"),
        ({"frames": 10**9}, "up to 1024, got frames=1000000000"),
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
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(EncoderError, match=message):
        load_encoder("rgbd-geometry", **options)


def test_what_is_no_scan_is_refused_and_none_is_absent(eyes, tmp_path):
    encoder, clip = depths(eyes), make_clip(sound=False)
    assert encoder.encode(clip) is None
    assert encoder.encode(replace(clip, signals={"depth": None})) is None
    with pytest.raises(EncoderError, match="depth= is a int; give an RGBD, the path of a scan, or None"):
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
def test_a_patch_hears_points_is_saved_with_its_mlp_and_skips_clips_without_depth(name: str, playroom, tmp_path):
    clip, scan = make_clip(frames=8, sound=False), room()
    near = replace(scan, depth=scan.depth * 0.5)
    with_depth, closer = (replace(clip, signals={"depth": each}) for each in (scan, near))

    def said(given: Clip) -> Tensor:
        with torch.no_grad():
            return playroom.forward(playroom.prepare([given], [QUESTION])).logits

    base = said(clip)
    playroom.attach("depths", placed(playroom.host, fusion=FUSIONS[name]), trainable=True)
    try:
        playroom.calibrate("depths", [playroom.encode_clip(with_depth)])
        awaken(playroom, "depths")
        want = said(with_depth)
        assert not torch.equal(said(closer), want)  # the pictures are the same
        assert torch.equal(said(clip), base)
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
        assert torch.equal(said(with_depth), want)
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


# LLaVA-3D

geometry = import_module("pave.encoders.rgbd_geometry")
HEAD = "weights.positional_embedding.position_embedding_head."
SMALL = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=336,
    patch_size=14,
    hidden_act="quick_gelu",
    projection_dim=16,
)


def golden() -> dict[str, Tensor]:
    with safe_open(Path(__file__).parent / "golden" / "llava3d_geometry.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def llava3d() -> Encoder:
    """The encoder with small seeded networks in place of the released ones."""
    torch.manual_seed(0)
    encoder = load_encoder("rgbd-geometry", preset="llava3d", frames=3)
    encoder.network = geometry.Network(SMALL, 24).eval()  # type: ignore[attr-defined]
    return encoder


def test_llava3ds_tokens_are_its_own():
    known = golden()
    network = geometry.Network(CLIPVisionConfig(**{**SMALL.to_dict(), "hidden_size": 1024}), 24)
    weights = {name.removeprefix(HEAD): value for name, value in known.items() if name.startswith(HEAD)}
    network.position.load_state_dict(weights)
    points = known["xyz"].view(-1, 3)[known["point_index"]]
    with torch.no_grad():
        assert torch.allclose(known["features"] + network.position(points), known["tokens"], rtol=0, atol=1e-5)


def test_its_features_are_clips_and_its_points_those_of_the_square_that_clip_sees(llava3d):
    scan, side = room(3), seen(llava3d, room(3))
    assert (side.kind, side.x.shape, side.x.dtype) == ("set", (3, 24, 24, 32), torch.float32) and side.valid.all()
    clip = CLIPVisionModel(SMALL).eval()
    clip.load_state_dict(llava3d.network.clip.clip.state_dict(), strict=False)  # type: ignore[union-attr]
    clip.embeddings.position_embedding = llava3d.network.clip.clip.embeddings.position_embedding
    with torch.no_grad():
        hidden = clip(geometry.pixels(scan.rgb), output_hidden_states=True).hidden_states
        want = hidden[-2][:, 1:] + llava3d.network.position(at_corners(scan, 336, 24)[0]).flatten(1, 2)
    assert torch.allclose(side.x.flatten(1, 2), want, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (97, 61), (336, 336), (400, 1000)])
def test_pixels_are_scaled_and_cut_as_clip_wants_them(size):
    frames = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    height, width = (336 * side // min(size) for side in size)
    picture = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 336) // 2, (height - 336) // 2
    square = torch.from_numpy(np.array(picture.crop((left, top, left + 336, top + 336)))).permute(2, 0, 1) / 255
    want = (square - torch.tensor(geometry.MEAN)[:, None, None]) / torch.tensor(geometry.STD)[:, None, None]
    off = (geometry.pixels(frames)[0] - want).abs() * 255 * min(geometry.STD)
    assert off.max() < 2.1 and off.mean() < 0.05  # steps of 255; Pillow rounds between its two passes


def test_its_views_are_picked_as_upstream_picks_them_and_holes_are_kept(llava3d):
    assert [llava3d.pick(count) for count in (9, 11, 3, 2)] == [[0, 3, 6], [0, 3, 6], [0, 1, 2], [0, 1, 0]]
    scan = room(2)
    scan = replace(scan, depth=0 * scan.depth)
    side = seen(llava3d, scan)
    assert len(side.x) == 3 and torch.equal(side.x[0], side.x[2]) and side.valid.all()
    masked = load_encoder("rgbd-geometry", preset="llava3d", mask_holes=True)
    masked.network = llava3d.network  # type: ignore[attr-defined]
    assert not seen(masked, scan).present


def test_what_it_is_can_be_read_without_weights_and_hangs_on_no_base(eyes, llava3d):
    spec = load_encoder("rgbd-geometry", preset="llava3d", weights="/gone").on(eyes).spec
    assert (spec.dim, spec.grid, spec.points, spec.licence) == (1024, (24, 24), False, "CC-BY-NC-SA-4.0")
    assert spec == load_encoder("rgbd-geometry", **spec.options).spec and "gone" not in str(spec)


def test_every_weight_of_clip_and_of_the_mlp_has_a_place():
    with torch.device("meta"):
        network = geometry.Network(geometry.VIT_L_336, 24)
    weights = {name: value.to("meta") for name, value in released(False, 1 + 24 * 24).items()}  # CLIP's names and sizes
    tower(weights, "CLIP", network.clip)
    assert sum(each.numel() for each in network.position.parameters()) == 1_055_744


@pytest.fixture
def research(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONSENT, "1")


def write_llava3d(folder: Path, prefix: str = geometry.HEADS[0], shard: str = "model-00002.safetensors") -> Path:
    folder.mkdir()
    weights = {prefix + name.removeprefix(HEAD): value for name, value in golden().items() if name.startswith(HEAD)}
    save_file(weights | {"model.layers.0.weight": torch.ones(1)}, folder / shard)
    index = {"weight_map": dict.fromkeys(weights, shard)}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_weights_are_opened_once_the_user_says_that_the_use_is_not_commercial(tmp_path, monkeypatch):
    encoder = load_encoder("rgbd-geometry", preset="llava3d", weights=write_llava3d(tmp_path / "a"))
    monkeypatch.delenv(CONSENT, raising=False)
    with pytest.raises(EncoderError, match=r"preset=llava3d .* for research only; .* set PAVE_NONCOMMERCIAL=1"):
        seen(encoder, room(1))


@pytest.mark.usefixtures("research")
@pytest.mark.parametrize("prefix", geometry.HEADS)
def test_the_mlp_is_found_in_a_release_in_shards_and_in_a_file(prefix, tmp_path, monkeypatch):
    folder, want = write_llava3d(tmp_path / "a", prefix), golden()[f"{HEAD}3.weight"]
    assert torch.equal(geometry.position(str(folder / "model-00002.safetensors"))[3].weight, want)
    if prefix == geometry.HEADS[0]:
        assert torch.equal(geometry.position(str(folder))[3].weight, want)
    monkeypatch.setenv(geometry.PLACE, str(folder / "model-00002.safetensors"))
    monkeypatch.setenv(geometry.CLIP_PLACE, str(tmp_path / "no-clip"))
    with pytest.raises(EncoderError, match="no-clip: no such folder or file"):  # the MLP was read before
        seen(load_encoder("rgbd-geometry", preset="llava3d"), room(1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / INDEX).write_text("{"), "is not JSON"),
        (lambda f: (f / INDEX).write_text("{}"), "its weight_map does not name"),
        (lambda f: (f / INDEX).unlink(), "holds no model.safetensors or .*index.json"),
        (lambda f: (f / "model-00002.safetensors").unlink(), "holds no model-00002.safetensors"),
        (lambda f: (f / "model-00002.safetensors").write_bytes(b"<html>"), "cannot be read"),
        (
            lambda f: save_file({"x": torch.ones(1)}, f / "model-00002.safetensors"),
            "cannot be read .*does not contain tensor",
        ),
    ],
)
def test_a_damaged_release_is_refused(damage: Callable[[Path], Any], message: str, tmp_path):
    folder = write_llava3d(tmp_path / "a")
    damage(folder)
    with pytest.raises(EncoderError, match=message):
        geometry.position(str(folder))
