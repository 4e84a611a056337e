"""Claims about the folders of bases: none runs code or asks, odd ones are refused, and answers depend on no
generation settings."""

from __future__ import annotations

import builtins
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from safetensors.torch import load_file, save_file
from small import make_clip, write_base
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as theirs

from pave.errors import BaseModelError
from pave.files.quiet import quiet_loading
from pave.loading.base import load_base, outline
from pave.model.patched import PatchedModel

Change = Callable[[Path], object]
CODE = "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n"
AUTO = {"AutoTokenizer": ["evil.Tokens", None], "AutoConfig": "evil.Config", "AutoProcessor": "evil.P"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return write_base(tmp_path_factory.mktemp("small") / "base", tokenizer)


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy to change; its weights are linked."""
    (tmp_path / "base").mkdir()
    for file in small.iterdir():
        os.link(file, tmp_path / "base" / file.name)
    return tmp_path / "base"


def write(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).unlink(missing_ok=True)  # else the linked original would change, too
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def changed(folder: Path, name: str = "config.json", part: str = "", **values: Any) -> None:
    """Set keys of a JSON file, or of a part of it."""
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (content[part] if part else content).update(values)
    write(folder, name, json.dumps(content))


def deep(levels: int) -> str:
    return '{"model_type": "llava_onevision", "a": ' + "[" * levels + "]" * levels + "}"


def sharded(folder: Path, file: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    write(folder, "model.safetensors.index.json", json.dumps({"weight_map": {"a": "part.safetensors", "b": file}}))


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    (folder / "model.safetensors").unlink()
    save_file(tensors | {name: tensors[name].T.contiguous()}, folder / "model.safetensors", {"format": "pt"})


def special(folder: Path, name: str) -> int:
    """The id of a special token."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(each["id"] for each in added if each["content"] == name)


def fifo(name: str) -> Change:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def quantised(method: str) -> tuple[Change, str]:
    config = {"quant_method": method, "bits": 4, "group_size": 128}
    words = "its weights are quantised, and cannot be opened here: .*; load the base that is not quantised"
    return lambda folder: changed(folder, quantization_config=config), words


REFUSED: dict[str, tuple[Change, str]] = {
    "deep": (lambda folder: write(folder, "config.json", deep(40)), "its config.json is nested over 32 deep"),
    "very deep": (lambda folder: write(folder, "config.json", deep(100_000)), "its config.json is nested over 32 deep"),
    "a long integer": (
        lambda folder: write(folder, "config.json", '{"a": ' + "9" * 5000 + "}"),
        "is not JSON .an integer of 5,000 digits, at most 64",
    ),
    "NaN": (lambda folder: changed(folder, a=float("nan")), "is not JSON .NaN is not a finite number"),
    "twice": (
        lambda folder: write(folder, "config.json", '{"a": 1, "a": 2}'),
        "is not JSON .the key 'a' is there twice",
    ),
    "empty": (lambda folder: write(folder, "config.json", b""), "its config.json is not JSON"),
    "bytes": (lambda folder: write(folder, "tokenizer_config.json", b"\xff\xfe{"), "its tokenizer_config.json is not"),
    "large": (lambda folder: write(folder, "config.json", b" " * (1 << 21)), "has more than 1,048,576 bytes"),
    "text for a number": (
        lambda folder: changed(folder, part="text_config", num_hidden_layers="2"),
        "num_hidden_layers",
    ),
    "-1 layers": (
        lambda folder: changed(folder, part="text_config", num_hidden_layers=-1),
        "num_hidden_layers=-1; betw",
    ),
    "10^9 layers": (
        lambda folder: changed(folder, part="text_config", num_hidden_layers=10**9),
        "=1e.09; between 0 and",
    ),
    "10^9 labels": (lambda folder: changed(folder, num_labels=10**9), "num_labels=1e.09; between 0 and 65,536"),
    "10^9 words": (
        lambda folder: changed(folder, part="text_config", vocab_size=10**9),
        "describes .* numbers, its safe",
    ),
    "pictures of no size": (
        lambda folder: changed(folder, part="vision_config", image_size=-56),
        "its vision tower reads pictures of -56x-56 pixels",
    ),
    "large pictures": (lambda folder: changed(folder, part="vision_config", image_size=10**6), "describes .* numbers"),
    "no such layer": (
        lambda folder: changed(folder, vision_feature_layer=9),
        "vision_feature_layer=9, but .* 2 layers",
    ),
    "an enormous id": (
        lambda folder: write(
            folder, "tokenizer.json", (folder / "tokenizer.json").read_text().replace('": 299', '": 4000000000', 1)
        ),
        "its tokenizer.json has the number 4000000000, too large for the id of a token",
    ),
    "positions below 0": (
        lambda folder: changed(folder, part="text_config", max_position_embeddings=-1024),
        "its language model has max_position_embeddings=-1024",
    ),
    "pictures marked by a token of its prompts": (
        lambda folder: changed(folder, video_token_index=special(folder, "<|im_start|>")),
        "token .*, which marks pictures, is one of its prompts or an ordinary word",
    ),
    "pictures marked by a word": (
        lambda folder: changed(folder, video_token_index=200),
        "token 200, which marks pictures, is one of its prompts or an ordinary word",
    ),
    "no heads": (
        lambda folder: changed(folder, part="text_config", num_attention_heads=0),
        "its config.json cannot be read .one of its numbers is 0, and must not be",
    ),
    "unknown activation": (
        lambda folder: changed(folder, part="text_config", hidden_act="evil"),
        "its config.json cannot be read .'evil' is not known to transformers",
    ),
    "a deep tokenizer": (
        lambda folder: write(folder, "tokenizer.json", '{"model": ' + "[" * 5000 + "]" * 5000 + "}"),
        "its tokenizer cannot be read .it is nested too deep",
    ),
    **{
        f"quantised by {facts}": (
            lambda folder, facts=facts: changed(folder, quantization_config=facts),
            "has quantization_config with quant_method=.*, which is unknown; load the base that is not",
        )
        for facts in ({"quant_method": "evil"}, {"bits": 4}, {"quant_method": "bitsandbytes"}, "evil")
    },
    "another width": (lambda folder: changed(folder, part="text_config", intermediate_size=64), "do not fit"),
    "shapes": (reshaped, "do not fit"),
    "kernels": (lambda folder: changed(folder, attn_implementation="evil/kernel"), "code of its own; PAVE never runs"),
    **{method: quantised(method) for method in ("gptq", "awq")},
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json with a model_type"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "empty weights": (lambda folder: write(folder, "model.safetensors", b""), "cannot be read"),
    "shards elsewhere": (
        lambda folder: sharded(folder, "../base/part.safetensors"),
        "is no safetensors file beside it",
    ),
    "shards missing": (lambda folder: sharded(folder, "more.safetensors"), "more.safetensors, which .* is missing"),
    "shards that are numbers": (lambda folder: sharded(folder, 5), "names '5', which is no safetensors file"),  # type: ignore[arg-type]
    "an adapter beside": (lambda folder: changed(folder, "adapter_config.json", r=4), "an adapter of PEFT lies beside"),
    "pictures marked by no word": (lambda folder: changed(folder, video_token_index=10**6), "not in its vocabulary"),
    "ends": (
        lambda folder: changed(folder, "generation_config.json", eos_token_id=[2, "x"]),
        "eos_token_id has .x., which is no id",
    ),
    "a word twice": (
        lambda folder: write(
            folder,
            "tokenizer.json",
            (folder / "tokenizer.json").read_text().replace('"merges": [', '"merges": [["q","zz"],'),
        ),
        "cannot be read",
    ),
    **{
        f"FIFO {name}": (fifo(name), "it is a named pipe, not a file")
        for name in ("config.json", "tokenizer.json", "more.json")
    },
    "FIFO of weights": (
        fifo("model.safetensors"),
        "base: holds model.safetensors, which cannot be read .it is a named pipe",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_base_is_refused_in_our_words(folder: Path, kind: str) -> None:
    change, cause = REFUSED[kind]
    change(folder)
    with pytest.raises(BaseModelError, match=cause) as refused:
        load_base(folder)
    assert str(refused.value).startswith(str(folder))


def test_an_adapter_without_its_base_says_how_to_use_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(BaseModelError, match="an adapter of PEFT, not a base; load its base, then apply_patch"):
        load_base(tmp_path)


UNSAFE: dict[str, Change] = {
    "tokenizer": lambda folder: changed(folder, "tokenizer_config.json", auto_map=AUTO, tokenizer_class="Tokens"),
    "tokenizer alone": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        changed(folder, "tokenizer_config.json", auto_map=AUTO),
    ),
    "config": lambda folder: changed(folder, auto_map=AUTO, model_type="evil"),
    "part of the config": lambda folder: changed(folder, part="text_config", auto_map=AUTO, model_type="evil"),
    "known config": lambda folder: changed(folder, auto_map=AUTO),
    "processor": lambda folder: changed(folder, "processor_config.json", auto_map=AUTO, processor_class="P"),
    "generation": lambda folder: (
        (folder / "custom_generate").mkdir(),
        write(folder, "custom_generate/generate.py", CODE),
    ),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_code_of_a_base_is_never_run_and_nobody_is_asked(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(prompt: str = "") -> str:
        raise AssertionError(f"somebody was asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)
    write(folder, "evil.py", CODE)
    UNSAFE[kind](folder)
    for opens in (load_base, outline):
        try:
            opens(folder)
        except BaseModelError as error:
            assert "somebody was asked" not in str(error) and "trust_remote_code" not in str(error)
        else:
            assert kind in ("known config", "processor", "generation") or opens is outline, "transformers has its own"
    assert not list(folder.rglob("it-ran"))


def test_a_yes_on_stdin_runs_no_code(folder: Path) -> None:
    write(folder, "evil.py", CODE)
    UNSAFE["tokenizer"](folder)
    words = [
        sys.executable,
        "-m",
        "pave.cli.main",
        "ask",
        str(ROOT / "examples/room.mp4"),
        "What?",
        "--base",
        str(folder),
    ]
    done = subprocess.run(words, input="y\n" * 9, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and not done.stdout and "custom code" not in done.stderr
    assert "it needs code of its own); PAVE never runs code of a base; use its conversion" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(folder.rglob("it-ran"))


ODD: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_scores": True,
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 9.0,
    "repetition_penalty": -1.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 30,
    "suppress_tokens": [*range(5, 200)],
    "forced_eos_token_id": 2,
    "max_length": 1,
    "stop_strings": ["a"],
    "max_time": 0.0,
    "guidance_scale": 3.0,
    "cache_implementation": "nowhere",
    "prompt_lookup_num_tokens": 3,
    "pad_token_id": -7,
    "nobody_knows": {"this": [1]},
}


@pytest.mark.parametrize("ends", [2, [2, 5], None])
def test_answers_depend_on_no_generation_settings(small: Path, folder: Path, ends: Any) -> None:
    plain, odd = PatchedModel(load_base(small)), folder
    write(odd, "generation_config.json", json.dumps(ODD | {"eos_token_id": ends}))
    strange = PatchedModel(load_base(odd))
    assert strange.host.stops == (plain.host.stops if ends != [2, 5] else sorted({*plain.host.stops, 5}))
    answer = str(plain.ask(make_clip(0), "Well?"))
    assert answer and str(strange.ask(make_clip(0), "Well?")) == answer
    assert "".join(strange.stream(make_clip(0), "Well?")).strip() == answer
    write(odd, "generation_config.json", json.dumps(ODD | {"eos_token_id": ends, "repetition_penalty": 1.05}))
    assert load_base(odd).model.generation_config.repetition_penalty == 1.05  # belongs to greedy answers


def test_the_first_lines_of_the_readme_print_the_answer_alone() -> None:
    code = (
        "import pave; m = pave.load('playroom'); m.apply_patch('audio-playroom'); "
        "print(m.ask('examples/room.mp4', 'what do you hear?'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and not done.stderr, done.stderr


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_levels_and_bars_of_transformers_are_as_before(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)  # which a command sets
    before, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(level)
    try:
        with quiet_loading(downloads=False):
            assert theirs.get_verbosity() == (logging.ERROR if level == logging.WARNING else level)
            assert not theirs.is_progress_bar_enabled()
        assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == (level, bars)
    finally:
        theirs.set_verbosity(before)
