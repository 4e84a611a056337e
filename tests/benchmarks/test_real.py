"""The parts of `make real` that need no network: conversion, the building of a base, fetching from a folder."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from small import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperForConditionalGeneration

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "real")]
import base
import fetch
import films
import lines
import page
import scenes
import sentences
import sight
import speech
import stamps
import tower
import trainings
import whisper
from PIL import Image
from sources import SOURCES, Source
from whole import written

import pave
from pave.errors import DataError
from pave.evaluation.metrics.answers import distance

TOKENIZER = make_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", base.IMAGE, base.VIDEO])
VISION = {**tower.VISION, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def ctranslate2(model: WhisperForConditionalGeneration, file: Path) -> None:
    """Write a Whisper as CTranslate2 does: queries, keys and values fused, keys with a bias of zero."""
    state, made = model.state_dict(), {}

    def put(name: str, source: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        made[f"{name}/{kinds[0]}"], made[f"{name}/{kinds[1]}"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def fuse(name: str, source: str, parts: str) -> None:
        weights = [state[f"{source}.{part}_proj.weight"] for part in parts]
        biases = [state.get(f"{source}.{part}_proj.bias", torch.zeros(len(weights[0]))) for part in parts]
        made[f"{name}/weight"], made[f"{name}/bias"] = torch.cat(weights), torch.cat(biases)

    norm = ("gamma", "beta")
    for side in ("encoder", "decoder"):
        put(f"{side}/layer_norm", f"model.{side}.layer_norm", norm)
        made[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        for number in range(model.config.encoder_layers):
            name, source = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            fuse(f"{name}/self_attention/linear_0", f"{source}.self_attn", "qkv")
            put(f"{name}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            put(f"{name}/self_attention/layer_norm", f"{source}.self_attn_layer_norm", norm)
            put(f"{name}/ffn/layer_norm", f"{source}.final_layer_norm", norm)
            put(f"{name}/ffn/linear_0", f"{source}.fc1")
            put(f"{name}/ffn/linear_1", f"{source}.fc2")
            if side == "decoder":
                fuse(f"{name}/attention/linear_0", f"{source}.encoder_attn", "q")
                fuse(f"{name}/attention/linear_1", f"{source}.encoder_attn", "kv")
                put(f"{name}/attention/linear_2", f"{source}.encoder_attn.out_proj")
                put(f"{name}/attention/layer_norm", f"{source}.encoder_attn_layer_norm", norm)
    put("encoder/conv1", "model.encoder.conv1")
    put("encoder/conv2", "model.encoder.conv2")
    made["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]

    def text(words: str) -> bytes:
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(made))
    for name, tensor in made.items():
        raw = tensor.numpy().astype(np.float32).tobytes()
        content += text(name) + struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        content += struct.pack("<BI", 0, len(raw)) + raw
    file.write_bytes(content)


def test_a_whisper_of_ctranslate2_is_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids: dict[str, Any] = dict.fromkeys(("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"), 19)
    places: dict[str, Any] = {"max_source_positions": 10, "max_target_positions": 8}
    config = WhisperConfig(vocab_size=20, d_model=16, num_mel_bins=8, **sizes, **heads, **ids, **places)
    model = WhisperForConditionalGeneration(config).eval()
    ctranslate2(model, tmp_path / "model.bin")
    again = whisper.network(whisper.read(tmp_path / "model.bin"), heads=2)
    inputs = {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    content = (tmp_path / "model.bin").read_bytes()
    for broken, cause in ((content[:-5], "no whole model file"), (b"\x07" + content[1:], "version 7")):
        (tmp_path / "model.bin").write_bytes(broken)
        with pytest.raises(DataError, match=cause):
            whisper.read(tmp_path / "model.bin")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Stamps: three things, one with a sound, one drawn twice, and a sign."""
    root = tmp_path / "package" / stamps.STAMPS
    drawn = {
        "a/frog": "A frog.",
        "a/cow": "A cow!",
        "a/cow-2": "A cow.",
        "a/kettle": "Some kettle.",
        "symbols/x": "An x.",
    }
    for number, (name, caption) in enumerate(drawn.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((40, 30, 4), np.uint8)
        image[5:35, 5:25] = [40 * number, 255 - 40 * number, 90, 255]
        Image.fromarray(image).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"{caption}\nfr.utf8=une chose\n")
    (root / "a/cow.ogg").write_bytes(b"")
    return tmp_path / "package"


def test_stamps_become_things_with_one_picture_if_they_sound(package: Path) -> None:
    found = {thing.name: thing for thing in stamps.things(package)}
    assert list(found) == ["cow", "frog", "kettle"]
    assert [picture.name for picture in found["cow"].pictures] == ["cow.png"] and found["cow"].sound
    assert found["kettle"].called == "some kettle" and found["kettle"].sound is None


@pytest.fixture
def language() -> LlamaForCausalLM:
    """A small language model."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), tie_word_embeddings=True, **sizes))


@pytest.fixture
def made_base(package: Path, tmp_path: Path, language: Any) -> Path:
    """A base around it, whose eyes have learned for two steps."""
    kinds = stamps.things(package)
    eyes = tower.Eyes(base.config(language, TOKENIZER, VISION))
    words = base.words(language, TOKENIZER, [kind.name for kind in kinds])
    assert 0 <= tower.train(eyes, kinds, *words, tower.Budget(steps=2, batch=2), workers=0) <= 1
    line = base.line(language, TOKENIZER)
    speaker = speech.Speaker(language, TOKENIZER, line)
    before = [each.clone() for each in language.parameters()]
    speech.teach(eyes, speaker, kinds, *words, tower.Budget(steps=2, batch=2), workers=0)
    assert all(torch.equal(now, then) for now, then in zip(language.parameters(), before, strict=True))
    base.assemble(language, TOKENIZER, eyes, tmp_path / "base")
    return tmp_path / "base"


def test_a_base_is_built_around_a_language_model_and_opens(
    made_base: Path, package: Path, tmp_path: Path, language: Any
) -> None:
    kinds = stamps.things(package)
    model = pave.load(made_base, dtype="bfloat16")
    assert model.host.frames == base.FRAMES and model.host.grid == (3, 3)
    seen = sight.measure(made_base, kinds, 4)
    assert (seen["pictures"], seen["choices"], len(seen["in_its_own_words"])) == (4, 3, 4)
    assert 0 <= seen["top1"] <= seen["top5"] == 1
    own = model.base.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(own, language.model.layers[0].mlp.up_proj.weight.bfloat16())
    rng = np.random.default_rng(0)
    frames = scenes.film(scenes.draw(kinds[:2], rng), 2, rng)
    clip = lines.Clip("0", frames, np.zeros(films.RATE, np.float32), (("What?", "a cow"), ("Who?", "a frog")))
    assert lines.write(tmp_path / "data", "test", [clip]) == 2
    found = pave.evaluate(model, tmp_path / "data/test.jsonl")
    assert len(found.samples) == 2
    trainings.silence(tmp_path / "data/test.jsonl", tmp_path / "data/silent.jsonl")
    assert json.loads((tmp_path / "data/silent.jsonl").read_text().splitlines()[0])["signals"] == {"audio": None}
    assert trainings.figures(found)["asked"] == 2


def test_names_are_as_likely_as_in_a_pass_of_their_own(made_base: Path, package: Path) -> None:
    model, rng = pave.load(made_base, dtype="float32"), np.random.default_rng(0)
    frames = scenes.film(scenes.draw(stamps.things(package)[:1], rng), 2, rng)
    names = [model.host.encode_text(name) for name in (" frog", " a", " long name")]
    network: Any = model.base
    pixels = tower.scaled(torch.from_numpy(frames.copy()).permute(0, 3, 1, 2))
    states = network.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    tokens = speech.pooled(network.model.multi_modal_projector(states))
    seen = network.model.get_video_features(pixels[None], return_dict=True).pooler_output[0, :-1]
    torch.testing.assert_close(tokens.flatten(0, 1), seen)  # what the projector was taught with is what the model reads
    together = sight.likelihoods(model, frames, names)
    alone = [sight.likelihoods(model, frames, [name])[0] for name in names]
    torch.testing.assert_close(together, torch.stack(alone))
    clip = pave.Clip.from_frames(torch.from_numpy(frames.copy()).permute(0, 3, 1, 2), torch.arange(2.0).double())
    inputs = model.prepare(model.encode([clip]), [sight.QUESTION], patches=())
    rest = [*model.host.encode_text(sight.OPENING), *names[2]]
    ids = torch.cat([inputs.input_ids, torch.tensor([rest])], 1)
    whole = replace(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        logits = model.forward(whole).logits[0, -len(names[2]) - 1 : -1].log_softmax(-1)
    each = logits[range(len(names[2])), names[2]]
    torch.testing.assert_close(together[2], each.mean(), rtol=1e-4, atol=1e-4)


def test_two_things_stand_side_by_side_and_cover_their_patches(package: Path) -> None:
    scene = scenes.draw(stamps.things(package)[:2], np.random.default_rng(0))
    left, right = scene.cover(tower.PATCH)
    assert left[:, :3].sum() > 1 and right[:, 3:].sum() > 1 and left[:, 4:].sum() == right[:, :2].sum() == 0


def test_every_source_is_pinned() -> None:
    assert all(len(source.sha256) == 64 and source.version and source.licence and source.size for source in SOURCES)
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_a_package_of_other_bytes_or_none_is_refused_with_its_name(tmp_path: Path) -> None:
    source = Source("nobody-has-this", "pip", "1", "nobody.whl", "0" * 64, 3, "none", "a test")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/nobody.whl").write_bytes(b"abc")
    with pytest.raises(DataError, match="has sha256 ba7816bf"):
        fetch.fetch([source], tmp_path)
    assert not (tmp_path / "unpacked/nobody-has-this").exists()
    (tmp_path / "packages/nobody.whl").unlink()
    offline = {**fetch.CLIENTS, "pip": (*fetch.CLIENTS["pip"][:-1], "--no-index", fetch.CLIENTS["pip"][-1])}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=r"package nobody-has-this 1 .*put that"):
        patch.setattr(fetch, "CLIENTS", offline)
        fetch.fetch([source], tmp_path)


def test_what_was_not_finished_is_done_again(tmp_path: Path) -> None:
    def half(place: Path) -> None:
        place.mkdir()
        (place / "first").write_text("")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        written(tmp_path / "stage", half)
    assert not (tmp_path / "stage").exists()
    written(tmp_path / "stage", lambda place: (place.mkdir(), (place / "second").write_text("")))
    assert [each.name for each in written(tmp_path / "stage", half).iterdir()] == ["second"]


@pytest.mark.parametrize(("wanted", "given", "wrong"), [("a b c", "a x c d", 2), ("a b", "", 2), ("a", "a", 0)])
def test_word_errors_are_counted(wanted: str, given: str, wrong: int) -> None:
    assert distance(wanted.split(), given.split()) == wrong
    assert sentences.error_rate([(wanted, given)]) == wrong / len(wanted.split())


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = trainings.interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Newcombe 1998, method 3
    assert page.spread([0.5, 0.25]) == "0.250 to 0.500"


RECIPE = """
name: tiny
base: unset
frames: 1
senses: {audio: {encoder: logmel, options: {bands: 8, rate: 5}}}
fusion: {kind: folded, width: 16, heads: 2}
lora: {r: 1, lora_alpha: 1}
data: {train: unset}
train: {steps: 2, batch: 2, gate: false}
"""


def test_a_training_is_measured_with_its_controls(made_base: Path, package: Path, tmp_path: Path) -> None:
    rng, kinds = np.random.default_rng(0), stamps.things(package)[:2]
    clips = [
        lines.Clip(
            str(number),
            scenes.film(scenes.draw(kinds, rng), 1, rng),
            films.placed(rng.normal(0, 1, 4000), 0.5, rng),
            (("Which?", kinds[number % 2].name),),
            {"pair": str(number // 2)},
        )
        for number in range(4)
    ]
    for split in ("train", "test"):
        lines.write(tmp_path / "pairs", split, clips)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    short = trainings.Training(str(tmp_path / "tiny"), "pairs", ("train.keep=0", "train.steps=1"))
    later = trainings.Training(str(tmp_path / "tiny"), "pairs", ("train.keep=0",), after="first")
    found = trainings.run("tiny, pairs", {"first": short, "tiny, pairs": later}, 0, tmp_path)
    first, patch = (pave.Patch.load(tmp_path / "runs" / name) for name in ("first-0", "tiny-pairs-0"))
    assert patch.config.training["start_from"] == {"tiny": first.sha256}
    assert found["off"] == found["base"], "without sound, the answers are the base's"
    assert all(found[control]["pairs"] == 2 for control in page.CONTROLS)
    assert 0 <= found["retention"]["tokens"] <= 1 and found["steps"] == 2
    table = "\n".join(page.table({"tiny": [found]}, "strict_pairs") + page.cost({"tiny": [found]}))
    assert "| tiny | 1 |" in table and "2 × 2" in table
