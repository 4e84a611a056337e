"""Claims about bases: features are those that Hugging Face computes, and special tokens in user text stay text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FRAMES, make_base
from safetensors.torch import load_file, save_file
from small import make_clip
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import pave
from pave.base import Host
from pave.errors import BaseModelError, MediaError
from pave.loading.base import EMBEDDED, load_base
from pave.media.clip import Clip
from pave.prompt import Prompter

COLOURS = '{"image_mean": [0.5, 0.5, 0.5], "image_std": %s}'


def hugging_face_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_tokens_are_those_of_get_video_features_to_the_bit(base: Host) -> None:
    pixels = base.pixels(make_clip())
    visual = base.encode([pixels])
    with torch.no_grad():
        official = base.model.model.get_video_features(pixels[None], return_dict=True).pooler_output[0]
    assert torch.equal(base.pack(visual.tokens[0], "end"), official)


def test_projected_vision_features_are_the_tokens(base: Host) -> None:
    """The projector is not linear, so pooling first would differ: check on a grid that pooling does not change."""
    pixels = base.pixels(make_clip())
    with torch.no_grad():
        seen = base.model.model.get_video_features(pixels[None], return_dict=True, output_hidden_states=True)
        expected = base.model.model.apply_pooling(seen.hidden_states[-1])
    assert torch.equal(base.encode([pixels]).vision[0], expected)
    assert not torch.allclose(seen.last_hidden_state, seen.hidden_states[-1])


def test_clips_of_different_lengths_have_the_features_of_single_clips(base: Host) -> None:
    pixels = [base.pixels(make_clip(seed, frames)) for seed, frames in ((0, 4), (1, 2), (2, 3))]
    together = base.encode(pixels)
    chunked = base.encode(pixels, chunk=2)
    assert together.frames.tolist() == [4, 2, 3]
    for i, clip in enumerate(pixels):
        alone = base.encode([clip])
        torch.testing.assert_close(together.tokens[i, : len(clip)], alone.tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(chunked.vision[i, : len(clip)], alone.vision[0], atol=1e-5, rtol=1e-5)
        assert not together.tokens[i, len(clip) :].any()


def test_grid_newlines_follow_each_row_of_each_frame(base: Host) -> None:
    tokens = torch.randn(3, base.tokens_per_frame, base.dim)
    rows = base.pack(tokens, "grid")
    high, wide = base.grid
    assert len(rows) == base.rows_of(3, "grid") == 3 * high * (wide + 1)
    assert base.newline is not None and torch.equal(rows[wide :: wide + 1], base.newline.expand(3 * high, -1))
    assert torch.equal(rows.view(3, high, wide + 1, -1)[:, :, :wide].flatten(1, 2), tokens)


def test_grid_of_the_released_size_takes_6720_rows(base: Host) -> None:
    """32 key frames of 14 x 14 tokens: the number in the official code (PAVE, Liu et al., CVPR 2025)."""
    base.model.config.vision_config.image_size, base.model.config.vision_config.patch_size = 384, 14
    assert base.grid == (14, 14)
    assert [base.rows_of(32, newline) for newline in ("grid", "end", "none")] == [6720, 6273, 6272]


def test_prompt_is_the_template_tokenised_whole(base: Host, tokenizer: PreTrainedTokenizerFast) -> None:
    before, behind = base.prompt("What do you hear?")
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<video>\n"
        "What do you hear?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [*before, base.placeholder, *behind] == hugging_face_tokenizer(tokenizer, text)


@pytest.mark.parametrize("word", ["<video>", "<image>", "<|im_end|>", "<|im_start|>system", "{video}", "{question}"])
def test_special_tokens_in_user_text_stay_text(base: Host, tokenizer: PreTrainedTokenizerFast, word: str) -> None:
    question = f"Is {word} here?"
    plain = base.prompt("Is it here?")
    asked = base.prompt(question)
    special = set(tokenizer.get_added_vocab().values())
    count = [sum(token in special for side in sides for token in side) for sides in (plain, asked)]
    assert count[0] == count[1]
    assert question in tokenizer.decode(asked[1])
    naive = hugging_face_tokenizer(tokenizer, question)
    assert word.startswith("{") or not special.isdisjoint(naive), (
        "the tokenizer alone must give a special token, or this test shows nothing"
    )


def test_a_special_token_that_plain_text_would_give_is_refused() -> None:
    """The vocabulary of this tokenizer itself knows the word, so that no splitting keeps users from writing it."""
    words = Tokenizer(WordLevel({"hello": 0, "<stop>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    prompter = Prompter(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<stop>"), "{video}{question}<stop>")
    assert prompter.encode_text("hello hello") == [0, 0] and prompter.prompt("hello") == ([], [0, 1])
    for ask in (prompter.encode_text, prompter.prompt):
        with pytest.raises(BaseModelError, match="special token in the plain text 'hello <stop>'; change the wording"):
            ask("hello <stop>")


def test_template_without_its_special_tokens_is_refused(base: Host) -> None:
    with pytest.raises(BaseModelError, match=r"<\|turn\|>"):
        base.prompt("?", "<|turn|>{video}{question}")
    with pytest.raises(BaseModelError, match="once"):
        base.prompt("?", "{question}")


def test_fingerprint_is_of_the_language_model(tokenizer: PreTrainedTokenizerFast) -> None:
    one, longer, changed, other = (make_base(tokenizer, seed=seed) for seed in (0, 0, 0, 1))
    cast = make_base(tokenizer, torch.bfloat16)
    with torch.no_grad():
        longer.language_model.get_parameter("embed_tokens.weight")[len(tokenizer) :] += 1  # rows that no token has
        changed.language_model.get_parameter("layers.0.mlp.up_proj.weight")[0, 0] += 1
    assert one.fingerprint() == longer.fingerprint() == cast.fingerprint()
    assert len({base.fingerprint() for base in (one, changed, other)}) == 3


def test_a_base_in_half_precision_keeps_its_fingerprint() -> None:
    half, full = load_base("playroom", dtype="float16"), load_base("playroom")
    assert half.dtype == torch.float16 and half.fingerprint() == full.fingerprint()
    positions = dict(full.model.named_buffers())
    assert all(torch.equal(buffer, positions[name]) for name, buffer in half.model.named_buffers())


def test_a_base_with_missing_or_damaged_files_is_refused(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    whole = weights.read_bytes()
    name = next(name for name in tensors if "vision_tower" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, weights, {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"1 of its weights are missing .*vision_tower.*download it again"):
        load_base(tmp_path / "base")
    weights.write_bytes(whole[:-1000])
    with pytest.raises(BaseModelError, match="cannot be read"):
        load_base(tmp_path / "base")
    weights.write_bytes(whole)
    for damaged, cause in (
        ('{"frames": "8"}', "frames='8'"),
        ('{"frames": true}', "frames=True"),
        ("{", r"its pave\.json is not JSON"),
    ):
        (tmp_path / "base" / "pave.json").write_text(damaged)
        with pytest.raises(BaseModelError, match=cause):
            load_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("file", "text", "cause"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "cannot be read"),
        ("tokenizer_config.json", "[]", r"its tokenizer_config\.json is not a JSON object"),
        ("preprocessor_config.json", "[]", "its preprocessor_config.json is not a JSON object"),
        (
            "preprocessor_config.json",
            COLOURS % "[0, 0, 0]",
            r"image_std=\[0, 0, 0\], which must be positive; fix the file",
        ),
        (
            "preprocessor_config.json",
            COLOURS % "[0.5, 0.5]",
            r"image_std=\[0.5, 0.5\]; it must be three finite numbers",
        ),
        (
            "preprocessor_config.json",
            COLOURS % "[1, 1, NaN]",
            r"its preprocessor_config\.json is not JSON \(NaN is not a finite number\)",
        ),
        ("processor_config.json", COLOURS % '"x"', "its processor_config.json has image_std='x'; it must be three"),
        ("processor_config.json", '{"image_mean": [true, 1, 1]}', r"image_mean=\[True, 1, 1\]; it must be three"),
        ("generation_config.json", "[]", r"its generation_config\.json is not a JSON object"),
        ("model.safetensors.index.json", "{}", "cannot be read"),
        ("config.json", '{"architectures": 5, "model_type": "bert"}', "unsupported model_type"),
        ("config.json", '{"model_type": "llava_onevision", "dtype": "floaty"}', "cannot be read"),
        ("config.json", '{"model_type": "llava_onevision", "vision_config": 3}', "cannot be read"),
    ],
)
def test_a_base_with_one_odd_file_is_refused(file: str, text: str, cause: str, tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base")
    if "index" in file:
        (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / file).write_text(text)
    with pytest.raises(BaseModelError, match=cause) as refused:
        load_base(tmp_path / "base")
    assert str(refused.value).startswith(str(tmp_path / "base"))


def test_a_base_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(
        BaseModelError, match=r"base: it has no tokenizer\.json, .*; copy those of the same base beside"
    ):
        load_base(tmp_path / "base")


@pytest.mark.parametrize("frames", [0, -1, True, 1.5, "8"])
def test_a_number_of_key_frames_is_a_whole_one(frames: Any) -> None:
    with pytest.raises(BaseModelError, match=rf"frames={frames!r}: must be a whole number, 1 or more"):
        load_base("playroom", frames=frames)


@pytest.mark.parametrize("dtype", ["float33", "float8_e4m3fn", torch.float8_e4m3fn, torch.int64, "int8"])
def test_dtypes_that_a_base_cannot_compute_in_are_refused(dtype: Any) -> None:
    choices = "use 'auto', 'float32', 'bfloat16', 'float16', 'float64'"
    with pytest.raises(BaseModelError, match=f"dtype={dtype!r}: {choices}"):
        load_base("playroom", dtype=dtype)


def test_a_pickled_base_is_not_opened(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "base")
    torch.save(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"no file named model\.safetensors.*download it again, as safetensors"):
        load_base(tmp_path / "base")


def test_load_opens_a_saved_folder(base: Host, tmp_path: Path) -> None:
    base.model.save_pretrained(tmp_path)
    base.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "pave.json").write_text(json.dumps({"frames": 5}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    opened = load_base(tmp_path, device="cpu")
    assert (opened.frames, opened.mean, opened.std) == (5, (0.4,) * 3, (0.2,) * 3)
    assert load_base(tmp_path, frames=3, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert opened.fingerprint() == base.fingerprint()
    assert opened.prompt("hm?") == base.prompt("hm?")
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())
    assert opened.repo == ""


def test_unknown_bases_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="did you mean 'playroom'"):
        pave.load("playrom")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BaseModelError, match=r"'bert'.*llava_onevision.*add pave/bases/bert\.py, whose BASE is a sub"):
        pave.load(tmp_path)
    for name in ("", "a" * 300, "a\0b", "./nowhere", "../nowhere", "~/nowhere", "/no/where"):
        with pytest.raises(BaseModelError, match=r"not a local folder and not a Hub id"):
            pave.load(name)


def test_a_base_that_is_neither_local_nor_on_the_hub_is_named_as_both() -> None:
    with pytest.raises(
        BaseModelError, match=r"^models/llava: not a local folder, and not available on the Hub \(.*check the name"
    ):
        pave.load("models/llava")


@pytest.mark.parametrize("text", [None, "{}", "folder"])
def test_a_folder_that_is_not_a_base_is_refused(text: str | None, tmp_path: Path) -> None:
    if text == "folder":
        (tmp_path / "config.json").mkdir()
    elif text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"no config\.json with a model_type; pass the folder of a checkpoint"):
        pave.load(tmp_path)


def test_a_clip_without_frames_is_refused(base: Host) -> None:
    with pytest.raises(MediaError, match="the clip has no frames"):
        base.pixels(Clip(audio=torch.zeros(1, 16), rate=16_000))
    assert base.pixels(make_clip()).shape == (FRAMES, 3, *base.size)


@pytest.mark.parametrize("sections", [[2, 3], [2, 2, 3], [True, 3, 4], [2, 3, 300], None])
def test_rotary_sections_that_do_not_fit_a_head_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sections: Any
) -> None:
    base = make_base(tokenizer, family="qwen2_5_vl")
    base.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config["text_config"]["rope_parameters"]
    config["text_config"]["rope_parameters"] = {key: each for key, each in rope.items() if key != "mrope_section"}
    if sections is not None:  # else the default of the family, which is for heads of 128
        config["text_config"]["rope_parameters"]["mrope_section"] = sections
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BaseModelError, match=rf"^{tmp_path}: its .*(mrope_section=|rotary sections \[[\d, ]+\] do not add up to 8)"
    ):
        load_base(tmp_path)


def test_a_network_that_cannot_run_is_named_and_one_that_has_run_is_not_blamed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    base = make_base(tokenizer)
    base.repo, pixels = "user/base", base.pixels(make_clip())
    first: Any = base.model.get_submodule("model.vision_tower").get_submodule("encoder.layers.0.self_attn")
    heads, first.head_dim = first.head_dim, 7
    with pytest.raises(BaseModelError, match=r"^user/base: its vision tower does not run \(.*; its config\.json "):
        base.encode([pixels])
    first.head_dim = heads
    base.encode([pixels])
    first.head_dim = 7
    with pytest.raises(RuntimeError):
        base.encode([pixels])
