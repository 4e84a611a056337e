"""The V-JEPA 2 encoder: equal to transformers' model, window by window, at the right times."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import click, counting_frames, write_clip
from einops import rearrange, reduce
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from pave.encoder import Encoder, load_encoder
from pave.errors import EncoderError, MediaError
from pave.media.clip import Clip
from pave.sidechannel import SideTokens

SMALL: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model() -> VJEPA2Model:
    """A small V-JEPA 2 with its predictor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VJEPA2Model(VJEPA2Config(**SMALL)).eval()
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return made


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The encoder's module, for networks of the small size."""
    found = import_module("pave.encoders.vjepa2_video")
    monkeypatch.setattr(found, "VIT_L", VJEPA2Config(**SMALL))
    return found


@pytest.fixture(scope="module")
def saved(model: VJEPA2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vjepa2")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(module: Any, saved: Path) -> Encoder:
    return load_encoder("vjepa2-video", weights=saved)


def frames(count: int, size: tuple[int, int] = (48, 64)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), generator=draw, dtype=torch.uint8)


def seconds(count: int, rate: float = 4) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / rate


def seen(encoder: Encoder, clip: Clip) -> SideTokens:
    side = encoder.encode(clip)
    assert side is not None
    return side


# The network


def test_tokens_are_the_means_of_the_outputs_of_transformers(model, module, encoder):
    pictures = frames(16)
    side = seen(encoder, Clip.from_frames(pictures, seconds(16)))
    with torch.no_grad():
        whole = model.get_vision_features(module.pixels(pictures)[None])
    known = reduce(whole, "1 (t h y w x) c -> t h w c", "mean", t=8, h=2, y=8, w=2, x=8)
    assert side.x.shape == (8, 2, 2, 48) and torch.allclose(side.x, known, atol=1e-5)
    assert known.std(dim=0).min() > 1e-3, "the comparison can fail"


def test_every_tensor_of_the_release_fits_the_network_exactly():
    """A second list of the encoder's names in VJEPA2Model, whose save_pretrained wrote the release (transformers'
    convert_vjepa2_to_hf.py); with the predictor, it has the 326.0 million parameters of the released file."""
    module = import_module("pave.encoders.vjepa2_video")
    with torch.device("meta"):
        whole = VJEPA2Model(module.VIT_L)
    d = 1024
    shapes: dict[str, tuple[int, ...]] = {"embeddings.patch_embeddings.proj.weight": (d, 3, 2, 16, 16)}
    shapes |= {"embeddings.patch_embeddings.proj.bias": (d,), "layernorm.weight": (d,), "layernorm.bias": (d,)}
    for i in range(24):
        sizes = {f"attention.{name}": (d, d) for name in ("query", "key", "value", "proj")}
        for name, (rows, columns) in (sizes | {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}).items():
            shapes |= {f"layer.{i}.{name}.weight": (rows, columns), f"layer.{i}.{name}.bias": (rows,)}
        shapes |= {f"layer.{i}.norm{n}.{part}": (d,) for n in (1, 2) for part in ("weight", "bias")}
    assert {name: tuple(tensor.shape) for name, tensor in whole.encoder.state_dict().items()} == shapes
    names = {name.removeprefix("encoder.") for name in whole.state_dict() if not name.startswith("predictor.")}
    assert names == shapes.keys() and len(names) == 388
    assert round(sum(tensor.numel() for tensor in whole.parameters()) / 1e6, 1) == 326.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.layernorm.bias"), r"1 of its weights are missing \(layernorm.bias"),
        (lambda w: w.update(extra=torch.ones(1)), r"1 of its weights are unexpected \(extra"),
        (lambda w: w["encoder.layernorm.bias"].fill_(torch.nan), "1 of its weights are not finite"),
        (lambda w: w.update({"encoder.layernorm.bias": torch.ones(3)}), r"layernorm.bias is \(3,\)"),
    ],
)
def test_a_damaged_release_is_refused(change, message, module, model, tmp_path):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=message):
        load_encoder("vjepa2-video", weights=tmp_path).encode(Clip.from_frames(frames(1)))


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch):
    monkeypatch.setenv("PAVE_VJEPA2", "/nowhere")
    spec = load_encoder("vjepa2-video", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("fast", 1024, 2, (2, 2), "MIT")
    assert spec == load_encoder("vjepa2-video", **spec.options).spec
    assert spec.preprocessing != load_encoder("vjepa2-video", frames=32).spec.preprocessing
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("vjepa2-video").encode(Clip.from_frames(frames(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": ""}, "needs a text for release, got ''"),
        ({"revision": 3}, "needs a text for revision, got 3"),
        ({"rate": -1}, "up to 1000 frames per second, got rate=-1"),
        ({"frames": 15}, "windows of 2, 4, … 64 frames, got frames=15"),
        ({"frames": 66}, "got frames=66"),
        ({"frames": 0}, "got frames=0"),
        ({"grid": [17, 2]}, r"cannot average its 16 x 16 tokens of a picture to grid=\[17, 2\]"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder("vjepa2-video", **options)


# Tokens of a clip


@pytest.mark.parametrize(("pictures", "fps", "steps"), [(1, 25, 1), (25, 25, 2), (30, 25, 3), (125, 25, 10)])
def test_a_file_is_encoded_four_times_a_second_in_pairs(pictures, fps, steps, tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(pictures), fps, click(1, 0.5))
    side = seen(encoder, Clip.read(path, frames=4, timeout=None))
    last = (pictures - 1) * 4 // fps / 4  # repeated to fill a pair
    each = np.minimum(np.arange(2 * steps) / 4, last)
    assert side.x.shape == (steps, 2, 2, 48) and side.x.dtype == torch.float32 and side.valid.all()
    assert side.times.tolist() == pytest.approx((each[::2] + each[1::2]) / 2)
    assert side.spans[0].tolist() == pytest.approx([0, each[:16][-1]])
    assert side.spans[-1].tolist() == pytest.approx([each[16:][0] if steps > 8 else 0, last])


def test_tokens_depend_on_their_whole_window_and_no_other(encoder):
    pictures = frames(20)
    flash = pictures.clone()
    flash[17] = 255 - flash[17]
    whole, other = (seen(encoder, Clip.from_frames(each, seconds(20))) for each in (pictures, flash))
    first, rest = (seen(encoder, Clip.from_frames(part, seconds(len(part)))) for part in pictures.split(16))
    assert torch.equal(whole.x, torch.cat([first.x, rest.x]))
    changed = (whole.x != other.x).flatten(1).any(1)
    inside = (whole.spans[:, 0] <= 17 / 4) & (whole.spans[:, 1] >= 17 / 4)
    assert torch.equal(changed, inside) and inside.tolist() == [False] * 8 + [True] * 2
    assert (whole.x - other.x).abs().amax((1, 2, 3)).argmax() == 8  # the pair of frames 16 and 17


def test_frames_of_a_file_give_the_tokens_of_frames_in_memory(tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(60), 10)
    clip, every = Clip.read(path, frames=4, timeout=None), Clip.read(path, frames=None, timeout=None)
    whole, held = seen(encoder, clip), seen(encoder, replace(every, again=None))
    assert len(whole.x) == 12
    assert torch.equal(whole.x, held.x) and torch.equal(whole.times, held.times)


def test_a_clip_without_pictures_is_absent(encoder):
    assert encoder.encode(Clip.from_frames(audio=torch.zeros(1, 100), rate=100)) is None


# Pixels


@pytest.mark.parametrize("size", [(300, 400), (401, 299), (64, 64), (292, 293)])
def test_pixels_are_scaled_cropped_and_normalised_as_by_the_processor(size, module):
    edge, crop = VJEPA2VideoProcessor.size["shortest_edge"], VJEPA2VideoProcessor.crop_size
    picture = frames(1, size)
    found = module.pixels(picture)
    short, high, wide = min(size), *size
    image = Image.fromarray(rearrange(picture[0], "c y x -> y x c").numpy())
    image = image.resize((int(edge * wide / short), int(edge * high / short)), VJEPA2VideoProcessor.resample)
    left, top = ((side - crop) // 2 for side in image.size)
    known = np.asarray(image.crop((left, top, left + crop, top + crop)), np.float64) / 255
    known = (known - VJEPA2VideoProcessor.image_mean) / VJEPA2VideoProcessor.image_std
    assert found.shape == (1, 3, 256, 256)
    # Pillow rounds to bytes after each direction, and so may be off by one.
    assert np.abs(rearrange(found[0], "c y x -> y x c").numpy() - known).max() <= 1.01 / 255 / 0.224


def test_narrow_pictures_are_refused(module):
    with pytest.raises(MediaError, match="frames are 400x3"):
        module.pixels(frames(1, (3, 400)))
