"""The InstructBLIP encoder: equal to transformers' model, picture by picture, with an instruction."""

from __future__ import annotations

from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pave.encoder import Encoder, load_encoder
from pave.errors import EncoderError
from pave.hub.catalogue import folder_of
from pave.media.clip import Clip
from pave.recipe import read_recipe
from pave.sidechannel import SideTokens

SMALL: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = InstructBlipVisionConfig(**SMALL, image_size=56)
BERT: dict[str, Any] = {"hidden_size": 32, "vocab_size": 20, "max_position_embeddings": 16, "encoder_hidden_size": 48}
QFORMER = InstructBlipQFormerConfig(**{**SMALL, **BERT})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "describe", "the", "picture", ".", "what", "is", "heard", "?"]


@pytest.fixture(scope="module")
def model() -> InstructBlipForConditionalGeneration:
    """A small InstructBLIP with its language model."""
    text = OPTConfig(
        **{key: SMALL[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")},
        vocab_size=50,
        ffn_dim=64,
        word_embed_proj_dim=48,
        max_position_embeddings=64,
    )
    config = InstructBlipConfig(vision_config=VISION, qformer_config=QFORMER, text_config=text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = InstructBlipForConditionalGeneration(config).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return made


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The encoder's module, for networks of the small size."""
    found = import_module("pave.encoders.instructblip_video")
    monkeypatch.setattr(found, "VISION", VISION)
    monkeypatch.setattr(found, "QFORMER", QFORMER)
    return found


@pytest.fixture(scope="module")
def saved(model: InstructBlipForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As saved by transformers, with the tokenizer of its Q-Former."""
    folder = tmp_path_factory.mktemp("instructblip")
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (folder / "qformer_tokenizer").mkdir()
    tokenizer.save(str(folder / "qformer_tokenizer" / "tokenizer.json"))
    return folder


@pytest.fixture
def encoder(module: Any, saved: Path) -> Encoder:
    return load_encoder("instructblip-video", weights=saved)


def frames(count: int, size: tuple[int, int] = (48, 64)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), generator=draw, dtype=torch.uint8)


def seconds(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / 2


def seen(encoder: Encoder, clip: Clip) -> SideTokens:
    side = encoder.encode(clip)
    assert side is not None
    return side


# The network


def pixels(pictures: Tensor) -> Tensor:
    """As in transformers' slow processor of BLIP: Pillow scales any shape to a square."""
    images = [Image.fromarray(rearrange(picture, "c y x -> y x c").numpy()) for picture in pictures]
    scaled = np.stack([np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC), np.float32) for image in images])
    normal = (scaled / 255 - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    return rearrange(torch.from_numpy(normal).float(), "t y x c -> t c y x")


@pytest.mark.parametrize(
    ("instruction", "ids"),
    [("Describe the picture.", [2, 4, 5, 6, 7, 3]), ("what is heard?", [2, 8, 9, 10, 11, 3]), ("a", [2, 1, 3])],
)
def test_tokens_equal_the_queries_of_transformers(instruction, ids, model, module, saved):
    pictures = frames(10, (56, 56))
    side = seen(
        load_encoder("instructblip-video", weights=saved, instruction=instruction),
        Clip.from_frames(pictures, seconds(10)),
    )
    with torch.no_grad():
        instructions = torch.tensor([ids] * 10)
        known = model.get_image_features(pixels(pictures), instructions, return_dict=True).qformer_outputs[0][:, :32]
    assert side.x.shape == (10, 1, 32, 32) and torch.allclose(side.x[:, 0], known, atol=1e-4)
    assert known.std(dim=0).min() > 1e-3, "the comparison can fail"


def test_without_an_instruction_the_queries_attend_to_the_picture_only(model, module, saved, tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in load_file(saved / "model.safetensors").items()},
        tmp_path / "model.safetensors",
    )
    encoder = load_encoder("instructblip-video", weights=tmp_path, instruction="")
    side = seen(encoder, Clip.from_frames(frames(2, (56, 56)), seconds(2)))
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels(frames(2, (56, 56)))).last_hidden_state
        queries = model.query_tokens.expand(2, -1, -1)
        known = model.qformer(None, query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    assert torch.allclose(side.x[:, 0], known, atol=1e-4)
    with pytest.raises(EncoderError, match=r"holds no qformer_tokenizer/tokenizer.json; .* or set instruction=''"):
        load_encoder("instructblip-video", weights=tmp_path).encode(Clip.from_frames(frames(1)))
    (tmp_path / "qformer_tokenizer").mkdir()
    (tmp_path / "qformer_tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"tokenizer\.json: not a tokenizer"):
        load_encoder("instructblip-video", weights=tmp_path / "model.safetensors").encode(Clip.from_frames(frames(1)))


def test_every_tensor_of_the_release_fits_the_network_exactly():
    """A second list of the names from transformers' convert_instructblip_original_to_pytorch.py: 986 million parameters
    of EVA-CLIP's ViT-g, 186 of the Q-Former."""
    module = import_module("pave.encoders.instructblip_video")
    with torch.device("meta"):
        network = module.VisionTower()
    d, q = 1408, 768

    def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, 32, q)}
    shapes |= {
        "vision_model.embeddings.class_embedding": (1, 1, d),
        "vision_model.embeddings.position_embedding": (1, 257, d),
    }
    shapes |= pair("vision_model.embeddings.patch_embedding", d, 3, 14, 14) | pair("vision_model.post_layernorm", d)
    for i in range(39):
        layer = f"vision_model.encoder.layers.{i}"
        shapes |= pair(f"{layer}.self_attn.qkv", 3 * d, d) | pair(f"{layer}.self_attn.projection", d, d)
        shapes |= pair(f"{layer}.layer_norm1", d) | pair(f"{layer}.layer_norm2", d)
        shapes |= pair(f"{layer}.mlp.fc1", 6144, d) | pair(f"{layer}.mlp.fc2", d, 6144)
    words = "qformer.embeddings"
    shapes |= {f"{words}.word_embeddings.weight": (30_523, q), f"{words}.position_embeddings.weight": (512, q)}
    shapes |= pair(f"{words}.layernorm", q)
    for i in range(12):
        layer = f"qformer.encoder.layer.{i}"
        for look, read in (("attention", q), ("crossattention", d))[: 2 - i % 2]:
            shapes |= pair(f"{layer}.{look}.attention.query", q, q) | pair(f"{layer}.{look}.attention.key", q, read)
            shapes |= pair(f"{layer}.{look}.attention.value", q, read) | pair(f"{layer}.{look}.output.dense", q, q)
            shapes |= pair(f"{layer}.{look}.output.LayerNorm", q)
        for which in ("", "_query"):
            shapes |= pair(f"{layer}.intermediate{which}.dense", 3072, q) | pair(
                f"{layer}.output{which}.dense", q, 3072
            )
            shapes |= pair(f"{layer}.output{which}.LayerNorm", q)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.vision_model, network.qformer)]
    assert [round(each) for each in millions] == [986, 186]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("query_tokens"), r"1 of its weights are missing \(query_tokens"),
        (lambda w: w.update(extra=torch.ones(1)), r"1 of its weights are unexpected \(extra"),
        (lambda w: w["query_tokens"].fill_(torch.nan), "1 of its weights are not finite"),
        (lambda w: w.update(query_tokens=torch.ones(3)), r"query_tokens is \(3,\)"),
    ],
)
def test_a_damaged_release_is_refused(change, message, module, saved, tmp_path):
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=message):
        load_encoder("instructblip-video", weights=tmp_path, instruction="").encode(Clip.from_frames(frames(1)))


def test_position_ids_in_an_old_release_are_ignored(module, saved, tmp_path, encoder):
    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "qformer.embeddings.position_ids": torch.arange(16)[None]}, tmp_path / "model.safetensors")
    old, clip = load_encoder("instructblip-video", weights=tmp_path, instruction=""), Clip.from_frames(frames(1))
    new = load_encoder("instructblip-video", weights=saved, instruction="")
    assert torch.equal(seen(old, clip).x, seen(new, clip).x) and not torch.equal(
        seen(encoder, clip).x, seen(new, clip).x
    )


def test_the_spec_needs_no_weights_and_contains_no_path(monkeypatch):
    monkeypatch.setenv("PAVE_INSTRUCTBLIP", "/nowhere")
    spec = load_encoder("instructblip-video", weights="/home/somebody").spec
    assert (spec.sense, spec.dim, spec.rate, spec.grid, spec.licence) == ("fast", 768, 2, (1, 32), "other")
    assert spec == load_encoder("instructblip-video", **spec.options).spec
    assert spec.preprocessing != load_encoder("instructblip-video", instruction="").spec.preprocessing
    with pytest.raises(EncoderError, match="/nowhere: not a local folder"):
        load_encoder("instructblip-video").encode(Clip.from_frames(frames(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": ""}, "needs a text for release, got ''"),
        ({"revision": 3}, "needs a text for revision, got 3"),
        ({"instruction": None}, "needs a text for instruction, got None"),
        ({"rate": 0}, "up to 1000 frames per second, got rate=0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder("instructblip-video", **options)


# Tokens of a clip


@pytest.mark.parametrize(("pictures", "steps"), [(1, 1), (25, 2), (27, 3), (250, 20)])
def test_a_file_is_encoded_twice_a_second(pictures, steps, tmp_path, encoder):
    path = write_clip(tmp_path / "a.mp4", counting_frames(pictures), 25)
    side = seen(encoder, Clip.read(path, frames=4, timeout=None))
    assert side.x.shape == (steps, 1, 32, 32) and side.x.dtype == torch.float32 and side.valid.all()
    assert side.times.tolist() == [i / 2 for i in range(steps)]
    assert torch.equal(side.spans, side.times[:, None].expand(-1, 2))


def test_a_picture_is_encoded_independently(encoder):
    pictures = frames(9)
    other = pictures.clone()
    other[3] = 255 - other[3]
    one, two = (seen(encoder, Clip.from_frames(each, seconds(9))).x for each in (pictures, other))
    assert (one != two).flatten(1).any(1).tolist() == [i == 3 for i in range(9)]


def test_a_clip_without_pictures_is_absent(encoder):
    assert encoder.encode(Clip.from_frames(audio=torch.zeros(1, 100), rate=100)) is None


def test_favors_recipe_accepts_it_instead_of_the_base_s_vision_tower():
    overrides = ["senses.fast={encoder: instructblip-video}", "resampler.slots=32", "data.train=/nowhere.jsonl"]
    recipe = read_recipe(folder_of("favor-av-prefix"), overrides)
    spec = load_encoder("instructblip-video", **recipe.senses["fast"].options).spec
    assert recipe.resampler and recipe.resampler.slots == prod(spec.grid) and spec.rate == recipe.resampler.rate
