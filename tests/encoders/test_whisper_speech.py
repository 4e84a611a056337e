"""The Whisper encoder: equal to transformers' Whisper, cropped to the sound, on the clip's clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.senses.weights import fill
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.whisper_speech")
RATE = 16_000
noise = partial(listening.noise, RATE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return listening.whisper_speech(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def original(small: Any) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(small.options.weights).eval()


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


# tokens


def test_every_window_equals_the_output_of_transformers_cropped_to_its_sound(
    original: WhisperForConditionalGeneration, encode: Callable[..., SideTokens]
) -> None:
    sound, extract = noise(63), WhisperFeatureExtractor()
    want = []
    for seconds, kept in ((30, 1500), (30, 1500), (3, 150)):
        part = sound[0, len(want) * 30 * RATE :][: seconds * RATE].numpy()
        mel = extract(part, sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            want.append(original.model.encoder(mel).last_hidden_state[0, :kept])
    side = encode(sound)
    assert side.x.shape == (3150, 1, 1, 128) and torch.equal(side.x.flatten(1), torch.cat(want))


def test_a_window_does_not_depend_on_others(encode: Callable[..., SideTokens]) -> None:
    sound = noise(31)
    moved = sound.clone()
    moved[:, 30 * RATE + 100] = 1
    here, there = encode(sound), encode(moved)
    assert torch.equal(here.x[:1500], there.x[:1500]) and not torch.equal(here.x[1500:], there.x[1500:])
    assert here.spans[[0, 1499, 1500, -1]].tolist() == [[0, 30], [0, 30], [30, 31], [30, 31]]


def test_a_token_is_at_the_centre_of_the_receptive_field_of_its_convolutions() -> None:
    """Without attention layers, and with symmetric convolutions, changes of the sound are centred on the tokens that
    they change."""
    encoder = module.WhisperSpeech(module.Options(), module.Sizes(dim=128, layers=0))
    torch.manual_seed(0)
    network = module.outline(encoder.sizes).eval()
    for conv in (network.conv1, network.conv2):
        conv.weight.data = conv.weight.data + conv.weight.data.flip(-1)
    encoder.network = network
    sound = noise(2)
    plain, late = encoder.encode(Clip(audio=sound, rate=RATE)), []
    for place in range(4000, 28_000, 531):
        clicked = sound.clone()
        clicked[0, place] += 2
        changed = encoder.encode(Clip(audio=clicked, rate=RATE)).x - plain.x
        weight = changed.double().square().sum((1, 2, 3))
        late.append(float((weight * plain.times).sum() / weight.sum()) - place / RATE)
    assert abs(sum(late) / len(late)) < 0.001, "half a token is 0.01 s"


def test_a_click_changes_the_tokens_around_it_most(encode: Callable[..., SideTokens]) -> None:
    sound = noise(10)
    clicked = sound.clone()
    clicked[:, 7 * RATE : 7 * RATE + 160] = 0
    here, there = encode(sound, start=0.5), encode(clicked, start=0.5)
    changed = (here.x - there.x).norm(dim=-1).flatten()
    assert float(here.times[changed.argmax()]) == pytest.approx(7.5, abs=0.03)


@pytest.mark.parametrize(("rate", "pool"), [(25, 2), (10, 5), (5, 10), (2, 25), (1, 50)])
def test_lower_rates_are_means_of_tokens_and_of_their_times(
    small: Any, encode: Callable[..., SideTokens], rate: int, pool: int
) -> None:
    sound = noise(30.33)  # 1517 tokens: the last mean is of those that are left
    slow = module.WhisperSpeech(module.Options(rate=rate, weights=small.options.weights), small.sizes)
    full, side = encode(sound), listening.listener(slow)(sound)
    assert len(side.x) == -(-1517 // pool)
    for k in (0, len(side.x) - 1):
        mine = slice(pool * k, pool * (k + 1))
        assert torch.allclose(side.x[k], full.x[mine].mean(0))
        assert torch.allclose(side.times[k], full.times[mine].mean())
        assert torch.equal(side.spans[k], full.spans[pool * k])


# spec and weights


def released(dim: int, layers: int, bands: int) -> dict[str, Tensor]:
    """Names and shapes of the encoder in a release, from OpenAI's modules, under transformers' names: keys without a
    bias, and a table of position embeddings (openai/whisper, model.py)."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (dim, bands, 3),
        "conv2.weight": (dim, dim, 3),
        "embed_positions.weight": (1500, dim),
    }
    norms, biased = ["layer_norm"], ["conv1", "conv2"]
    for i in range(layers):
        norms += [f"layers.{i}.self_attn_layer_norm", f"layers.{i}.final_layer_norm"]
        shapes |= {f"layers.{i}.self_attn.{name}_proj.weight": (dim, dim) for name in ("k", "v", "q", "out")}
        biased += [f"layers.{i}.self_attn.{name}_proj" for name in ("v", "q", "out")]
        shapes |= {f"layers.{i}.fc1.weight": (4 * dim, dim), f"layers.{i}.fc1.bias": (4 * dim,)}
        shapes |= {f"layers.{i}.fc2.weight": (dim, 4 * dim), f"layers.{i}.fc2.bias": (dim,)}
    shapes |= {f"{norm}.weight": (dim,) for norm in norms}
    shapes |= {f"{name}.bias": (dim,) for name in norms + biased}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("release", "dim", "layers", "bands", "millions"),
    [
        ("tiny.en", 384, 4, 80, 8.2),
        ("base", 512, 6, 80, 20.6),
        ("small", 768, 12, 80, 88.2),
        ("medium.en", 1024, 24, 80, 307.2),
        ("large-v2", 1280, 32, 80, 636.8),
        ("large-v3-turbo", 1280, 32, 128, 637.0),
    ],
)
def test_every_tensor_of_a_release_fits_the_network_exactly(
    release: str, dim: int, layers: int, bands: int, millions: float
) -> None:
    sizes = module.RELEASES[f"openai/whisper-{release}"]
    with torch.device("meta"):
        network = module.outline(sizes)
    assert len(network.state_dict()) == 7 + 15 * layers
    fill(network, released(dim, layers, bands), "a release", "")
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(millions * 1e6, rel=2e-3)
    assert network.config.encoder_attention_heads == {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 20}[dim]


def test_a_model_without_its_language_model_head_is_read_too(
    original: WhisperForConditionalGeneration, small: Any, tmp_path: Path, monkeypatch
) -> None:
    model = original.model
    assert isinstance(model, WhisperModel)
    model.save_pretrained(tmp_path)
    monkeypatch.setenv(module.PLACE, str(tmp_path))
    clip = Clip(audio=noise(1), rate=RATE)
    assert torch.equal(module.WhisperSpeech(module.Options(), small.sizes).encode(clip).x, small.encode(clip).x)


def test_weights_of_another_size_are_refused(small: Any) -> None:
    encoder = load_encoder("whisper-speech", release="openai/whisper-tiny", weights=small.options.weights)
    with pytest.raises(EncoderError, match=r"30 of its weights are missing .*use openai/whisper-tiny, or a model"):
        encoder.encode(Clip(audio=noise(1), rate=RATE))


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_encoder("whisper-speech", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("audio", 1280, 50, (1, 1), "MIT")
    assert spec.options == {"release": "openai/whisper-large-v2", "revision": "main", "rate": 50}
    assert spec == load_encoder("whisper-speech", **spec.options).spec
    small = load_encoder("whisper-speech", release="openai/whisper-small", rate=5).spec
    assert (small.dim, small.rate) == (768, 5) and small.preprocessing != spec.preprocessing
    monkeypatch.setenv(module.PLACE, "/nowhere")
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("whisper-speech").encode(Clip(audio=noise(1), rate=RATE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": "openai/whisper-smal"}, "did you mean 'openai/whisper-small'.* set release to"),
        ({"release": ["x"]}, "has no release"),
        ({"revision": ""}, "needs a text for revision"),
        *(({"rate": rate}, "has 50, 25, 10, 5, 2 or 1 tokens") for rate in (0, 3, 100, 12.5, True, "50")),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder("whisper-speech", **options)


def test_what_other_libraries_say_about_themselves_is_not_shown() -> None:
    """transformers imports torchao wherever it is installed."""
    pytest.importorskip("torchao")
    code = "import pave; pave.load_encoder('whisper-speech')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchao" not in done.stderr and "_pytree" not in done.stderr, done.stderr
