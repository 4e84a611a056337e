"""The ImageBind encoder: equal to ImageBind, on the clip's clock, with weights loaded only after consent.

The golden tensors were made by ImageBind's own code with seeded weights: a sound, its spectrum and its tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import listening
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save_file
from torch import Tensor

from pave.encoder import CONSENT, load_encoder, mixed
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.imagebind_audio")
RATE = 16_000
GOLDEN, WEIGHTS = listening.golden("imagebind_audio")
TINY = listening.IMAGEBIND
noise = partial(listening.noise, RATE)
STEM = "modality_preprocessors.audio.rgbt_stem.proj.weight"


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONSENT, "1")
    monkeypatch.delenv(module.PLACE, raising=False)


@pytest.fixture
def small(tmp_path: Path) -> Any:
    return listening.imagebind_audio(tmp_path)


@pytest.fixture
def file(small: Any) -> Path:
    return Path(small.weights)


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


# tokens


def test_the_spectrum_is_that_of_kaldi() -> None:
    windows = GOLDEN["wave"][0].unfold(0, 2 * RATE, RATE)[:2]
    assert (module.spectra(windows) - GOLDEN["mel_clean"][:, 0]).abs().max() * module.DEVIATION <= 5e-4


def test_tokens_of_the_trunk_equal_those_of_imagebind(file: Path) -> None:
    tokens = module.ImageBindAudio(str(file), TINY).network(GOLDEN["input"][:, 0])
    assert (tokens - GOLDEN["output"]).abs().max() <= 1e-5


def test_the_checkpoint_of_imagebind_fits_the_network_exactly() -> None:
    """177 tensors with 86,235,649 values; the names of the blocks are those of the golden ones."""
    with torch.device("meta"):
        weights = module.Trunk(module.Sizes()).state_dict()
    assert len(weights) == 177 and sum(weight.numel() for weight in weights.values()) == 86_235_649
    assert {name for name in weights if ".blocks." not in name} < WEIGHTS.keys() < weights.keys()


def test_a_token_depends_on_its_own_two_seconds_only(encode: Callable[..., SideTokens]) -> None:
    sound = noise(6)
    moved = sound.clone()
    moved[:, int(3.5 * RATE) : int(3.6 * RATE)] = 0
    here, there = encode(sound), encode(moved)
    changed = (here.x - there.x).abs().amax((1, 2, 3)) > 1e-4
    inside = (here.spans[:, 0] <= 3.5) & (here.spans[:, 1] >= 3.6)
    assert changed.tolist() == inside.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(("seconds", "steps"), [(2, 1), (2.99, 1), (3, 2), (7.9, 6), (30.9, 29)])
def test_every_second_but_the_last_has_a_token(encode: Callable[..., SideTokens], seconds: float, steps: int) -> None:
    side = encode(noise(seconds), start=0.25)
    assert side.x.shape == (steps, 1, 1, 64) and side.times.tolist() == [0.25 + i + 1 for i in range(steps)]
    assert side.spans.tolist() == [[0.25 + i, 0.25 + i + 2] for i in range(steps)]
    assert torch.allclose(side.x.norm(dim=-1), torch.tensor(20.0))


@pytest.mark.parametrize("samples", [1, 399, 8000, 31_999])
def test_a_sound_of_less_than_two_seconds_is_one_token_that_spans_it(
    encode: Callable[..., SideTokens], samples: int
) -> None:
    sound = noise(2)[:, :samples]
    side = encode(sound, start=1.0)
    assert side.spans.tolist() == [[1, 1 + samples / RATE]]
    assert side.times.tolist() == pytest.approx([1 + samples / RATE / 2])
    padded = torch.cat([sound, torch.zeros(1, 2 * RATE - samples)], dim=1)
    assert torch.equal(side.x, encode(padded).x)


def test_silence_has_one_token_of_the_same_norm(encode: Callable[..., SideTokens]) -> None:
    side = encode(torch.zeros(1, 4 * RATE))
    assert torch.allclose(side.x, side.x[:1]) and side.x[0].norm() == pytest.approx(20)


def test_batches_of_windows_do_not_change_the_tokens_of_a_long_sound(
    file: Path, encode: Callable[..., SideTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise(60)
    encoder, batches = module.ImageBindAudio(str(file), TINY), []
    encoder.network.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    side = encoder.encode(Clip(audio=sound, rate=RATE))
    assert side is not None and batches == [16, 16, 16, 11]  # an hour takes no more memory than 17 seconds
    assert torch.equal(side.x, encode(sound).x)
    monkeypatch.setattr(module, "PART", 59)
    assert (side.x - encode(sound).x).abs().max() <= 1e-5


# channels


def test_first_hears_channel_0_and_mean_is_the_default_with_its_hash(file: Path, encode: Any) -> None:
    left, right = noise(3), noise(3).flip(-1)
    both = torch.cat([left, right])
    first = listening.listener(module.ImageBindAudio(str(file), TINY, "first"))
    assert torch.equal(first(both).x, encode(left).x) and torch.equal(first(left).x, encode(left).x)
    assert torch.equal(encode(both).x, encode((left + right) / 2).x) and not torch.equal(encode(both).x, first(both).x)
    mean, other = (
        load_encoder("imagebind-audio", channel="mean").spec,
        load_encoder("imagebind-audio", channel="first").spec,
    )
    assert mean == load_encoder("imagebind-audio").spec and mean.preprocessing != other.preprocessing
    assert load_encoder("imagebind-audio", **other.options).spec == other
    with pytest.raises(EncoderError, match="imagebind-audio hears mean or first, got channel='left'"):
        load_encoder("imagebind-audio", channel="left")


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        ("mono", [1]),
        ("stereo", [1, 0]),
        # FFmpeg's left of a stereo mix: FL + √½ FC + √½ BL, scaled; the authors' mp3 files were made so.
        ("5.1", [0.4142, 0, 0.2929, 0, 0.2929, 0]),
    ],
)
def test_the_first_channel_of_a_file_is_that_of_its_stereo_mix(
    file: Path, tmp_path: Path, layout: str, weights: list[float]
) -> None:
    """As FFmpeg mixes: of a film, dialogue is in the centre, which channel 0 alone would not have."""
    tones = torch.stack([0.4 * torch.sin(torch.arange(2 * RATE) * (0.05 + 0.03 * i)) for i in range(len(weights))])
    with av.open(str(tmp_path / "x.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_f32le", RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(tones.T.reshape(1, -1).numpy().astype("float32"), "flt", layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame) + stream.encode(None))
    encoder = module.ImageBindAudio(str(file), TINY, "first")
    assert mixed([encoder]) == "stereo" and mixed([load_encoder("logmel")]) is True
    clip = Clip.read(tmp_path / "x.wav", frames=0, mono=mixed([encoder]))
    assert clip.audio is not None and clip.audio.shape == (min(2, len(weights)), 2 * RATE)
    want = (torch.tensor(weights)[:, None] * tones).sum(0)
    assert (clip.audio[0] - want).abs().max() < 1e-3
    one = Clip.read(tmp_path / "x.wav", frames=0).audio
    assert one is not None and (clip.audio.mean(0) - one[0]).abs().max() < 1e-6, "the mean of both is the mix to one"


# spec and weights


def test_the_spec_needs_neither_weights_nor_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONSENT)
    spec = load_encoder("imagebind-audio", weights="nowhere.pth").spec
    assert (spec.sense, spec.dim, spec.rate, spec.licence) == ("audio", 1024, 1.0, "CC-BY-NC-SA-4.0")
    assert spec == load_encoder("imagebind-audio").spec, "the location of the weights is not in the spec"


@pytest.mark.parametrize("value", ["", "0", "no"])
def test_weights_need_consent_to_non_commercial_use(file: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(CONSENT, value)
    with pytest.raises(EncoderError, match=r"CC-BY-NC-SA-4.0.* set PAVE_NONCOMMERCIAL=1"):
        module.ImageBindAudio(str(file), TINY).encode(Clip(audio=noise(2), rate=RATE))


def test_without_weights_the_error_says_where_to_get_them() -> None:
    with pytest.raises(EncoderError, match=r"download https://.*imagebind_huge.pth .* PAVE_IMAGEBIND to its path"):
        load_encoder("imagebind-audio").encode(Clip(audio=noise(2), rate=RATE))
    with pytest.raises(EncoderError, match=r"nowhere.pth: no such file; use a local file, or hf://"):
        load_encoder("imagebind-audio", weights="nowhere.pth").encode(Clip(audio=noise(2), rate=RATE))


def others() -> dict[str, Tensor]:
    return WEIGHTS | {"modality_trunks.vision.blocks.0.norm_1.weight": torch.zeros(8)}


@pytest.mark.parametrize("name", ["all.safetensors", "imagebind_huge.pth"])
def test_of_a_whole_checkpoint_only_the_audio_branch_is_read(
    encode: Callable[..., SideTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(others(), tmp_path / name)
    monkeypatch.setenv(module.PLACE, str(tmp_path / name))
    side = module.ImageBindAudio("", TINY).encode(Clip(audio=noise(2), rate=RATE))
    assert torch.equal(side.x, encode(noise(2)).x)


def test_weights_from_the_hub_equal_those_of_the_file(
    file: Path, encode: Callable[..., SideTokens], tmp_path: Path
) -> None:
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("them/ears", {"sub/audio.safetensors": file.read_bytes()})
        side = module.ImageBindAudio("hf://them/ears@main/sub/audio.safetensors", TINY)
        assert torch.equal(side.encode(Clip(audio=noise(2), rate=RATE)).x, encode(noise(2)).x)
        with pytest.raises(EncoderError, match=r"hf://them/ears/other.pth: has no such file"):
            _ = module.ImageBindAudio("hf://them/ears/other.pth", TINY).network


class Deed:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


BROKEN: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "one less": ("1 weights .* are missing, .*proj.weight", lambda: {k: v for k, v in WEIGHTS.items() if k != STEM}),
    "one more": ("1 weights .* are unexpected, .*x.audio.y", lambda: WEIGHTS | {"x.audio.y": torch.zeros(1)}),
    "another model": ("51 weights .* are missing", lambda: {"model.weight": torch.zeros(1)}),
    "other shape": (r"is \(96, 16\), and must be \(96, 1, 16, 16\)", lambda: WEIGHTS | {STEM: torch.zeros(96, 16)}),
    "not finite": ("has values that are not finite", lambda: WEIGHTS | {STEM: WEIGHTS[STEM] / 0}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    cause, make = BROKEN[kind]
    save_file(make(), tmp_path / "x.safetensors")
    with pytest.raises(EncoderError, match=f"x.safetensors: .*{cause}.*; use imagebind_huge.pth"):
        _ = module.ImageBindAudio(str(tmp_path / "x.safetensors"), TINY).network


def test_a_damaged_file_is_refused(tmp_path: Path, file: Path) -> None:
    for name, cause in (("x.safetensors", "cannot be read"), ("x.pth", "is cut short, or not a file of torch.save")):
        (tmp_path / name).write_bytes(file.read_bytes()[:1000])
        with pytest.raises(EncoderError, match=f"{name}: {cause}"):
            _ = module.ImageBindAudio(str(tmp_path / name), TINY).network


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "x.audio.y": Deed(tmp_path / "done")}, tmp_path / "x.pth")
    with pytest.raises(EncoderError, match=r"would call (posix|nt)\.mkdir"):
        _ = module.ImageBindAudio(str(tmp_path / "x.pth"), TINY).network
    assert not (tmp_path / "done").exists()
