"""The CLAP encoder: equal to transformers' CLAP, in low and high tokens, without the extractor's randomness."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from patched import hears
from torch import Tensor
from transformers import ClapAudioModel, ClapFeatureExtractor, ClapModel

from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.senses.weights import fill
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.clap_audio")
RATE = 48_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return listening.clap_audio(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def original(small: Any) -> Any:
    return ClapModel.from_pretrained(small.options.weights).eval()


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


def noise(seconds: float) -> Tensor:
    return listening.noise(RATE, seconds) / 5


# tokens


def test_every_window_equals_the_output_of_transformers_cropped_to_its_sound(
    original: Any, encode: Callable[..., SideTokens]
) -> None:
    sound = noise(23)
    extract = ClapFeatureExtractor(frequency_min=50, frequency_max=14000, truncation="rand_trunc", padding="repeatpad")
    want = []
    for first, last, kept in ((0, 10, 32), (10, 20, 32), (20, 23, 10)):
        part = sound[0, first * RATE : last * RATE].numpy()
        mel = extract(part, sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            hidden = original.audio_model(mel).last_hidden_state
        want.append(hidden[0].permute(2, 1, 0)[:kept])
    side = encode(sound)
    assert side.x.shape == (74, 2, 1, 128) and torch.equal(side.x[:, :, 0], torch.cat(want))
    assert torch.equal(side.x, encode(sound).x), "deterministic"


def test_a_window_does_not_depend_on_others(encode: Callable[..., SideTokens]) -> None:
    sound = noise(11)
    moved = sound.clone()
    moved[:, round(10.5 * RATE) :] = 0
    here, there = encode(sound), encode(moved)
    assert torch.equal(here.x[:32], there.x[:32]) and not torch.equal(here.x[32:], there.x[32:])
    assert here.spans[[0, 31, 32, -1]].tolist() == [[0, 10], [0, 10], [10, 11], [10, 11]]


@pytest.mark.parametrize("at", [0.9, 4.3, 8.6])
def test_a_gap_changes_the_tokens_around_it_most(encode: Callable[..., SideTokens], at: float) -> None:
    sound = noise(10)
    gap = sound.clone()
    gap[:, round(at * RATE) : round((at + 0.05) * RATE)] = 0
    here, there = encode(sound, start=0.5), encode(gap, start=0.5)
    changed = (here.x - there.x).norm(dim=-1).sum((1, 2))
    assert float(here.times[changed.argmax()]) == pytest.approx(at + 0.525, abs=0.16)


def test_the_first_token_of_a_step_is_the_low_half(encode: Callable[..., SideTokens]) -> None:
    sound, seconds = noise(10), torch.arange(10 * RATE) / RATE
    quiet = encode(sound).x
    for hertz, loud in ((300, 0), (9000, 1)):
        tone = encode(sound + 0.3 * torch.sin(2 * torch.pi * hertz * seconds)).x
        assert int((tone - quiet).norm(dim=-1).sum((0, 2)).argmax()) == loud


def test_a_question_about_a_file_passes_frequencies_above_8_khz(
    one: PatchedModel, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ClapAudioConfig", lambda: small.config)
    monkeypatch.setenv(module.PLACE, small.options.weights)
    tone = 0.5 * np.sin(2 * np.pi * 12_000 * np.arange(2 * RATE) / RATE).astype(np.float32)
    path = write_clip(tmp_path / "a.mkv", counting_frames(50), 25, tone, RATE, audio_codec="pcm_s16le")
    hears(one, senses={"audio": load_encoder("clap-audio").spec.facts("time")})
    encoder: Any = one.encoders()[0]
    extract, spectra = encoder.spectrum, []
    encoder.spectrum = lambda *args, **options: spectra.append(extract(*args, **options)) or spectra[-1]
    assert one.ask(path, "What do you hear?").signals["audio"].startswith("present: 7 steps")
    bands = spectra[0].input_features[0, 0].mean(0)
    assert bands.argmax() == extract.mel_filters_slaney[12_000 * 1024 // RATE].argmax() and bands.max() > 0


# spec and weights


def released() -> dict[str, Tensor]:
    """Names and shapes of the audio half of the release, without `audio_encoder.`: HTSAT-tiny is a Swin transformer of
    2, 2, 6 and 2 blocks with an initial width of 96 (RetroCirce/HTS-Audio-Transformer), under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (96, 1, 4, 4), "patch_embed.proj.bias": (96,)}
    norms = {"patch_embed.norm": 96, "norm": 768, "batch_norm": 64}
    shapes |= {"batch_norm.running_mean": (64,), "batch_norm.running_var": (64,), "batch_norm.num_batches_tracked": ()}
    for stage, blocks in enumerate((2, 2, 6, 2)):
        dim, heads = 96 << stage, 4 << stage
        for block in (f"layers.{stage}.blocks.{i}" for i in range(blocks)):
            norms |= {f"{block}.layernorm_before": dim, f"{block}.layernorm_after": dim}
            shapes[f"{block}.attention.self.relative_position_bias_table"] = (225, heads)
            shapes[f"{block}.attention.self.relative_position_index"] = (64, 64)
            linear = {f"{block}.attention.self.{name}": (dim, dim) for name in ("query", "key", "value")}
            linear |= {f"{block}.attention.output.dense": (dim, dim)}
            linear |= {f"{block}.intermediate.dense": (4 * dim, dim), f"{block}.output.dense": (dim, 4 * dim)}
            shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
        if stage < 3:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            norms[f"layers.{stage}.downsample.norm"] = 4 * dim
    shapes |= {f"{norm}.{part}": (dim,) for norm, dim in norms.items() for part in ("weight", "bias")}
    whole = ("relative_position_index", "num_batches_tracked")
    return {
        f"audio_encoder.{name}": torch.empty(
            shape, device="meta", dtype=torch.int64 if name.endswith(whole) else torch.float32
        )
        for name, shape in shapes.items()
    }


def test_every_tensor_of_the_release_fits_the_network_exactly() -> None:
    with torch.device("meta"):
        network = ClapAudioModel(load_encoder("clap-audio").config)  # type: ignore[attr-defined]
    assert len(network.state_dict()) == 236
    fill(network, released(), "a release", "")
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(27.5e6, rel=2e-3)


def test_a_pickled_release_and_a_separate_audio_half_are_read(
    original: Any, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setenv(module.PLACE, str(tmp_path))
    original.audio_model.save_pretrained(tmp_path / "alone")
    clip = Clip(audio=noise(1), rate=RATE)
    for weights in ("", str(tmp_path / "alone")):
        assert torch.equal(
            module.ClapAudio(module.Options(weights=weights), small.config).encode(clip).x, small.encode(clip).x
        )


def test_weights_of_another_size_are_refused(small: Any) -> None:
    encoder = load_encoder("clap-audio", weights=small.options.weights)
    with pytest.raises(EncoderError, match=r"weights are missing .*use laion/clap-htsat-unfused, or a model"):
        encoder.encode(Clip(audio=noise(1), rate=RATE))


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_encoder("clap-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("audio", 768, 3.2, (2, 1), "Apache-2.0")
    assert spec == load_encoder("clap-audio", **spec.options).spec
    monkeypatch.setenv(module.PLACE, "/nowhere")
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("clap-audio").encode(Clip(audio=noise(1), rate=RATE))
    with pytest.raises(EncoderError, match="needs a text for revision"):
        load_encoder("clap-audio", revision=3)
