"""CLAP's ear hears what transformers' CLAP hears, in low and high tokens, without its extractor's chance."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from listening import hear_in_pieces
from patched import hears
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModel, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

from pave.encoder import load_encoder
from pave.errors import EncoderError, SignalError
from pave.media import Clip
from pave.model import PatchedModel
from pave.release import fill
from pave.sidechannel import SideTokens

ears: Any = import_module("pave.encoders.clap_audio")
RATE = 48_000
TINY = ClapAudioConfig(
    patch_embeds_hidden_size=16, hidden_size=128, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
)
TEXT = ClapTextConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, projection_dim=16
)


@pytest.fixture(scope="module")
def original() -> ClapModel:
    torch.manual_seed(0)
    model: Any = ClapModel(
        ClapConfig(text_config=TEXT.to_dict(), audio_config=TINY.to_dict(), projection_dim=16)
    ).eval()
    norm = model.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-30)  # about what decibels of sound have
    norm.running_var.fill_(400)
    return model


@pytest.fixture(scope="module")
def folder(original: ClapModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    original.save_pretrained(path := tmp_path_factory.mktemp("clap"))
    return path


@pytest.fixture
def listen(folder: Path) -> Callable[..., SideTokens]:
    """What the small ear hears."""

    def tokens(sound: Tensor, rate: int = RATE, start: float = 0.0) -> SideTokens:
        encoder = ears.ClapAudio(ears.Options(), str(folder), TINY)
        side = encoder.encode(Clip(audio=sound, rate=rate, audio_start=start))
        assert side is not None
        return side

    return tokens


def noise(seconds: float, channels: int = 1) -> Tensor:
    return (torch.rand(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(0)) - 0.5) / 5


# what it hears


def test_every_window_is_what_transformers_hears_cut_to_its_sound(
    original: ClapModel, listen: Callable[..., SideTokens]
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
    side = listen(sound)
    assert side.x.shape == (74, 2, 1, 128) and torch.equal(side.x[:, :, 0], torch.cat(want))
    assert torch.equal(side.x, listen(sound).x), "and again"


def test_a_window_hangs_on_no_other(listen: Callable[..., SideTokens]) -> None:
    sound = noise(11)
    moved = sound.clone()
    moved[:, round(10.5 * RATE) :] = 0
    here, there = listen(sound), listen(moved)
    assert torch.equal(here.x[:32], there.x[:32]) and not torch.equal(here.x[32:], there.x[32:])
    assert here.spans[[0, 31, 32, -1]].tolist() == [[0, 10], [0, 10], [10, 11], [10, 11]]


@pytest.mark.parametrize("at", [0.9, 4.3, 8.6])
def test_a_gap_changes_the_tokens_about_it_most(listen: Callable[..., SideTokens], at: float) -> None:
    sound = noise(10)
    gap = sound.clone()
    gap[:, round(at * RATE) : round((at + 0.05) * RATE)] = 0
    here, there = listen(sound, start=0.5), listen(gap, start=0.5)
    changed = (here.x - there.x).norm(dim=-1).sum((1, 2))
    assert float(here.times[changed.argmax()]) == pytest.approx(at + 0.525, abs=0.16)


def test_the_first_token_of_a_step_is_the_low_half(listen: Callable[..., SideTokens]) -> None:
    sound, seconds = noise(10), torch.arange(10 * RATE) / RATE
    quiet = listen(sound).x
    for hertz, loud in ((300, 0), (9000, 1)):
        tone = listen(sound + 0.3 * torch.sin(2 * torch.pi * hertz * seconds)).x
        assert int((tone - quiet).norm(dim=-1).sum((0, 2)).argmax()) == loud


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (15_000, 1), (15_001, 2), (48_000, 4), (480_000, 32)])
def test_there_is_a_step_for_every_15000_samples(listen: Callable[..., SideTokens], samples: int, steps: int) -> None:
    side = listen(noise(10)[:, :samples], start=0.25)
    assert side.x.shape == (steps, 2, 1, 128) and side.valid.all()
    want = [0.25 + min(0.3125 * (k + 0.5), samples / RATE) for k in range(steps)]
    assert side.times.tolist() == pytest.approx(want)
    assert side.spans.tolist() == [[0.25, 0.25 + samples / RATE]] * steps


def test_channels_are_mixed_and_other_rates_resampled(listen: Callable[..., SideTokens]) -> None:
    sound = noise(2, channels=8)
    assert torch.equal(listen(sound).x, listen(sound.mean(0, keepdim=True)).x)
    coarse, fine = (torch.sin(2 * torch.pi * 440 * torch.arange(2 * rate) / rate)[None] for rate in (16_000, RATE))
    assert len(listen(coarse, 16_000).x) == len(listen(fine).x) == 7
    assert (listen(coarse, 16_000).x - listen(fine).x).abs().mean() < 0.2 * listen(fine).x.abs().mean()


def test_a_model_that_is_asked_about_a_file_lets_it_hear_what_is_above_8_khz(
    one: PatchedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ears, "ClapAudioConfig", lambda: TINY)
    monkeypatch.setenv(ears.PLACE, str(folder))
    tone = 0.5 * np.sin(2 * np.pi * 12_000 * np.arange(2 * RATE) / RATE).astype(np.float32)
    path = write_clip(tmp_path / "a.mkv", counting_frames(50), 25, tone, RATE, audio_codec="pcm_s16le")
    hears(one, senses={"audio": load_encoder("clap-audio").spec.facts("time")})
    encoder: Any = one.encoders()[0]
    extract, heard = encoder.spectrum, []
    encoder.spectrum = lambda *given, **how: heard.append(extract(*given, **how)) or heard[-1]
    assert one.ask(path, "What do you hear?").signals["audio"].startswith("present: 7 steps")
    bands = heard[0].input_features[0, 0].mean(0)
    assert bands.argmax() == extract.mel_filters_slaney[12_000 * 1024 // RATE].argmax() and bands.max() > 0


def test_silence_is_a_sound_and_no_track_is_none(listen: Callable[..., SideTokens]) -> None:
    side = listen(torch.zeros(1, RATE))
    assert side.valid.all() and len(side.x) == 4
    encoder = load_encoder("clap-audio", weights="nowhere")  # which nobody looks for
    assert encoder.encode(Clip()) is None and encoder.encode(Clip(audio=torch.zeros(2, 0), rate=RATE)) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sound_that_is_not_finite_is_an_error(listen: Callable[..., SideTokens], value: float) -> None:
    sound = noise(1)
    sound[0, 100] = value
    with pytest.raises(SignalError, match="not finite"):
        listen(sound)


# what it is, and its weights


def released() -> dict[str, Tensor]:
    """Names and shapes of the audio half of the release, less `audio_encoder.`: HTSAT-tiny is a Swin transformer of 2,
    2, 6 and 2 blocks whose width begins with 96 (RetroCirce/HTS-Audio-Transformer), under transformers' names."""
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


def test_every_tensor_of_the_release_has_a_place_and_no_place_is_left() -> None:
    with torch.device("meta"):
        network = ClapAudioModel(load_encoder("clap-audio").config)  # type: ignore[attr-defined]
    assert len(network.state_dict()) == 236
    fill(network, released(), "a release", "")
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(27.5e6, rel=2e-3)


def test_the_release_is_a_pickle_and_the_audio_half_may_come_alone(
    original: ClapModel, listen: Callable[..., SideTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = listen(noise(1)).x
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setenv(ears.PLACE, str(tmp_path))
    assert torch.equal(ears.ClapAudio(ears.Options(), "", TINY).encode(Clip(audio=noise(1), rate=RATE)).x, want)
    original.audio_model.save_pretrained(tmp_path / "alone")
    alone = ears.ClapAudio(ears.Options(), str(tmp_path / "alone"), TINY)
    assert torch.equal(alone.encode(Clip(audio=noise(1), rate=RATE)).x, want)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    encoder = load_encoder("clap-audio", weights=folder)
    with pytest.raises(EncoderError, match=r"weights are missing .*give laion/clap-htsat-unfused, or what was"):
        encoder.encode(Clip(audio=noise(1), rate=RATE))


def test_what_it_is_can_be_read_without_weights_and_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_encoder("clap-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("audio", 768, 3.2, (2, 1), "Apache-2.0")
    assert spec == load_encoder("clap-audio", **spec.options).spec
    monkeypatch.setenv(ears.PLACE, "/nowhere")
    with pytest.raises(EncoderError, match="/nowhere: no such folder"):
        load_encoder("clap-audio").encode(Clip(audio=noise(1), rate=RATE))
    with pytest.raises(EncoderError, match="needs a text for revision"):
        load_encoder("clap-audio", revision=3)


def test_it_hears_in_pieces_what_it_hears_in_the_whole(folder: Path) -> None:
    assert hear_in_pieces(ears.ClapAudio(ears.Options(), str(folder), TINY), noise(21.3), RATE) == 2 * 32
