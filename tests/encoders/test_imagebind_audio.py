"""ImageBind's ear hears what ImageBind hears, says when, and opens its weights only for who may use them.

The golden tensors were made by ImageBind's own code with seeded weights: a sound, its spectrum and its tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save_file
from torch import Tensor

from pave.encoder import CONSENT, load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.sidechannel import SideTokens

ears: Any = import_module("pave.encoders.imagebind_audio")
RATE = 16_000
GOLDEN, WEIGHTS = listening.golden("imagebind_audio")
TINY = listening.IMAGEBIND
noise = partial(listening.noise, RATE)
STEM = "modality_preprocessors.audio.rgbt_stem.proj.weight"


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONSENT, "1")
    monkeypatch.delenv(ears.PLACE, raising=False)


@pytest.fixture
def small(tmp_path: Path) -> Any:
    return listening.imagebind_audio(tmp_path)


@pytest.fixture
def file(small: Any) -> Path:
    return Path(small.weights)


@pytest.fixture
def listen(small: Any) -> Callable[..., SideTokens]:
    """What the small ear hears."""
    return listening.listener(small)


# what it hears


def test_the_spectrum_is_that_of_kaldi() -> None:
    windows = GOLDEN["wave"][0].unfold(0, 2 * RATE, RATE)[:2]
    assert (ears.spectra(windows) - GOLDEN["mel_clean"][:, 0]).abs().max() * ears.DEVIATION <= 5e-4


def test_the_trunk_gives_the_tokens_of_imagebind(file: Path) -> None:
    tokens = ears.ImageBindAudio(str(file), TINY).network(GOLDEN["input"][:, 0])
    assert (tokens - GOLDEN["output"]).abs().max() <= 1e-5


def test_the_checkpoint_of_imagebind_fits_to_the_last_weight() -> None:
    """177 tensors with 86,235,649 values; the names of the blocks are those of the golden ones."""
    with torch.device("meta"):
        weights = ears.Trunk(ears.Sizes()).state_dict()
    assert len(weights) == 177 and sum(weight.numel() for weight in weights.values()) == 86_235_649
    assert {name for name in weights if ".blocks." not in name} < WEIGHTS.keys() < weights.keys()


def test_a_token_hears_its_own_two_seconds_and_no_more(listen: Callable[..., SideTokens]) -> None:
    sound = noise(6)
    moved = sound.clone()
    moved[:, int(3.5 * RATE) : int(3.6 * RATE)] = 0
    here, there = listen(sound), listen(moved)
    changed = (here.x - there.x).abs().amax((1, 2, 3)) > 1e-4
    inside = (here.spans[:, 0] <= 3.5) & (here.spans[:, 1] >= 3.6)
    assert changed.tolist() == inside.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(("seconds", "steps"), [(2, 1), (2.99, 1), (3, 2), (7.9, 6), (30.9, 29)])
def test_there_is_a_token_for_every_second_but_the_last(
    listen: Callable[..., SideTokens], seconds: float, steps: int
) -> None:
    side = listen(noise(seconds), start=0.25)
    assert side.x.shape == (steps, 1, 1, 64) and side.times.tolist() == [0.25 + i + 1 for i in range(steps)]
    assert side.spans.tolist() == [[0.25 + i, 0.25 + i + 2] for i in range(steps)]
    assert torch.allclose(side.x.norm(dim=-1), torch.tensor(20.0))


@pytest.mark.parametrize("samples", [1, 399, 8000, 31_999])
def test_a_sound_of_less_than_two_seconds_is_one_token_of_what_is_there(
    listen: Callable[..., SideTokens], samples: int
) -> None:
    sound = noise(2)[:, :samples]
    side = listen(sound, start=1.0)
    assert side.spans.tolist() == [[1, 1 + samples / RATE]]
    assert side.times.tolist() == pytest.approx([1 + samples / RATE / 2])
    followed = torch.cat([sound, torch.zeros(1, 2 * RATE - samples)], dim=1)
    assert torch.equal(side.x, listen(followed).x)


def test_silence_has_one_token_of_the_same_norm(listen: Callable[..., SideTokens]) -> None:
    side = listen(torch.zeros(1, 4 * RATE))
    assert torch.allclose(side.x, side.x[:1]) and side.x[0].norm() == pytest.approx(20)


def test_long_sound_is_heard_in_parts_without_a_seam(
    file: Path, listen: Callable[..., SideTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise(60)
    encoder, looks = ears.ImageBindAudio(str(file), TINY), []
    encoder.network.register_forward_pre_hook(lambda module, args: looks.append(len(args[0])))
    side = encoder.encode(Clip(audio=sound, rate=RATE))
    assert side is not None and looks == [16, 16, 16, 11]  # an hour takes no more memory than 17 seconds
    assert torch.equal(side.x, listen(sound).x)
    monkeypatch.setattr(ears, "PART", 59)
    assert (side.x - listen(sound).x).abs().max() <= 1e-5


# what it is, and its weights


def test_what_it_is_can_be_read_without_weights_or_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONSENT)
    spec = load_encoder("imagebind-audio", weights="nowhere.pth").spec
    assert (spec.sense, spec.dim, spec.rate, spec.licence) == ("audio", 1024, 1.0, "CC-BY-NC-SA-4.0")
    assert spec == load_encoder("imagebind-audio").spec, "where the weights lie is nobody else's business"


@pytest.mark.parametrize("said", ["", "0", "no"])
def test_weights_wait_for_the_word_that_the_use_is_not_commercial(
    file: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv(CONSENT, said)
    with pytest.raises(EncoderError, match=r"CC-BY-NC-SA-4.0.* set PAVE_NONCOMMERCIAL=1"):
        ears.ImageBindAudio(str(file), TINY).encode(Clip(audio=noise(2), rate=RATE))


def test_without_weights_it_says_where_they_are() -> None:
    with pytest.raises(EncoderError, match=r"fetch https://.*imagebind_huge.pth .* PAVE_IMAGEBIND="):
        load_encoder("imagebind-audio").encode(Clip(audio=noise(2), rate=RATE))
    with pytest.raises(EncoderError, match=r"nowhere.pth: no such file; give one of this machine, or hf://"):
        load_encoder("imagebind-audio", weights="nowhere.pth").encode(Clip(audio=noise(2), rate=RATE))


def others() -> dict[str, Tensor]:
    return WEIGHTS | {"modality_trunks.vision.blocks.0.norm_1.weight": torch.zeros(8)}


@pytest.mark.parametrize("name", ["all.safetensors", "imagebind_huge.pth"])
def test_of_a_whole_checkpoint_only_the_audio_branch_is_read(
    listen: Callable[..., SideTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(others(), tmp_path / name)
    monkeypatch.setenv(ears.PLACE, str(tmp_path / name))
    side = ears.ImageBindAudio("", TINY).encode(Clip(audio=noise(2), rate=RATE))
    assert torch.equal(side.x, listen(noise(2)).x)


def test_weights_of_the_hub_are_those_of_the_file(
    file: Path, listen: Callable[..., SideTokens], tmp_path: Path
) -> None:
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("them/ears", {"sub/audio.safetensors": file.read_bytes()})
        side = ears.ImageBindAudio("hf://them/ears@main/sub/audio.safetensors", TINY)
        assert torch.equal(side.encode(Clip(audio=noise(2), rate=RATE)).x, listen(noise(2)).x)
        with pytest.raises(EncoderError, match=r"hf://them/ears/other.pth: has no such file"):
            _ = ears.ImageBindAudio("hf://them/ears/other.pth", TINY).network


class Deed:
    """What a pickle does when it is opened as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


BROKEN: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "one less": ("1 weights .* are missing, .*proj.weight", lambda: {k: v for k, v in WEIGHTS.items() if k != STEM}),
    "one more": ("1 weights .* are unknown, .*x.audio.y", lambda: WEIGHTS | {"x.audio.y": torch.zeros(1)}),
    "another model": ("51 weights .* are missing", lambda: {"model.weight": torch.zeros(1)}),
    "other shape": (r"is \(96, 16\), and must be \(96, 1, 16, 16\)", lambda: WEIGHTS | {STEM: torch.zeros(96, 16)}),
    "not finite": ("holds values that are not finite", lambda: WEIGHTS | {STEM: WEIGHTS[STEM] / 0}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    cause, made = BROKEN[kind]
    save_file(made(), tmp_path / "x.safetensors")
    with pytest.raises(EncoderError, match=f"x.safetensors: .*{cause}.*; give imagebind_huge.pth"):
        _ = ears.ImageBindAudio(str(tmp_path / "x.safetensors"), TINY).network


def test_a_damaged_file_is_refused(tmp_path: Path, file: Path) -> None:
    for name, cause in (("x.safetensors", "cannot be read"), ("x.pth", "is cut short, or not a file of torch.save")):
        (tmp_path / name).write_bytes(file.read_bytes()[:1000])
        with pytest.raises(EncoderError, match=f"{name}: {cause}"):
            _ = ears.ImageBindAudio(str(tmp_path / name), TINY).network


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "x.audio.y": Deed(tmp_path / "done")}, tmp_path / "x.pth")
    with pytest.raises(EncoderError, match=r"would call (posix|nt)\.mkdir"):
        _ = ears.ImageBindAudio(str(tmp_path / "x.pth"), TINY).network
    assert not (tmp_path / "done").exists()
