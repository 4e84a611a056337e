"""The BEATs encoder: equal to the original, on the clip's clock, with checked checkpoints.

The golden tensors were made by the copy of BEATs in speechbrain 1.1.2 (lobes/models/beats.py) with seeded weights: a
normalised spectrum and its tokens. Here, its two weights of `pos_conv` are named as in the checkpoints. The spectrum
and the clock are tested in tests/senses/test_fbank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import listening
import pytest
import torch
from hub_server import HubServer
from patched import sense
from small import awaken, make_clip, make_config
from torch import Tensor

from pave.config import ResamplerConfig
from pave.encoder import load_encoder
from pave.errors import EncoderError
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.senses.fbank import POVEY, SAMPLE_RATE, fbank
from pave.sidechannel import SideTokens

module: Any = import_module("pave.encoders.beats_audio")
GOLDEN, WEIGHTS = listening.golden("beats")
RELEASE, TINY = "BEATs_iter3_plus_AS2M", listening.BEATS
noise = partial(listening.noise, SAMPLE_RATE)
SHORT = Clip(audio=torch.zeros(1, SAMPLE_RATE), rate=SAMPLE_RATE)
# Config of all 15 released checkpoints, without dropout and the classes of fine-tuned ones: read from the files by
# TioSisai/timbral (src/timbral/models/helpers/beats.py).
RELEASED = {
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
}


def save(path: Path, weights: dict[str, Any] = WEIGHTS, **changes: Any) -> Path:
    torch.save({"cfg": RELEASED | changes, "model": weights}, path)
    return path


def tiny(weights: Path | str) -> Any:
    return module.BeatsAudio(module.Options(weights=weights), TINY)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.PLACE, raising=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    encoder = tiny(save(tmp_path_factory.mktemp("tiny") / "x.pt"))
    assert encoder.network is encoder.network
    return encoder


@pytest.fixture
def encode(small: Any) -> Callable[..., SideTokens]:
    """Side tokens of the small encoder."""
    return listening.listener(small)


# tokens


def test_tokens_of_the_network_equal_those_of_beats(small: Any) -> None:
    """Frames of an incomplete patch are ignored."""
    mel = torch.cat([GOLDEN["input"], torch.ones(15, 128)])[None].to(small.network.device)
    with torch.no_grad():
        assert (small.network(mel)[0].cpu() - GOLDEN["output"]).abs().max() <= 1e-5


def test_position_buckets_are_those_of_the_t5_paper() -> None:
    """Exact up to 80 tokens, then logarithmic up to 800; later tokens are in the other 160 buckets."""
    buckets = module.buckets(1000)
    assert buckets[500, 500].item() == 0 and buckets[500, 421].item() == 79 and buckets[500, 579].item() == 239
    assert buckets[500, 420].item() == 80 and buckets[500, 499].item() == 1 and buckets[500, 501].item() == 161
    half = 999 - torch.tensor([252, 253])  # 80 · 10^(40 / 80) is 252.98
    assert buckets[999, half].tolist() == [80 + 39, 80 + 40]
    assert buckets[999, 0].item() == 159 and buckets[0, 999].item() == 319


def test_every_tensor_of_a_checkpoint_fits_the_network_exactly() -> None:
    """250, without the two of a predictor. Names: those of the golden weights, also in test_beats.py of
    TioSisai/timbral (tests/models/encoders). Shapes follow from `RELEASED`."""
    with torch.device("meta"):
        weights = module.Beats(module.Sizes()).state_dict()
    assert len(weights) == 250 and sum(weight.numel() for weight in weights.values()) == 90_354_032
    blocks = {name.replace(".0.", f".{i}.") for name in WEIGHTS if ".layers.0." in name for i in range(12)}
    assert weights.keys() == blocks | {name for name in WEIGHTS if ".layers." not in name}
    shapes = {name: tuple(weights[name].shape) for name in weights}
    assert shapes["patch_embedding.weight"] == (512, 1, 16, 16) and shapes["post_extract_proj.weight"] == (768, 512)
    assert shapes["encoder.pos_conv.0.weight_g"] == (1, 1, 128)
    assert shapes["encoder.pos_conv.0.weight_v"] == (768, 768 // 16, 128)
    assert shapes["encoder.layers.11.fc1.weight"] == (3072, 768)
    assert shapes["encoder.layers.11.self_attn.relative_attention_bias.weight"] == (320, 12)
    assert shapes["encoder.layers.11.self_attn.grep_linear.weight"] == (8, 64)


def test_the_spectrum_is_that_of_16_bit_samples() -> None:
    """(x - 15.41663) / (2 · 6.55582) of Kaldi's fbank with the window of Povey: `preprocess` of BEATs."""
    sound = noise(1)[0]
    expected = (fbank(32768 * sound, 128, POVEY) - 15.41663) / 13.11164
    assert torch.allclose(module.spectrum(sound), expected, atol=1e-6)


def test_the_first_row_of_a_step_reads_its_lowest_frequencies(small: Any) -> None:
    tone = torch.sin(2 * torch.pi * 200 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    mel = module.spectrum(tone).to(small.network.device)
    assert mel.mean(0).argmax() < 16
    inputs = []
    hook = small.network.layer_norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for spectrum in (mel, mel.index_fill(0, torch.arange(16, 32, device=mel.device), 0)):
        small.network(torch.cat([spectrum[:, :16], mel[:, 16:]], dim=1)[None])
    hook.remove()
    assert (inputs[0] != inputs[1]).any(-1).nonzero().tolist() == [[0, 8]], "the second step, the lowest of 8 rows"


def test_a_click_changes_only_its_window(encode: Callable[..., SideTokens]) -> None:
    sound = noise(12)
    clicked = sound.clone()
    clicked[:, int(4.5 * SAMPLE_RATE) : int(4.5 * SAMPLE_RATE) + 400] = 1.0
    here, there = encode(sound), encode(clicked)
    spanned = (here.spans[:, 0] < 4.5) & (here.spans[:, 1] > 4.5)
    assert torch.equal((here.x != there.x).flatten(1).any(1), spanned)
    assert spanned.tolist() == [True] * 62 + [False] * 12


def test_it_works_as_a_third_sense_of_a_q_former(small: Any, one: PatchedModel) -> None:
    """Beside spectra and dense pictures; each of the three changes the update, and without all there is none."""
    tower = load_encoder("base-tower", rate=2, grid=[1, 1]).on(one.host).spec.facts("time")
    senses = {"audio": sense(bands=16, rate=10), "events": small.spec.facts("time"), "fast": tower}
    rows = small.spec.grid[0] * small.spec.grid[1]
    resampler = ResamplerConfig(slots=25 * rows, window=4, queries=3, width=16, heads=2)
    config = make_config(one.host, "favor", senses=senses, resampler=resampler)
    attached: Any = one.attach("favor", config, trainable=False)
    awaken(one, "favor")
    assert attached.resampler.width == 3 * 16
    clip = make_clip(0)
    (features,) = one.encode([clip], [senses["audio"], tower])
    keys = [facts.preprocessing for facts in senses.values()]
    features = replace(features, sides={**features.sides, small.spec.preprocessing: small.encode(clip)})
    (whole,) = one.fused_tokens(one.prepare([features], ["?"]))
    for key in keys:
        (less,) = one.fused_tokens(one.prepare([replace(features, sides={**features.sides, key: None})], ["?"]))
        assert not torch.equal(less, whole) and not torch.equal(less, features.tokens)
    (none,) = one.fused_tokens(one.prepare([replace(features, sides=dict.fromkeys(keys))], ["?"]))
    assert torch.equal(none, features.tokens)


def test_a_window_does_not_depend_on_what_follows(encode: Callable[..., SideTokens]) -> None:
    sound, step, window = noise(21), 158_720, 158_960
    whole, first, second = (encode(each) for each in (sound, sound[:, :window], sound[:, step : step + window]))
    assert torch.equal(whole.x[:62], first.x) and torch.equal(whole.x[62:124], second.x) and len(whole.x) == 131


# spec and weights


def test_the_spec_needs_no_weights_and_contains_no_path() -> None:
    spec = load_encoder("beats-audio", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.grid, spec.rate, spec.licence) == ("audio", 768, (8, 1), 6.25, "MIT")
    assert spec == load_encoder("beats-audio", **spec.options).spec and spec.revision == RELEASE
    assert spec.preprocessing != load_encoder("beats-audio", release="BEATs_iter3").spec.preprocessing
    for release in ("", 3):
        with pytest.raises(EncoderError, match="needs the name of a checkpoint"):
            load_encoder("beats-audio", release=release)


def test_without_weights_the_error_says_where_to_get_them() -> None:
    message = rf"download {RELEASE}.pt from https://.*/beats, and set the option weights or, .* PAVE_BEATS to its path"
    with pytest.raises(EncoderError, match=message):
        load_encoder("beats-audio").encode(SHORT)
    with pytest.raises(EncoderError, match=r"/nowhere/x\.pt: not a local folder or file"):
        load_encoder("beats-audio", weights="/nowhere/x.pt").encode(SHORT)


def test_a_checkpoint_is_found_by_name_in_a_folder_or_on_the_hub(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a fine-tuned one; and with one tensor shared by all layers, as in the originals."""
    shared = dict(WEIGHTS)
    for i in range(3):
        table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        shared[table.format(i)] = shared[table.format(0)]
    predictor = {"predictor.weight": torch.zeros(527, 48), "predictor.bias": torch.zeros(527)}
    file = save(tmp_path / f"{RELEASE}.pt", shared | predictor, finetuned_model=True)
    monkeypatch.setenv(module.PLACE, str(tmp_path))
    assert torch.equal(tiny("").encode(SHORT).x, small.encode(SHORT).x)
    with HubServer() as server, server.client(tmp_path / "cache"):
        server.create("them/beats", {f"{RELEASE}.pt": file.read_bytes()})
        assert torch.equal(tiny("them/beats").encode(SHORT).x, small.encode(SHORT).x)
    file.rename(tmp_path / "BEATs_iter1.pt")
    with pytest.raises(EncoderError, match=f"holds no {RELEASE}.pt; use {RELEASE}.pt from https://"):
        tiny("").encode(SHORT)


def opened(weights: dict[str, Tensor], **metadata: Any) -> Any:
    return module.beats(weights, metadata, TINY, "x.pt", "use another")


STEM = "patch_embedding.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({STEM: None}, rf"1 of its weights are missing \({STEM}"),
        ({"encoder.mask_emb": torch.zeros(1)}, r"1 of its weights are unexpected \(encoder.mask_emb"),
        ({STEM: torch.zeros(32, 256)}, r"is \(32, 256\) of torch.float32, the network needs \(32, 1, 16, 16\)"),
        ({STEM: WEIGHTS[STEM] / 0}, "1 of its weights are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    weights = {name: value for name, value in (WEIGHTS | change).items() if value is not None}
    with pytest.raises(EncoderError, match=rf"x\.pt: .*{message}"):
        opened(weights, cfg=RELEASED)


@pytest.mark.parametrize("change", [{"max_distance": 1280}, {"deep_norm": False}, {"layer_norm_first": True}])
def test_another_network_of_the_same_shapes_is_refused(change: dict[str, Any]) -> None:
    """Such as some of OpenBEATs: only the metadata of the file shows it."""
    (name, value), *_ = change.items()
    with pytest.raises(EncoderError, match=rf"x\.pt: its config has .*'{name}': {value}.*; use another"):
        opened(WEIGHTS, cfg=RELEASED | change)


@pytest.mark.parametrize("metadata", [{}, {"cfg": "dict"}])
def test_weights_without_a_config_are_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(EncoderError, match=r"x\.pt: its config has None"):
        opened(WEIGHTS, **metadata)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(save(tmp_path / "x.pt").read_bytes()[:5000])
    with pytest.raises(EncoderError, match=r"x\.pt: .*cut short"):
        tiny(tmp_path / "x.pt").encode(SHORT)
