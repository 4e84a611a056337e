"""LanguageBind's towers: equal to the originals, from every kind of release, and on the clip's clock."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from clips import click, counting_frames, write_clip
from hub_server import HubServer
from huggingface_hub import constants
from places import GOLDEN
from released import languagebind_release
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig

from pave.encoder import Encoder, load_encoder
from pave.errors import EncoderError, MediaError
from pave.media.clip import Clip
from pave.senses import languagebind
from pave.senses.languagebind import GROUP, VIT_L, Tower, tower
from pave.senses.weights import Release

PATCHES = (16, 16)
Weights = dict[str, Tensor]


def golden(name: str) -> tuple[Weights, Weights, CLIPVisionConfig]:
    """Weights, inputs and outputs of a small original (seeded weights, nothing trained), and its config."""
    with safe_open(GOLDEN / f"languagebind_{name}_tiny.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["cfg"])
    weights = {key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")}
    return weights, tensors, CLIPVisionConfig(**{key: config[key] for key in config if hasattr(VIT_L, key)})


def small(weights: Weights, config: CLIPVisionConfig, scale: float | None = None) -> Tower:
    with torch.device("meta"):
        built = Tower(config, PATCHES, temporal=True)
    return tower(weights, "a release", built, scale)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The encoder with a small tower in place of the released one."""
    weights, _, config = golden("video")
    encoder = load_encoder("languagebind-video")
    encoder.network = small(weights, config)  # type: ignore[attr-defined]
    return encoder


def frames(count: int, size: tuple[int, int] = (48, 64)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), generator=draw, dtype=torch.uint8)


def seconds(count: int, rate: float = 2) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / rate


# The towers


def test_the_video_tower_equals_the_original():
    weights, known, config = golden("video")
    network, images = small(weights, config), known["input"][0].transpose(0, 1)
    with torch.no_grad():
        hidden, pooled = network(images), network.pooled(images, (2, 2))
    assert torch.allclose(hidden, known["hidden_minus2"][0], atol=5e-5, rtol=0)
    assert torch.allclose(pooled.flatten(1, 2), known["pave_tokens"][:, 1:], atol=5e-5, rtol=0)
    assert not torch.allclose(hidden, known["last"][0], atol=0.1)


def test_the_audio_tower_equals_the_original():
    weights, known, config = golden("audio")
    with torch.device("meta"):
        built = Tower(config, (8, 74), temporal=False)
    with torch.no_grad():
        hidden = tower(weights, "a release", built)(known["input"])
    assert torch.allclose(hidden, known["hidden_minus2"][0], atol=5e-5, rtol=0)


@pytest.mark.parametrize(("temporal", "grid", "count"), [(True, PATCHES, 655), (False, (8, 74), 391)])
def test_every_tensor_of_a_release_fits_the_network_exactly(temporal, grid, count):
    with torch.device("meta"):
        built = Tower(VIT_L, grid, temporal=temporal)
    assert len(built.clip.state_dict()) == count
    tower(languagebind_release(temporal, 1 + grid[0] * grid[1]), "a release", built)


def with_lora(weights: Weights, base: str = ".weight") -> Weights:
    """A release with LoRA, whose merged weights are `weights` for alpha / r = 2; `base`: PEFT's suffix of them."""
    draw, apart = torch.Generator().manual_seed(0), {}
    for name, tensor in weights.items():
        stem = name.replace("encoder.layers.", "encoder.base_model.model.layers.").removesuffix(".weight")
        if ".temporal_attn." in name and name.endswith(".weight"):
            a, b = torch.randn(2, 64, generator=draw) / 8, torch.randn(64, 2, generator=draw) / 8
            apart |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
            apart[stem + base] = tensor - 2 * b @ a
        else:
            apart[name.replace("encoder.layers.", "encoder.base_model.model.layers.")] = tensor
    return apart


@pytest.mark.parametrize("base", [".weight", ".base_layer.weight"])
def test_a_release_with_lora_is_merged(base):
    weights, known, config = golden("video")
    images = known["input"][0].transpose(0, 1)
    apart = with_lora(weights, base)
    with torch.no_grad():
        hidden, other = small(apart, config, 2.0)(images), small(apart, config, 1.0)(images)
    assert torch.allclose(hidden, known["hidden_minus2"][0], atol=5e-5, rtol=0)
    assert not torch.allclose(other, known["hidden_minus2"][0], atol=5e-3, rtol=0)


def first(weights: Weights, word: str) -> str:
    return next(name for name in weights if word in name)


@pytest.mark.parametrize(
    ("change", "scale", "message"),
    [
        (lambda w: w.pop(first(w, "temporal_embedding")), 2.0, "1 of its weights are missing .*temporal_embedding"),
        (lambda w: w.clear(), 2.0, "88 of its weights are missing"),
        (lambda w: w.update({"vision_model.extra": torch.ones(1)}), 2.0, "1 of its weights are unexpected .extra"),
        (
            lambda w: w.update({first(w, "class_embedding"): torch.ones(8, 64)}),
            2.0,
            r"class_embedding is \(8, 64\) of torch.float32, the network needs \(64,\)",
        ),
        (lambda w: w.update({first(w, "pre_layrnorm"): torch.ones(64, dtype=torch.int8)}), 2.0, "of torch.int8"),
        (lambda w: w.pop(first(w, "lora_A")), 2.0, "lacks its base weight or the other LoRA factor"),
        (lambda w: w.pop(first(w, "lora_B")), 2.0, "lacks its base weight or the other LoRA factor"),
        (
            lambda w: w.pop(first(w, "temporal_attn.q_proj.weight")),
            2.0,
            "lacks its base weight or the other LoRA factor",
        ),
        (
            lambda w: w.update({first(w, "lora_A"): torch.ones(2, 63)}),
            2.0,
            r"its LoRA \(2, 63\) and \(64, 2\) does not",
        ),
        (lambda w: None, None, "has no lora_alpha and lora_r"),
    ],
)
def test_a_damaged_release_is_refused(change: Callable[[Weights], object], scale: float | None, message: str):
    weights, _, config = golden("video")
    weights = with_lora(weights)
    change(weights)
    with pytest.raises(EncoderError, match=f"a release: .*{message}"):
        small(weights, config, scale)


# Sources of weights


class Harm:
    def __reduce__(self) -> tuple:
        return print, ("harm",)


def harmful() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": Harm()}, file)
    return file.getvalue()


def save_small(path: Path, lora: bool = False) -> None:
    weights, _, _ = golden("video")
    weights = with_lora(weights) if lora else weights
    if path.suffix == ".bin":
        torch.save(weights, path)
    else:
        save_file(weights, path)


@pytest.mark.parametrize("place", ["model.safetensors", "pytorch_model.bin"])
def test_both_formats_are_read_and_other_sizes_refused(place, tmp_path):
    save_small(tmp_path / place)
    source = tmp_path / place if place.endswith(".safetensors") else tmp_path
    with pytest.raises(EncoderError, match=r"missing \(encoder.layers.10"):
        load_encoder("languagebind-video", weights=str(source)).encode(Clip.from_frames(frames(1)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"vision_config": {"lora_alpha": 16, "lora_r": 8}}', r"missing \(encoder.layers.10"),
        ('{"vision_config": {"lora_alpha": 16, "lora_r": 0}}', "has no lora_alpha"),
        ('{"vision_config": 1}', "has no lora_alpha"),
        ("{", "is not JSON"),
        (None, "holds no config.json"),
    ],
)
def test_the_scale_of_lora_is_read_from_the_config(config, message, tmp_path):
    save_small(tmp_path / "model.safetensors", lora=True)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(EncoderError, match=message):
        languagebind.read(Release(repo=str(tmp_path), remedy=languagebind.REMEDY), PATCHES, temporal=True)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"<!doctype html>", "is a web page"),
        ("model.safetensors", b"", "is not a safetensors file"),
        ("pytorch_model.bin", harmful(), "may do harm"),
        ("other.bin", b"", "holds no model.safetensors or pytorch_model.bin"),
    ],
    ids=["page", "empty", "harm", "other"],
)
def test_a_folder_without_a_release_is_refused(name, data, message, tmp_path, capfd):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EncoderError, match=message):
        languagebind.read(Release(repo=str(tmp_path), remedy=languagebind.REMEDY), PATCHES, temporal=True)
    assert "harm\n" not in capfd.readouterr().out


def test_weights_come_from_the_hub(tmp_path, monkeypatch):
    save_small(tmp_path / "pytorch_model.bin")
    clip = Clip.from_frames(frames(1))
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("tester/bind", {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
        server.create("tester/empty", {"README.md": b""})
        for repo, message in (
            ("bind", r"missing \(encoder.layers.10"),
            ("empty", "has no such file"),
            ("no", "not a repo"),
        ):
            with pytest.raises(EncoderError, match=message):
                load_encoder("languagebind-video", release=f"tester/{repo}").encode(clip)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"is not in the cache .*; go online once"):
        load_encoder("languagebind-video").encode(clip)
    with pytest.raises(EncoderError, match="not a local folder or file, and not the name of a Hub repo"):
        load_encoder("languagebind-video", weights=str(tmp_path / "gone")).encode(clip)


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch):
    monkeypatch.setenv("PAVE_LANGUAGEBIND_VIDEO", "/nowhere")
    spec = load_encoder("languagebind-video", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("fast", 1024, 2, (2, 2), "MIT")
    assert spec == load_encoder("languagebind-video", **spec.options).spec
    assert spec.preprocessing != load_encoder("languagebind-video", dtype="float16").spec.preprocessing
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("languagebind-video").encode(Clip.from_frames(frames(1)))


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"revision": ""}, {"release": 3}])
def test_invalid_options_are_refused(options):
    with pytest.raises(EncoderError, match=r"languagebind-video (runs in float32|needs a text)"):
        load_encoder("languagebind-video", **options)


# Tokens of a clip


@pytest.mark.parametrize(
    ("pictures", "fps", "steps"), [(1, 25, 8), (75, 25, 8), (99, 25, 8), (199, 25, 8), (200, 25, 16), (36, 3, 24)]
)
def test_a_file_is_encoded_twice_a_second_in_whole_groups(pictures, fps, steps, tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(pictures), fps, click(1, 0.5))
    clip, every = (Clip.read(path, frames=count, timeout=None) for count in (4, None))
    side = encoder.encode(clip)
    assert side is not None and side.x.shape == (steps, 2, 2, 64) and side.valid.all()
    assert side.times.tolist() == pytest.approx([i * (pictures - 1) / fps / (steps - 1) for i in range(steps)])
    assert side.spans[0].tolist() == pytest.approx([0, side.times[7].item()]) and torch.equal(
        side.spans[0], side.spans[7]
    )
    # The PAVE paper's choice of frames: int(linspace(0, N - 1, frames)).
    chosen = [i * (pictures - 1) // (steps - 1) for i in range(steps)]
    assert every.frames is not None
    tokens = torch.cat([encoder.tokens(part) for part in every.frames[chosen].split(GROUP)])  # type: ignore[attr-defined]
    assert torch.equal(side.x, tokens)


def test_a_span_of_a_file_is_encoded_independently(tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(250), 25)
    side = encoder.encode(Clip.read(path, frames=4, start=1, end=9, timeout=None))
    assert side is not None and len(side.x) == 16
    assert (side.times[0].item(), side.times[-1].item()) == pytest.approx((1, 8.96))


def test_frames_of_a_file_give_the_tokens_of_frames_in_memory(tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(120), 10)
    clip, every = Clip.read(path, frames=4, timeout=None), Clip.read(path, frames=None, timeout=None)
    whole, held = encoder.encode(clip), encoder.encode(replace(every, again=None))
    assert whole is not None and held is not None and len(whole.x) == 24
    assert torch.equal(whole.x, held.x) and torch.equal(whole.times, held.times)


def test_tokens_depend_on_their_whole_group_and_no_other(encoder):
    pictures = frames(16)
    changed = pictures.clone()
    changed[8] = 255 - changed[8]
    whole, other = (encoder.encode(Clip.from_frames(each, seconds(16))) for each in (pictures, changed))
    half = encoder.encode(Clip.from_frames(pictures[:8], seconds(8)))
    assert whole is not None and other is not None and half is not None
    assert torch.equal(whole.x[:8], half.x) and torch.equal(whole.x[:8], other.x[:8])
    assert (whole.x[8:] != other.x[8:]).flatten(1).any(1).all()


def test_frames_passed_as_fast_replace_those_of_the_clip(encoder):
    key, dense = Clip.from_frames(frames(2)), (frames(16), seconds(16) + 3)
    alone, passed = encoder.encode(Clip.from_frames(*dense)), encoder.encode(Clip.from_frames(key.frames, fast=dense))
    assert alone is not None and passed is not None
    assert torch.equal(alone.x, passed.x) and torch.equal(passed.times, dense[1])
    with pytest.raises(EncoderError, match="fast= is a int"):
        encoder.encode(Clip.from_frames(key.frames, fast=3))
    with pytest.raises(MediaError, match="pass uint8"):
        Clip.from_frames(key.frames, fast=(frames(2).float(), [0, 1]))
    with pytest.raises(MediaError, match="run backwards"):
        Clip.from_frames(key.frames, fast=(frames(2), [1, 0]))


def test_a_clip_without_pictures_is_absent(tmp_path, encoder):
    path = write_clip(tmp_path / "a.m4a", None, audio=click(2, 1))
    for clip in (
        Clip.read(path, timeout=None),
        Clip.from_frames(audio=torch.zeros(1, 100), rate=100),
        Clip.from_frames(frames(2), fast=None),
    ):
        assert encoder.encode(clip) is None


def test_a_file_that_was_removed_or_damaged_since_is_refused(tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(30), 25)
    clip = Clip.read(path, frames=4)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(MediaError, match=r"a\.mp4"):
        encoder.encode(clip)
    path.unlink()
    with pytest.raises(MediaError, match="no such file"):
        encoder.encode(clip)


# Pixels


def test_pixels_are_normalised_scaled_without_smoothing_and_cropped():
    module = import_module("pave.encoders.languagebind_video")
    pixels, mean, std = module.pixels, module.MEAN, module.STD
    picture = frames(1, (300, 400))
    scaled = pixels(picture)
    assert scaled.shape == (1, 3, 224, 224)
    for c, y, x in ((0, 0, 0), (1, 100, 37), (2, 223, 223)):
        # Bilinear, by hand: the shorter side 300 becomes 224, the other 298, of which 37 are cropped on the left.
        v, u = (y + 0.5) * 300 / 224 - 0.5, (x + 37 + 0.5) * 400 / 298 - 0.5
        top, left = int(v), int(u)
        near = picture[0, c, top : top + 2, left : left + 2].double() / 255
        rows = torch.tensor([1 - v + top, v - top], dtype=torch.float64)
        columns = torch.tensor([1 - u + left, u - left], dtype=torch.float64)
        assert scaled[0, c, y, x].item() == pytest.approx(float(rows @ near @ columns - mean[c]) / std[c], abs=1e-4)
    assert torch.allclose(pixels(picture.mT), scaled.mT, atol=1e-5)
    with pytest.raises(MediaError, match="frames are 400x3"):
        pixels(frames(1, (3, 400)))
