"""Depth as in LLaVA-3D, the preset of the PAVE paper: its tokens, its views, and its release."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import GOLDEN
from released import languagebind_release
from safetensors import safe_open
from safetensors.torch import save_file
from scans import room, seen
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from pave.encoder import CONSENT, Encoder, load_encoder
from pave.errors import EncoderError
from pave.hub import catalogue
from pave.media import Clip
from pave.media.unproject import at_corners
from pave.patch.official import as_authors
from pave.senses.languagebind import tower
from pave.senses.weights import INDEX

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
    with safe_open(GOLDEN / "llava3d_geometry.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def llava3d() -> Encoder:
    """The encoder with small seeded networks in place of the released ones."""
    torch.manual_seed(0)
    encoder = load_encoder("rgbd-geometry", preset="llava3d", frames=3)
    encoder.network = geometry.Network(SMALL, 24).eval()  # type: ignore[attr-defined]
    return encoder


def test_tokens_equal_those_of_llava3d():
    known = golden()
    network = geometry.Network(CLIPVisionConfig(**{**SMALL.to_dict(), "hidden_size": 1024}), 24)
    weights = {name.removeprefix(HEAD): value for name, value in known.items() if name.startswith(HEAD)}
    network.position.load_state_dict(weights)
    points = known["xyz"].view(-1, 3)[known["point_index"]]
    with torch.no_grad():
        assert torch.allclose(known["features"] + network.position(points), known["tokens"], rtol=0, atol=1e-5)


def test_features_are_those_of_clip_and_points_those_of_its_centre_square(llava3d):
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
def test_pixels_are_scaled_and_cropped_for_clip(size):
    frames = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    height, width = (336 * side // min(size) for side in size)
    picture = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 336) // 2, (height - 336) // 2
    square = torch.from_numpy(np.array(picture.crop((left, top, left + 336, top + 336)))).permute(2, 0, 1) / 255
    want = (square - torch.tensor(geometry.MEAN)[:, None, None]) / torch.tensor(geometry.STD)[:, None, None]
    off = (geometry.pixels(frames)[0] - want).abs() * 255 * min(geometry.STD)
    assert off.max() < 2.1 and off.mean() < 0.05  # steps of 255; Pillow rounds between its two passes


def test_views_are_chosen_as_in_llava3d_and_holes_are_not_masked(llava3d):
    assert [llava3d.pick(count) for count in (9, 11, 3, 2)] == [[0, 3, 6], [0, 3, 6], [0, 1, 2], [0, 1, 0]]
    scan = room(2)
    scan = replace(scan, depth=0 * scan.depth)
    side = seen(llava3d, scan)
    assert len(side.x) == 3 and torch.equal(side.x[0], side.x[2]) and side.valid.all()
    masked = load_encoder("rgbd-geometry", preset="llava3d", mask_holes=True)
    masked.network = llava3d.network  # type: ignore[attr-defined]
    assert not seen(masked, scan).present


@pytest.mark.parametrize(
    ("views", "step", "last"), [(40, 1, 31), (63, 1, 31), (64, 2, 62), (1000, 31, 961), (32, 1, 31)]
)
def test_the_views_of_a_scan_are_those_of_the_authors(views: int, step: int, last: int) -> None:
    """In LLaVA-3D, view i is i * (n // 32): whole steps from the first view on; what is left over is never seen."""
    chosen = load_encoder("rgbd-geometry", preset="llava3d").pick(views)  # type: ignore[attr-defined]
    assert chosen == list(range(0, last + 1, step)) and len(chosen) == 32


@pytest.mark.parametrize("views", [40, 63, 1000])
def test_a_converted_patch_sees_a_scan_evenly_to_its_last_view(views: int) -> None:
    options = as_authors("rgbd-geometry", {"preset": "llava3d"})
    encoder = load_encoder("rgbd-geometry", **options)
    chosen = encoder.pick(views)  # type: ignore[attr-defined]
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    assert len(chosen) == 32 and (chosen[0], chosen[-1]) == (0, views - 1) and max(steps) - min(steps) <= 1
    plain = load_encoder("rgbd-geometry", preset="llava3d").spec
    assert encoder.spec.preprocessing != plain.preprocessing and "sampling" not in plain.options


@pytest.mark.parametrize("name", ["3d-scanqa", "3d-sqa3d"])
@pytest.mark.parametrize("views", [20, 40, 63, 1000])
def test_the_views_of_a_recipe_are_the_key_frames_of_a_scan_that_is_its_video(
    name: str, views: int, tmp_path: Path
) -> None:
    """With align: index, key frame i reads view i; in a scan of fewer views than key frames, too."""
    for number in range(views):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    recipe = catalogue.recipe(name)
    times = Clip.read(tmp_path, frames=recipe.frames).times
    assert times is not None
    key_frames = times.tolist()
    depth = recipe.senses["depth"]
    chosen = load_encoder(depth.encoder, **depth.options).pick(views)  # type: ignore[attr-defined]
    assert depth.align == "index" and chosen == key_frames
    assert len(key_frames) == min(views, 32) and key_frames[-1] == views - 1


def test_the_spec_needs_neither_weights_nor_a_base(playroom_host, llava3d):
    spec = load_encoder("rgbd-geometry", preset="llava3d", weights="/gone").on(playroom_host).spec
    assert (spec.dim, spec.grid, spec.points, spec.licence) == (1024, (24, 24), False, "CC-BY-NC-SA-4.0")
    assert spec == load_encoder("rgbd-geometry", **spec.options).spec and "gone" not in str(spec)


def test_every_weight_of_clip_and_of_the_mlp_fits_the_network():
    with torch.device("meta"):
        network = geometry.Network(geometry.VIT_L_336, 24)
    weights = {
        name: value.to("meta") for name, value in languagebind_release(False, 1 + 24 * 24).items()
    }  # CLIP's names and sizes
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


def test_weights_need_consent_to_non_commercial_use(tmp_path, monkeypatch):
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
    with pytest.raises(EncoderError, match="no-clip: not a local folder or file"):  # the MLP was read before
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
