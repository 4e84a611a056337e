"""The Perception Encoder's audio encoder: equal to transformers' PE-Audio, from every kind of release."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PeAudioEncoder, PeAudioFrameLevelModel

from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.senses.weights import fill
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.pe_audio")
RATE = 48_000
noise = partial(listening.noise, RATE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return listening.pe_audio(tmp_path_factory.mktemp("pe"))


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


# tokens


def test_every_window_equals_the_output_of_transformers(
    small: Any, encode: Callable[..., SideTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs gets a mask without padding, which changes the order of its sums. Windows of 2 s take less time."""
    monkeypatch.setattr(module, "WINDOW", 2 * RATE)
    original = PeAudioFrameLevelModel.from_pretrained(small.options.weights).eval()
    sound, want = noise(4.51), []
    for part in sound[0].split(2 * RATE):
        inputs = module.PeAudioFeatureExtractor()(part.numpy(), sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            want.append(original.audio_encoder(inputs["input_values"], inputs["padding_mask"]).last_hidden_state[0])
    side = encode(sound)
    assert side.x.shape == (113, 1, 1, 128) and (side.x.flatten(1) - torch.cat(want)).abs().max() <= 1e-5
    assert side.spans[[0, 49, 50, -1]].tolist() == [[0, 2], [0, 2], [2, 4], [4, 4.51]]
    moved = sound.clone()
    moved[:, round(4.2 * RATE)] = 1
    assert torch.equal(side.x[:100], encode(moved).x[:100])


@pytest.mark.parametrize("at", [0.5, 1.7])
def test_a_gap_changes_the_tokens_around_it_most(encode: Callable[..., SideTokens], at: float) -> None:
    sound = noise(2)
    gap = sound.clone()
    gap[:, round(at * RATE) : round((at + 0.01) * RATE)] = 0
    here, there = encode(sound, start=0.5), encode(gap, start=0.5)
    changed = (here.x - there.x).norm(dim=-1).flatten()
    assert float(here.times[changed.argmax()]) == pytest.approx(at + 0.505, abs=0.1)


def test_a_token_is_at_the_centre_of_the_codec_s_receptive_field(small: Any) -> None:
    """The samples that a token of the codec depends on are centred on sample 1920 (k + 1/2)."""
    sound = torch.zeros(1, 1, 40 * 1920, requires_grad=True)
    small.network.embedder.dac_encoder(sound)[0, :, 20].sum().backward()
    assert sound.grad is not None
    field = sound.grad[0, 0].nonzero()
    assert float(field.min() + field.max()) / 2 == pytest.approx(1920 * 20.5, abs=1)


@pytest.mark.parametrize(("rate", "pool"), [(5, 5), (1, 25)])
def test_lower_rates_are_means_of_tokens_and_of_their_times(
    small: Any, encode: Callable[..., SideTokens], rate: int, pool: int
) -> None:
    sound = noise(1.3)  # 33 tokens
    slow = module.PEAudio(module.Options(rate=rate, weights=small.options.weights), small.config)
    full, side = encode(sound), listening.listener(slow)(sound)
    assert len(side.x) == -(-33 // pool)
    assert torch.allclose(side.x[-1], full.x[33 // pool * pool :].mean(0))
    assert torch.allclose(side.times[0], full.times[:pool].mean())


# spec and weights


def released(dim: int, layers: int, wide: int) -> dict[str, Tensor]:
    """Names and shapes of the audio encoder in a release, by its parts: DAC's encoder (descriptinc) of initial width
    64, a bottleneck of 128 channels, a block of convolutions, and Qwen3's layers; under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {"embedder.data_proj.weight": (dim, 128), "embedder.data_proj.bias": (dim,)}
    codec = "embedder.dac_encoder"
    convs = {f"{codec}.conv1": (64, 1, 7), f"{codec}.conv2": (1024, 1024, 3), "embedder.bottleneck": (128, 1024, 1)}
    snakes = {f"{codec}.snake1": 1024}
    for i, stride in enumerate((2, 8, 10, 12)):
        block, channels = f"{codec}.block.{i}", 64 << i
        snakes[f"{block}.snake1"] = channels
        convs[f"{block}.conv1"] = (2 * channels, channels, 2 * stride)
        for unit in (f"{block}.res_unit{j}" for j in (1, 2, 3)):
            snakes |= {f"{unit}.snake1": channels, f"{unit}.snake2": channels}
            convs |= {f"{unit}.conv1": (channels, channels, 7), f"{unit}.conv2": (channels, channels, 1)}
    for block in ("patch_embedder.resnet_block.block1", "patch_embedder.resnet_block.block2"):
        convs[f"{block}.project"] = (dim, dim, 3)
        shapes |= {f"{block}.groupnorm.weight": (dim,), f"{block}.groupnorm.bias": (dim,)}
    shapes |= {"patch_embedder.class_embedding": (1, 1, dim), "norm.weight": (dim,), "output.weight": (dim, dim)}
    for layer in (f"layers.{i}" for i in range(layers)):
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (dim, dim) for name in "qkvo"}
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (128,) for name in "qk"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (wide, dim) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (dim, wide)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (dim,) for name in ("input", "post_attention")}
    shapes |= {f"{name}.weight": shape for name, shape in convs.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in convs.items()}
    shapes |= {f"{name}.alpha": (1, channels, 1) for name, channels in snakes.items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("release", "dim", "layers", "wide", "count"),
    [
        ("pe-av-small", 768, 12, 2048, 116_601_280),
        ("pe-av-base-16-frame", 1024, 16, 2752, 237_303_488),
        ("pe-a-frame-large", 1792, 28, 4800, 1_132_438_976),
    ],
)
def test_every_tensor_of_a_release_fits_the_network_exactly(
    release: str, dim: int, layers: int, wide: int, count: int
) -> None:
    with torch.device("meta"):
        network = PeAudioEncoder(module.config_of(module.RELEASES[f"facebook/{release}"]))
    fill(network, released(dim, layers, wide), "a release", "")
    assert sum(weight.numel() for weight in network.parameters()) == count
    assert network.config.num_attention_heads * network.config.head_dim == dim


@pytest.mark.parametrize("prefix", ["audio_model.audio_encoder.", "audio_video_encoder.embedder.audio_encoder."])
def test_the_audio_encoder_of_pe_av_is_found_under_both_of_its_names(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """PeAudioVideoModel needs timm, so its file is written by hand, with a name of each of its other parts."""
    inner = load_file(Path(small.options.weights) / "model.safetensors")
    audio = {name: tensor for name, tensor in inner.items() if name.startswith("audio_encoder.")}
    outer = {prefix + name.removeprefix("audio_encoder."): tensor for name, tensor in audio.items()}
    outer |= {f"audio_model.{name}": inner[name] for name in inner.keys() - audio.keys() if "text_model" not in name}
    for name in (
        "text_model.final_norm.weight",
        "video_model.video_encoder.norm.weight",
        "audio_video_encoder.layers.0.mlp.up_proj.weight",
        "audio_plus_text_head.proj.weight",
        "text_audio_video_logit_scale",
    ):
        outer[name] = torch.zeros(1)
    save_file(outer, tmp_path / "model.safetensors")
    monkeypatch.setenv(module.PLACE, str(tmp_path))
    clip = Clip(audio=noise(1), rate=RATE)
    assert torch.equal(module.PEAudio(module.Options(), small.config).encode(clip).x, small.encode(clip).x)


def test_weights_of_another_size_are_refused(small: Any) -> None:
    encoder = load_encoder("pe-audio", release="facebook/pe-a-frame-small", weights=small.options.weights)
    with pytest.raises(EncoderError, match=r"110 of its weights are missing .*use facebook/pe-a-frame-small, or"):
        encoder.encode(Clip(audio=noise(1), rate=RATE))


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_encoder("pe-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("audio", 1024, 25, (1, 1), "Apache-2.0")
    assert spec == load_encoder("pe-audio", **spec.options).spec
    large = load_encoder("pe-audio", release="facebook/pe-av-large", rate=1).spec
    assert (large.dim, large.rate) == (1792, 1) and large.preprocessing != spec.preprocessing
    monkeypatch.setenv(module.PLACE, "/nowhere")
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("pe-audio").encode(Clip(audio=noise(1), rate=RATE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": "facebook/pe-av-smal"}, "did you mean 'facebook/pe-av-small'.* set release to"),
        ({"release": None}, "has no release"),
        ({"revision": ""}, "needs a text for revision"),
        *(({"rate": rate}, "has 25, 5 or 1 tokens") for rate in (0, 2, 50, 12.5, True, "25")),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder("pe-audio", **options)
